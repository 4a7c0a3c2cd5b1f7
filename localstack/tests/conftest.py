"""One LocalStack for all tests, on a free loopback port; an account for each test."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

import seed  # noqa: E402

REGION = "us-east-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := true():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("localstack"), free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | json.loads((HERE / "environment.json").read_text())
    environment |= {"GATEWAY_LISTEN": f"127.0.0.1:{port}", "FILESYSTEM_ROOT": str(folder / "root")}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "localstack.runtime.main"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    def ready() -> bool:
        if process.poll() is not None:
            raise AssertionError((folder / "log").read_text())
        try:
            return requests.get(f"{url}/_localstack/health", timeout=2).ok
        except requests.ConnectionError:
            return False

    try:
        wait_until(ready, 60, "LocalStack is ready")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


class Control:
    """The paths under /moto-api/."""

    def __init__(self, endpoint: str, account: str):
        self.endpoint, self.account = endpoint, account

    def get(self, path: str, **params: Any) -> Any:
        answer = requests.get(f"{self.endpoint}/moto-api/{path}", params=params, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any = None, **params: Any) -> Any:
        answer = requests.post(f"{self.endpoint}/moto-api/{path}", json=body, params=params, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def delete(self, path: str) -> Any:
        return requests.delete(f"{self.endpoint}/moto-api/{path}", timeout=10).json()

    def faults(self, *rows: dict) -> list[dict]:
        return self.post("faults", list(rows))

    def settings(self, **values: Any) -> dict:
        return self.post("settings", values)

    def calls(self, operation: str | None = None, **params: Any) -> list[dict]:
        rows = self.get("calls", account=self.account, **params)
        return [row for row in rows if operation in (None, row["operation"])]


_accounts = itertools.count(1)


@pytest.fixture
def account() -> str:
    return f"{next(_accounts):012d}"


@pytest.fixture
def control(endpoint: str, account: str) -> Iterator[Control]:
    control = Control(endpoint, account)
    yield control
    defaults = {"attach_seconds": 0, "detach_seconds": 0, "provision_seconds": 0, "eni_linger_seconds": 0}
    defaults |= {"provision_failures": 0, "targets_per_balancer": 0, "session_seconds": 0}
    control.settings(**defaults, instance_refresh=[], account_limits={})
    control.faults()
    control.post("policy", {"enforce": False})


class World:
    """A seeded account and short words for what tests do there."""

    def __init__(self, endpoint: str, account: str, workers: int = 3):
        self.endpoint, self.account_id = endpoint, account
        self.made = seed.seed(endpoint, account, REGION, workers=workers)
        self.account = seed.Account(endpoint, account, REGION)
        self.ec2, self.asg = self.account.ec2, self.account.autoscaling
        self.elb = seed.client("elbv2", endpoint, account, REGION)
        self.vpc, self.subnets, self.instances = self.made["vpc"], self.made["subnets"], self.made["instances"]
        self.names = itertools.count(1)

    def name(self, prefix: str) -> str:
        return f"{prefix}-{next(self.names)}"

    def security_group(self, **more: Any) -> str:
        return self.ec2.create_security_group(GroupName=self.name("sg"), Description="d", VpcId=self.vpc, **more)[
            "GroupId"
        ]

    def balancer(self, **more: Any) -> dict:
        asked = {"Name": self.name("nlb"), "Type": "network", "Scheme": "internal", "Subnets": self.subnets} | more
        return self.elb.create_load_balancer(**asked)["LoadBalancers"][0]

    def target_group(self, **more: Any) -> dict:
        asked = {"Name": self.name("tg"), "Protocol": "TCP", "Port": 30080, "VpcId": self.vpc} | more
        return self.elb.create_target_group(**asked)["TargetGroups"][0]

    def group_arn(self, **more: Any) -> str:
        return self.target_group(**more)["TargetGroupArn"]

    def listener(self, balancer: str, group: str, **more: Any) -> dict:
        asked = {"LoadBalancerArn": balancer, "Protocol": "TCP", "Port": 80} | more
        asked["DefaultActions"] = [{"Type": "forward", "TargetGroupArn": group}]
        return self.elb.create_listener(**asked)["Listeners"][0]

    def attach(self, *groups: str, asg: str = "workers") -> None:
        self.asg.attach_traffic_sources(AutoScalingGroupName=asg, TrafficSources=[source(g) for g in groups])

    def detach(self, *groups: str, asg: str = "workers") -> None:
        self.asg.detach_traffic_sources(AutoScalingGroupName=asg, TrafficSources=[source(g) for g in groups])

    def sources(self, asg: str = "workers") -> dict[str, str]:
        rows = self.asg.describe_traffic_sources(AutoScalingGroupName=asg)["TrafficSources"]
        return {row["Identifier"]: row["State"] for row in rows}

    def group(self, asg: str = "workers") -> dict:
        return self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[asg])["AutoScalingGroups"][0]

    def members(self, asg: str = "workers") -> list[str]:
        return self.account.members(asg)

    def health(self, group: str) -> list[dict]:
        return self.elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]

    def targets(self, group: str) -> list[tuple[str, int]]:
        return sorted((row["Target"]["Id"], row["Target"]["Port"]) for row in self.health(group))

    def registered(self, group: str) -> list[str]:
        return [target for target, _ in self.targets(group)]

    def shown_group(self, arn: str) -> dict:
        return self.elb.describe_target_groups(TargetGroupArns=[arn])["TargetGroups"][0]

    def shown_balancer(self, arn: str) -> dict:
        return self.elb.describe_load_balancers(LoadBalancerArns=[arn])["LoadBalancers"][0]


def source(arn: str) -> dict[str, str]:
    return {"Identifier": arn, "Type": "elbv2"}


@pytest.fixture
def world(endpoint: str, account: str, control: Control) -> World:
    return World(endpoint, account)


@pytest.fixture(scope="module")
def shared(endpoint: str) -> World:
    """For tests that leave nothing behind which others could see."""
    return World(endpoint, f"{next(_accounts):012d}")


class Refusal:
    code = message = ""
    status = 0


@pytest.fixture
def refusal() -> Callable[..., Refusal]:
    """refusal(call, **arguments): the error that the call must answer."""

    def run(call: Callable, **arguments: Any) -> Refusal:
        with pytest.raises(ClientError) as caught:
            call(**arguments)
        found = Refusal()
        found.code, found.message = caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]
        found.status = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
        return found

    return run
