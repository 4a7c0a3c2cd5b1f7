"""Two replicas: whatever happens to the leader, its writes end before those of the next one begin.

Each replica gives its name to AWS in its user agent, so that the emulator's log tells who made a call.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from sandbox.checks import left_in_aws, wait_rest, writes
from sandbox.process import wait_for
from sandbox.relay import Relay

#: Of the Lease: how long a silent leader is waited for, and how much earlier it gives up by itself.
DURATION, MARGIN = 15.0, 5.0
#: Two looks at the Lease, a reading of the account, and a busy machine.
SLACK = 10.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/weir-system/leases"
#: Services that are being made when something happens.
NAMES = [f"order-{number}" for number in range(4)]


@pytest.fixture
def replica(weir, cluster) -> Callable:
    """Starts a weir that stands for election under a name."""
    cluster.kube.delete(f"{LEASES}/weir-controller")

    def start(name: str, kubeconfig: Path | None = None, awaited: bool = True):
        environment = {"AWS_SDK_UA_APP_ID": name, "HOSTNAME": name}
        flags = ("--leader-elect=true", "--drift-interval=1s")
        return weir(*flags, kubeconfig=kubeconfig, environment=environment, awaited=awaited)

    return start


def holder(cluster) -> str:
    lease = cluster.kube.find(f"{LEASES}/weir-controller") or {"spec": {}}
    return (lease["spec"].get("holderIdentity") or "").rpartition("_")[0]


def wait_leader(cluster, name: str, timeout: float = DURATION + SLACK) -> None:
    wait_for(lambda: holder(cluster) == name, timeout, f"{name} to lead")


def written_by(account, name: str) -> list[dict]:
    return [call for call in writes(account) if call["app"] == name]


def moment(call: dict) -> float:
    return datetime.fromisoformat(call["time"]).timestamp()


def assert_one_after_the_other(account, first: str, second: str) -> None:
    before, after = written_by(account, first), written_by(account, second)
    assert before and after, "both have written"
    assert before[-1]["n"] < after[0]["n"], f"{first} wrote {before[-1]} after {after[0]}"


def assert_nothing_twice(cluster, account) -> None:
    """Each Service has what one Service has, and its hostname is that of its load balancer."""
    left = left_in_aws(account)
    assert len(left["balancers"]) == len(left["target groups"]) == len(NAMES)
    assert len(left["groups"]) == len(NAMES) + 1
    names = {row["DNSName"].lower() for row in account.elbv2.describe_load_balancers()["LoadBalancers"]}
    assert names == {cluster.wait_hostname(name) for name in NAMES}
    made = [call for call in writes(account) if call["operation"] == "CreateLoadBalancer" and call["status"] == 200]
    assert sorted(call["request"]["Name"] for call in made) == sorted(left["balancers"])


def wait_hostnames(cluster) -> None:
    for name in NAMES:
        cluster.wait_hostname(name)


def held_back(account) -> bool:
    return sum(fault["stalled"] for fault in account.localstack.faults()) >= len(NAMES)


def begin(cluster, account) -> None:
    """Exposes the Services; the load balancers of all of them are made, and the answers have not arrived."""
    account.faults({"operation": "CreateLoadBalancer", "stall": 120, "count": len(NAMES)})
    for name in NAMES:
        cluster.expose(name)
    wait_for(lambda: held_back(account), 15, "all load balancers to be under way")


def report(what: str, since: float) -> None:
    print(f"\nleader {what}: another one has taken over after {time.monotonic() - since:.1f} s")


def test_a_leader_that_is_killed_is_followed_and_its_work_is_finished(cluster, account, replica):
    first = replica("first")
    wait_leader(cluster, "first")
    replica("second")
    begin(cluster, account)
    first.kill()
    killed = time.monotonic()
    account.faults()
    wait_leader(cluster, "second")
    wait_for(lambda: written_by(account, "second"), SLACK, "the second to go on")
    report("killed", killed)
    wait_hostnames(cluster)
    wait_rest(account)
    assert_one_after_the_other(account, "first", "second")
    assert_nothing_twice(cluster, account)


def test_a_leader_that_was_stopped_for_longer_than_its_lease_writes_nothing_when_it_goes_on(cluster, account, replica):
    """It wakes up in the middle of its work, with AWS's answers waiting for it, before anything has told it."""
    first = replica("first")
    wait_leader(cluster, "first")
    replica("second")
    begin(cluster, account)
    first.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    account.faults()
    wait_leader(cluster, "second")
    wait_for(lambda: written_by(account, "second"), SLACK, "the second to go on")
    report("stopped", stopped)
    wait_hostnames(cluster)
    wait_rest(account)
    services = [cluster.service(name) for name in NAMES]
    calls = len(written_by(account, "first"))
    first.signal(signal.SIGCONT)
    assert first.wait_end() == 1
    assert any("lost the Lease" in json.dumps(line) for line in first.log()), first.tail()
    assert len(written_by(account, "first")) == calls, written_by(account, "first")[calls:]
    assert [cluster.service(name) for name in NAMES] == services
    assert_one_after_the_other(account, "first", "second")
    assert_nothing_twice(cluster, account)


def test_a_leader_that_loses_the_api_server_and_not_aws_ends_before_another_one_begins(cluster, account, replica):
    """Somebody takes rules away all the time, so that whoever leads has something to write every second."""
    control_plane = cluster.control_plane
    with Relay(int(control_plane.server.rpartition(":")[2])) as relay:
        way = control_plane.write_kubeconfig("first", control_plane.token, f"https://127.0.0.1:{relay.port}")
        first = replica("first", way)
        wait_leader(cluster, "first")
        replica("second")
        for name in NAMES:
            cluster.expose(name)
        wait_hostnames(cluster)
        wait_rest(account)
        relay.shut()
        cut = time.monotonic()
        clock = time.time()
        since = len(written_by(account, "second"))
        wait_for(lambda: disturb(account) and len(written_by(account, "second")) > since, DURATION + SLACK,
                 "the second to write", pause=0.5)  # fmt: skip
        report("cut off", cut)
        assert first.wait_end() == 1
    last = moment(written_by(account, "first")[-1])
    print(f"its own writes went on for {last - clock:.1f} s")
    assert 0 < last - clock < DURATION - MARGIN + 2
    assert_one_after_the_other(account, "first", "second")
    wait_rest(account)
    assert_nothing_twice(cluster, account)


def disturb(account) -> bool:
    """Takes a rule of ours from the nodes, if it is there."""
    [group] = account.ec2.describe_security_groups(GroupIds=[account.names["node_security_group"]])["SecurityGroups"]
    if rules := group["IpPermissions"]:
        account.ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=rules[:1])
    return True


def test_a_leader_that_is_told_to_end_hands_over_at_once(cluster, account, replica):
    first = replica("first")
    wait_leader(cluster, "first")
    replica("second")
    begin(cluster, account)
    told = time.monotonic()
    first.signal(signal.SIGTERM)
    account.faults()
    assert first.wait_end() == 0
    wait_leader(cluster, "second", 5)
    report("told to end", told)
    wait_hostnames(cluster)
    wait_rest(account)
    assert_one_after_the_other(account, "first", "second")
    assert_nothing_twice(cluster, account)
