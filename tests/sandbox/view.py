"""What tests read of an account: all of it, in words that two runs of the same scenario have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws import Account
from sandbox.process import wait_for
from sandbox.scene import NODES, Scene

WEIR = "weir-"


def target_groups(account: Account) -> dict[str, str]:
    """ARN -> name."""
    pages = account.elbv2.get_paginator("describe_target_groups").paginate()
    return {group["TargetGroupArn"]: group["TargetGroupName"] for page in pages for group in page["TargetGroups"]}


def attached(account: Account, asg: str = "workers") -> dict[str, str]:
    """ARN -> state, as traffic sources of one Auto Scaling group."""
    found: dict[str, str] = {}
    token: dict[str, str] = {}
    while True:  # boto3 has no paginator for it
        page = account.autoscaling.describe_traffic_sources(AutoScalingGroupName=asg, **token)
        found |= {source["Identifier"]: source["State"] for source in page["TrafficSources"]}
        if not page.get("NextToken"):
            return found
        token = {"NextToken": page["NextToken"]}


def registered(account: Account, arn: str) -> set[str]:
    """Instances that are targets."""
    health = account.elbv2.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
    return {row["Target"]["Id"] for row in health}


def plain(name: str) -> str:
    """A name of weir's without its last part, a hash of the Service's UID among others."""
    return name.rpartition("-")[0] if name.startswith(WEIR) else name


def view(account: Account, asgs: tuple[str, ...] = ("workers",)) -> dict[str, Any]:
    """Everything of weir's, without ARNs, ids and hashes, which differ from one creation to the next."""
    elbv2 = account.elbv2
    groups = account.ec2.describe_security_groups()["SecurityGroups"]
    named = {group["GroupId"]: plain(group["GroupName"]) for group in groups}
    # One reading for names and rows: weir may be at work between two.
    rows = elbv2.describe_target_groups()["TargetGroups"]
    tgs = {row["TargetGroupArn"]: plain(row["TargetGroupName"]) for row in rows}
    balancers = elbv2.describe_load_balancers()["LoadBalancers"]
    listeners = [
        (plain(lb["LoadBalancerName"]), row["Port"], row["Protocol"], tgs.get(row["DefaultActions"][0]["TargetGroupArn"]))
        for lb in balancers
        for row in elbv2.describe_listeners(LoadBalancerArn=lb["LoadBalancerArn"])["Listeners"]
    ]
    return {
        "balancers": sorted(
            (plain(lb["LoadBalancerName"]), lb["Scheme"], sorted(named.get(g, g) for g in lb["SecurityGroups"])) for lb in balancers
        ),
        "listeners": sorted(listeners),
        "target groups": sorted(
            (tgs[row["TargetGroupArn"]], row["Port"], sorted(registered(account, row["TargetGroupArn"])))
            for row in rows
        ),
        "attached": {
            asg: sorted((tgs.get(arn, arn), state) for arn, state in attached(account, asg).items()) for asg in asgs
        },
        "security groups": sorted(
            (named[group["GroupId"]], rules_of(group, named))
            for group in groups
            if group["GroupName"].startswith(WEIR) or group["GroupId"] == account.names["node_security_group"]
        ),
    }


def rules_of(group: dict[str, Any], named: dict[str, str]) -> list[tuple[Any, ...]]:
    return sorted(
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            rule.get("ToPort"),
            sorted(row["CidrIp"] for row in rule["IpRanges"]),
            sorted(named.get(pair["GroupId"], pair["GroupId"]) for pair in rule["UserIdGroupPairs"]),
        )
        for rule in group["IpPermissions"]
    )


def nothing(account: Account, asgs: tuple[str, ...] = ("workers",)) -> dict[str, Any]:
    """What `view` shows where weir has left nothing."""
    return {
        "balancers": [],
        "listeners": [],
        "target groups": [],
        "attached": {asg: [] for asg in asgs},
        "security groups": [(f"{account.cluster}-nodes", [])],
    }


def until_equal(read: Callable[[], Any], wanted: Any, timeout: float = 30.0) -> None:
    """Polls until `read` gives `wanted`; if it does not in time, the difference is what the test reports."""
    seen = None

    def check() -> bool:
        nonlocal seen
        try:
            seen = read()
        except ClientError as error:
            if not error.response["Error"]["Code"].endswith("NotFound"):
                raise
            seen = error  # deleted between two of the reads
        return bool(seen == wanted)

    try:
        wait_for(check, timeout, "equality")
    except TimeoutError:
        assert seen == wanted, f"after {timeout:g} s"


def calls_of(account: Account, *operations: str, since: int = 0) -> list[dict[str, Any]]:
    """weir's calls of these operations, in order."""
    return [call for call in account.calls(since) if call["operation"] in operations]


def writes(account: Account, since: int = 0) -> list[str]:
    """Operations of weir's that could change something."""
    calls = [call["operation"] for call in account.calls(since)]
    return [name for name in calls if not name.startswith(("Describe", "List", "Get"))]


def holds(read: Callable[[], Any], wanted: Any, seconds: float) -> None:
    """Polls for `seconds`; `read` has to give `wanted` each time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = read()
        assert seen == wanted
        time.sleep(0.1)


def quiet(account: Account, seconds: float = 1.5, timeout: float = 60.0) -> int:
    """Waits until weir has made no write for so long; the number of the last call then, as a `mark`."""
    seen, since = -1, time.monotonic()

    def check() -> bool:
        nonlocal seen, since
        if (count := len(writes(account))) != seen:
            seen, since = count, time.monotonic()
        return time.monotonic() - since >= seconds

    wait_for(check, timeout, "an end of writes")
    return account.mark()


def nodes_follow(scene: Scene, account: Account) -> None:
    """What the cluster's own controllers do: a Node for each instance that runs, and none for any other."""
    nodes = {node["spec"].get("providerID"): node["metadata"]["name"] for node in scene.kube.list(NODES)}
    running = {node["spec"]["providerID"]: node for node in account.node_manifests()}
    for provider_id, node in running.items():
        if provider_id not in nodes:
            if node["metadata"]["name"] in nodes.values():  # the emulator may give one address twice
                node["metadata"]["name"] = f"{provider_id.rpartition('/')[2]}.{node['metadata']['name']}"
            scene.kube.create(NODES, node)
    for provider_id, name in nodes.items():
        if provider_id not in running:
            scene.kube.delete(f"{NODES}/{name}")


def node_of(scene: Scene, instance: str) -> str:
    """API path of the Node of an instance."""
    [name] = [
        node["metadata"]["name"]
        for node in scene.kube.list(NODES)
        if node["spec"].get("providerID", "").endswith(f"/{instance}")
    ]
    return f"{NODES}/{name}"


def single(account: Account) -> str:
    """ARN of the only target group."""
    return wait_for(lambda: list(target_groups(account))[0:1], 20, "a target group")[0]


def targets_are(account: Account, arn: str, instances: Iterable[str], timeout: float = 30) -> None:
    """Waits until these instances, and no others, are targets."""
    until_equal(lambda: registered(account, arn), set(instances), timeout)


def expose_one(scene: Scene, account: Account) -> str:
    """Exposes a Service `order` and waits until every worker is its target; the ARN of its target group."""
    scene.expose("order")
    scene.wait_hostname("order")
    arn = single(account)
    targets_are(account, arn, account.names["instances"])
    return arn


def lone_instances(account: Account, count: int = 1) -> list[str]:
    """New instances that could be nodes and are in no Auto Scaling group."""
    subnet, node_group = account.names["subnets"][0], account.names["node_security_group"]
    return [account.workers.launch_instance(subnet, node_group) for _ in range(count)]
