"""Services that LocalStack's free runtime lacks, answered by the moto it bundles.

elbv2, autoscaling      new services, active by default
iam:moto, sts:moto      replace the native providers when PROVIDER_OVERRIDE_IAM=moto and PROVIDER_OVERRIDE_STS=moto
                        are set, so that the permission check (permissions.py) finds users, roles and keys

NLB_OVERRIDES=0 leaves moto as it is; otherwise overrides.py corrects part of it.
"""

import os
from collections.abc import Callable
from typing import Any

from localstack.aws.skeleton import Skeleton
from localstack.aws.spec import load_service
from localstack.services.moto import call_moto
from localstack.services.plugins import Service, aws_provider
from localstack.utils.patch import patch

from localstack_nlb.accounts import ONE_AT_A_TIME

CORRECTED = os.environ.get("NLB_OVERRIDES", "1") != "0"
SERIALISED = {"autoscaling", "ec2", "elbv2", "iam", "sts"}


class MotoOnly:
    """A provider without methods of its own; LocalStack wants an object that names its service."""

    def __init__(self, service: str):
        self.service = service


@patch(Skeleton.invoke)
def _one_at_a_time(invoke: Callable, self: Skeleton, context: Any) -> Any:
    """Calls that share moto's stores take effect one after another, ec2's native provider included."""
    if context.service.service_name not in SERIALISED:
        return invoke(self, context)
    with ONE_AT_A_TIME:
        if CORRECTED:
            from localstack_nlb.overrides import let_time_pass

            let_time_pass(context)
        return invoke(self, context)


def dispatch_table(provider: MotoOnly) -> dict[str, Callable]:
    """LocalStack has no API class for these services, so the table comes from the service model."""
    special: dict[str, Callable] = {}
    if CORRECTED:
        from localstack_nlb.overrides import OVERRIDES

        special = OVERRIDES.get(provider.service, {})

    def entry(operation: str) -> Callable:
        handler = special.get(operation)

        def run(context: Any, request: dict) -> Any:
            return handler(context, request) if handler else call_moto(context)

        return run

    return {operation: entry(operation) for operation in load_service(provider.service).operation_names}


def moto_service(name: str) -> Service:
    return Service.for_provider(MotoOnly(name), dispatch_table_factory=dispatch_table)


@aws_provider()
def elbv2() -> Service:
    return moto_service("elbv2")


@aws_provider()
def autoscaling() -> Service:
    return moto_service("autoscaling")


@aws_provider(api="iam", name="moto")
def iam_moto() -> Service:
    return moto_service("iam")


@aws_provider(api="sts", name="moto")
def sts_moto() -> Service:
    return moto_service("sts")
