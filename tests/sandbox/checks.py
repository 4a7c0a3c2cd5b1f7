"""What tests ask about AWS, through a client of their own: what is left, what was written, what serves."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

from sandbox.aws import Account
from sandbox.process import wait_for
from sandbox.scene import Scene

FINALIZER = "weir.dev/load-balancer"
ANNOTATION = "service.beta.kubernetes.io/aws-load-balancer-"
#: Flags of a weir that never reads the account again by itself: what it does then is what its Services cause.
CALM = "--drift-interval=1h"
NOTHING = {"balancers": [], "target groups": [], "groups": [], "node rules": []}

_READ = re.compile(r"(Describe|List|Get)[A-Z]")
Row = dict[str, Any]


def left_in_aws(account: Account) -> dict[str, list[Any]]:
    """Names of everything weir could have left in the account."""
    groups = account.ec2.describe_security_groups()["SecurityGroups"]
    node = next(group for group in groups if group["GroupId"] == account.names["node_security_group"])
    return {
        "balancers": [balancer["LoadBalancerName"] for balancer in balancers(account)],
        "target groups": [group["TargetGroupName"] for group in target_groups(account)],
        "groups": [group["GroupName"] for group in groups if group["GroupName"].startswith("weir-")],
        "node rules": node["IpPermissions"],
    }


def wait_nothing_left(account: Account, timeout: float = 30.0) -> None:
    """What all Services share goes a moment after the last of them."""
    try:
        wait_for(lambda: left_in_aws(account) == NOTHING, timeout, "nothing to be left in AWS")
    except TimeoutError:
        assert left_in_aws(account) == NOTHING
        raise


def balancers(account: Account) -> list[Row]:
    return account.elbv2.describe_load_balancers()["LoadBalancers"]


def balancer(account: Account, hostname: str) -> Row:
    """The load balancer with this name in the DNS."""
    [found] = [row for row in balancers(account) if row["DNSName"].lower() == hostname]
    return found


def listeners(account: Account, arn: str) -> dict[int, Row]:
    return {row["Port"]: row for row in account.elbv2.describe_listeners(LoadBalancerArn=arn)["Listeners"]}


def target_of(listener: Row) -> str:
    [action] = listener["DefaultActions"]
    return action["TargetGroupArn"]


def target_groups(account: Account) -> list[Row]:
    return account.elbv2.describe_target_groups()["TargetGroups"]


def target_group(account: Account, arn: str) -> Row:
    [found] = account.elbv2.describe_target_groups(TargetGroupArns=[arn])["TargetGroups"]
    return found


def targets(account: Account, arn: str) -> set[str]:
    """Instances registered in a target group and not draining."""
    rows = account.elbv2.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
    return {row["Target"]["Id"] for row in rows if row["TargetHealth"]["State"] != "draining"}


def attached(account: Account, asg: str = "workers") -> set[str]:
    """ARNs of the target groups that are traffic sources of an Auto Scaling group."""
    rows = account.autoscaling.describe_traffic_sources(AutoScalingGroupName=asg)["TrafficSources"]
    return {row["Identifier"] for row in rows}


def tags(account: Account, arn: str) -> dict[str, str]:
    [row] = account.elbv2.describe_tags(ResourceArns=[arn])["TagDescriptions"]
    return {tag["Key"]: tag["Value"] for tag in row["Tags"]}


def group(account: Account, role: str) -> Row:
    """The security group with this role among its tags: frontend-group or backend-group."""
    wanted = [{"Name": "tag:weir.dev/resource", "Values": [role]}]
    [found] = account.ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    return found


def rules(group: Row) -> set[tuple[str, int, int, str]]:
    """(protocol, from, to, source) of a group's inbound rules."""
    found = set()
    for row in group["IpPermissions"]:
        sources = [source["CidrIp"] for source in row["IpRanges"]]
        sources += [source["GroupId"] for source in row["UserIdGroupPairs"]]
        found |= {(row["IpProtocol"], row["FromPort"], row["ToPort"], source) for source in sources}
    return found


def node_rules(account: Account) -> set[tuple[str, int, int, str]]:
    [found] = account.ec2.describe_security_groups(GroupIds=[account.names["node_security_group"]])["SecurityGroups"]
    return rules(found)


def is_served(account: Account, hostname: str) -> bool:
    """Whether every listener leads to a target group with all workers, attached to their Auto Scaling group."""
    arns = [target_of(row) for row in listeners(account, balancer(account, hostname)["LoadBalancerArn"]).values()]
    workers = set(account.names["instances"])
    return bool(arns) and set(arns) <= attached(account) and all(targets(account, arn) >= workers for arn in arns)


def serve(cluster: Scene, account: Account, name: str = "order", **service: Any) -> str:
    """Exposes, waits until traffic would flow and weir rests, and returns the hostname."""
    cluster.expose(name, **service)
    hostname = cluster.wait_hostname(name)
    wait_for(lambda: is_served(account, hostname), 20, f"Service {name} to be served")
    wait_rest(account)
    return hostname


def writes(account: Account, since: int = 0) -> list[Row]:
    return [call for call in account.calls(since) if not _READ.match(call["operation"])]


def counted(calls: list[Row]) -> Counter[str]:
    return Counter(call["operation"] for call in calls)


def wait_rest(account: Account, seconds: float = 1.0, timeout: float = 30.0) -> None:
    """Returns once weir has written nothing for this long."""
    last, since = -1, time.monotonic()

    def rests() -> bool:
        nonlocal last, since
        rows = writes(account)
        newest = rows[-1]["n"] if rows else 0
        if newest != last or (rows and rows[-1]["status"] is None):
            last, since = newest, time.monotonic()
        return time.monotonic() - since >= seconds

    wait_for(rests, timeout, "weir to come to rest")


def drift_checks(account: Account, since: int) -> int:
    """How many have come near their end since call number `since`: each reads the subnets then."""
    rows = [row for row in account.calls(since) if row["operation"] == "DescribeSubnets"]
    return sum(row["status"] is not None for row in rows)


def wait_drift_checks(account: Account, count: int, timeout: float = 30.0) -> None:
    """Returns after so many further drift checks."""
    since = account.mark()
    wait_for(lambda: drift_checks(account, since) >= count, timeout, f"{count} drift checks")


def assert_silent(account: Account, seconds: float = 2.0) -> None:
    """weir makes no AWS call for this long. Run it with the flag CALM."""
    before = account.mark()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        calls = account.calls(before)
        assert not calls, f"AWS calls in a row: {counted(calls)}"
        time.sleep(0.1)


def note(cluster: Scene, name: str, reason: str, timeout: float = 10.0) -> str:
    """The one note of this reason. More than one fails."""
    cluster.wait_event(name, reason, timeout)
    [found] = [text for found, text in cluster.events(name) if found == reason]
    return found
