"""The paths under /moto-api/: call log, faults, settings, reset."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import boto3
import pytest
import requests
import seed
from botocore.config import Config
from conftest import REGION, Control, World, wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def sdk(endpoint: str, account: str, agent: str) -> Any:
    return boto3.client(
        "elbv2",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=account,
        aws_secret_access_key="test",
        config=Config(user_agent=agent, retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def rust(endpoint: str, account: str) -> Any:
    """elbv2 under the name of the controller's SDK."""
    return sdk(endpoint, account, "aws-sdk-rust/1.3.10 ua/2.1 api/elasticloadbalancingv2/1.1.0 os/linux lang/rust/1.91 app/one")


# --- calls


def test_call_log_tells_what_was_asked_and_answered(world: World, control: Control, refusal: Callable) -> None:
    before = control.calls()[-1]["n"]
    group = world.target_group(Name="logged")
    refusal(world.target_group, Name="logged", Port=1)
    rows = control.calls(since=before)
    assert [(r["service"], r["operation"], r["status"], r["code"]) for r in rows] == [
        ("elbv2", "CreateTargetGroup", 200, None),
        ("elbv2", "CreateTargetGroup", 400, "DuplicateTargetGroupName"),
    ]
    assert rows[0]["request"]["Name"] == "logged" and rows[0]["request"]["VpcId"] == group["VpcId"]
    assert rows[0]["account"] == world.account_id and rows[0]["ms"] > 0
    assert rows[0]["n"] < rows[1]["n"]


def test_call_log_knows_clients_and_accounts(world: World, control: Control, endpoint: str, rust: Any) -> None:
    scope = f"{world.account_id}/20260101/{REGION}/elasticloadbalancing/aws4_request"
    requests.post(
        endpoint,
        data={"Action": "DescribeLoadBalancers", "Version": "2015-12-01"},
        headers={"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"},
        timeout=10,
    ).raise_for_status()
    rust.describe_load_balancers()
    sdk(endpoint, "888888888888", "aws-sdk-rust/1").describe_load_balancers()
    rows = control.calls(client="rust")
    assert [(row["operation"], row["app"]) for row in rows] == [("DescribeLoadBalancers", "one")]
    assert control.calls(client="other")[0]["app"] is None
    assert [row["operation"] for row in control.calls(client="other")] == ["DescribeLoadBalancers"]
    assert control.calls(client="boto")[0]["operation"] == "CreateVpc"


def test_deleting_the_log_keeps_counting(world: World, control: Control) -> None:
    last = control.calls()[-1]["n"]
    assert control.delete(f"calls?account={world.account_id}") == []
    assert control.calls() == []
    world.elb.describe_load_balancers()
    assert [row["n"] > last for row in control.calls()] == [True]


# --- faults


def test_fault_before_the_call(world: World, control: Control, refusal: Callable) -> None:
    fault = {"operation": "CreateTarget*", "code": "Throttling", "message": "Rate exceeded", "skip": 1, "count": 2}
    control.faults(fault | {"account": world.account_id})
    kept = world.target_group(Name="first")["TargetGroupArn"]
    for _ in range(2):
        hit = refusal(world.target_group, Name="second")
        assert (hit.code, hit.message, hit.status) == ("Throttling", "Rate exceeded", 400)
    assert [g["TargetGroupArn"] for g in world.elb.describe_target_groups()["TargetGroups"]] == [kept]
    world.target_group(Name="second")
    assert [row["hits"] for row in control.get("faults")] == [2]


def test_fault_after_the_call(world: World, control: Control, refusal: Callable) -> None:
    fault = {"operation": "CreateTargetGroup", "when": "after", "code": "ServiceUnavailable", "status": 503}
    control.faults(fault | {"account": world.account_id})
    hit = refusal(world.target_group, Name="lost")
    assert (hit.code, hit.status) == ("ServiceUnavailable", 503)
    assert [g["TargetGroupName"] for g in world.elb.describe_target_groups()["TargetGroups"]] == ["lost"]
    assert [row["status"] for row in control.calls("CreateTargetGroup")] == [200]


@pytest.mark.parametrize(
    ("chosen", "hit"),
    [
        ({"client": "rust"}, True),
        ({"client": "boto"}, False),
        ({"service": "elbv2"}, True),
        ({"service": "ec2"}, False),
        ({"kind": "write"}, True),
        ({"kind": "read"}, False),
        ({"match": "wanted"}, True),
        ({"match": "unwanted"}, False),
        ({"account": "777777777777"}, False),
        ({"operation": "Create*"}, True),
        ({"operation": "Delete*"}, False),
        ({"count": 0}, False),
        ({"count": -1}, True),
    ],
)
def test_which_calls_a_fault_hits(rust: Any, account: str, control: Control, chosen: dict, hit: bool) -> None:
    control.faults({"code": "Throttling", "account": account} | chosen)
    with pytest.raises(rust.exceptions.ClientError) as caught:
        rust.create_target_group(Name="wanted", Protocol="TCP", Port=1, VpcId="vpc-0")
    assert (caught.value.response["Error"]["Code"] == "Throttling") == hit


def test_delay(world: World, control: Control) -> None:
    control.faults({"operation": "DescribeLoadBalancers", "account": world.account_id, "delay": 0.5})
    start = time.monotonic()
    world.elb.describe_load_balancers()
    assert time.monotonic() - start >= 0.5
    start = time.monotonic()
    world.elb.describe_load_balancers()
    assert time.monotonic() - start < 0.5


def stalled(control: Control) -> int:
    return sum(row["stalled"] for row in control.get("faults"))


def test_stall_takes_effect_first_and_blocks_nobody(world: World, control: Control, pool: ThreadPoolExecutor) -> None:
    control.faults({"operation": "CreateTargetGroup", "account": world.account_id, "stall": 30})
    held: Future = pool.submit(world.target_group, Name="held")
    wait_until(lambda: stalled(control) == 1, 5, "the answer is held back")
    assert [row["status"] for row in control.calls("CreateTargetGroup")] == [200]
    assert [g["TargetGroupName"] for g in world.elb.describe_target_groups()["TargetGroups"]] == ["held"]
    world.target_group(Name="other")
    assert not held.done()
    control.faults()
    assert held.result(timeout=5)["TargetGroupName"] == "held"
    assert stalled(control) == 0


def test_many_answers_can_be_held_at_once(world: World, control: Control) -> None:
    control.faults({"operation": "DescribeTags", "account": world.account_id, "stall": 30, "count": -1})
    arn = world.group_arn()
    client = seed.client("elbv2", world.endpoint, world.account_id, REGION)
    threads = [threading.Thread(target=client.describe_tags, kwargs={"ResourceArns": [arn]}) for _ in range(9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: stalled(control) == 9, 10, "nine answers are held back")
    world.group_arn()
    control.faults()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_stall_ends_by_itself_and_goes_with_an_error(world: World, control: Control, refusal: Callable) -> None:
    fault = {"operation": "CreateTargetGroup", "stall": 0.4, "when": "after", "code": "InternalFailure", "status": 500}
    control.faults(fault | {"account": world.account_id})
    start = time.monotonic()
    assert refusal(world.target_group).status == 500
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize(
    "row", [{"operation": "X"}, {"code": "X", "when": "later"}, {"code": "X", "kind": "x"}, {"code": "X", "cuont": 1}]
)
def test_senseless_faults_are_refused(control: Control, endpoint: str, row: dict) -> None:
    control.faults({"operation": "Nothing", "code": "X"})
    answer = requests.post(f"{endpoint}/moto-api/faults", json=[row], timeout=10)
    assert answer.status_code == 400 and answer.json()["error"]
    assert [fault["operation"] for fault in control.get("faults")] == ["Nothing"]


# --- settings, reset


def test_settings_are_checked(control: Control, endpoint: str) -> None:
    assert control.settings(attach_seconds=2)["attach_seconds"] == 2
    for wrong in ({"attach_second": 1}, {"attach_seconds": "1"}, {"instance_refresh": "workers"}, {"account_limits": 1}):
        assert requests.post(f"{endpoint}/moto-api/settings", json=wrong, timeout=10).status_code == 400
    assert control.get("settings")["attach_seconds"] == 2


def test_reset_of_one_account(world: World, control: Control, endpoint: str) -> None:
    other = World(endpoint, "666666666666", workers=1)
    world.balancer(), other.balancer()
    control.settings(attach_seconds=3)
    control.post("reset", account=other.account_id)
    assert other.elb.describe_load_balancers()["LoadBalancers"] == []
    assert other.account.instances() == [] and other.members() == []
    assert len(world.elb.describe_load_balancers()["LoadBalancers"]) == 1 and len(world.members()) == 3
    assert control.get("settings")["attach_seconds"] == 3
    assert seed.seed(endpoint, other.account_id, REGION, workers=1)["asg"] == "workers"


def test_reset_of_everything(world: World, control: Control, pool: ThreadPoolExecutor) -> None:
    world.balancer()
    control.settings(attach_seconds=3, instance_refresh=["workers"])
    control.faults({"operation": "DescribeTargetGroups", "stall": 30})
    held = pool.submit(world.elb.describe_target_groups)
    wait_until(lambda: stalled(control) == 1, 5, "the answer is held back")
    control.post("reset")
    assert held.result(timeout=5)["TargetGroups"] == []
    assert world.elb.describe_load_balancers()["LoadBalancers"] == []
    assert world.account.instances() == [] and control.get("faults") == []
    assert control.get("settings") == {
        "attach_seconds": 0,
        "detach_seconds": 0,
        "provision_seconds": 0,
        "provision_failures": 0,
        "eni_linger_seconds": 0,
        "session_seconds": 0,
        "targets_per_balancer": 0,
        "instance_refresh": [],
        "account_limits": {},
    }
