"""The way into moto's stores, the way to refuse a call, the lock, and the clock that delays are measured with."""

import threading
import time
from typing import Any

from localstack.aws.api import CommonServiceException
from moto.autoscaling.models import AutoScalingBackend, autoscaling_backends
from moto.ec2.models import EC2Backend, ec2_backends
from moto.elbv2.models import ELBv2Backend, elbv2_backends

ONE_AT_A_TIME = threading.RLock()
"""moto's stores are plain dicts: iterating one while another thread fills it fails. Held while a call takes effect,
never while one is delayed or its answer is held back."""

now = time.monotonic


def balancing(context: Any) -> ELBv2Backend:
    return elbv2_backends[context.account_id][context.region]


def scaling(context: Any) -> AutoScalingBackend:
    return autoscaling_backends[context.account_id][context.region]


def network(context: Any) -> EC2Backend:
    return ec2_backends[context.account_id][context.region]


def balancing_of(backend: Any) -> ELBv2Backend:
    """The elbv2 store of the account and region that another store belongs to."""
    return elbv2_backends[backend.account_id][backend.region_name]


def network_of(backend: Any) -> EC2Backend:
    return ec2_backends[backend.account_id][backend.region_name]


def scaling_of(backend: Any) -> AutoScalingBackend:
    return autoscaling_backends[backend.account_id][backend.region_name]


def refuse(code: str, message: str, status: int = 400) -> CommonServiceException:
    return CommonServiceException(code, message, status_code=status, sender_fault=status < 500)


def quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
