"""A kill at any moment leaves nothing behind: weir dies right after its k-th AWS call took effect, for every k.

The emulator carries the call out and holds the answer back, so weir cannot have taken note of it. Another weir then
has to come to the state of a run that nobody interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from sandbox.view import nodes_follow, nothing, until_equal, view

#: No drift check of the weir that is killed: only calls that the change itself costs are counted.
PATIENT = "--drift-interval=10m"
#: Of the one that comes after it.
BUSY = "--drift-interval=1s"
#: So long without a call means that the work is done.
QUIET = 1.5
#: More calls than any of these changes may cost.
FEW = 40


@pytest.fixture
def everyone(cluster, account) -> list[str]:
    """The workers of the Auto Scaling group, and an instance without one, so that both ways of getting targets occur."""
    lone = account.workers.launch_instance(account.names["subnets"][0], account.names["node_security_group"])
    nodes_follow(cluster, account)
    return sorted([*account.names["instances"], lone])


def ports(node_port: int) -> list[dict[str, object]]:
    return [{"name": "main", "port": 80, "targetPort": 8080, "protocol": "TCP", "nodePort": node_port}]


def killed_after_each_call(account, start: Callable, change: Callable[[], None]) -> Iterator[int]:
    """Starts weir, makes the `change`, kills weir after its k-th call, for k = 1, 2, ...; yields k each time.

    Ends once the change is done in fewer than k calls.
    """
    for k in range(1, FEW):
        victim = start(PATIENT)
        account.faults({"skip": k - 1, "stall": 120})
        since = account.mark()
        change()
        stalled = stalls(account, since)
        victim.kill()
        account.faults()
        yield k
        if not stalled:
            assert k > 3, "the change took hardly any call"
            return
    raise AssertionError(f"the change took {FEW} calls or more")


def stalls(account, since: int) -> bool:
    """Whether a call is held back before the calls since `since` have ended for good."""
    deadline, last, changed = time.monotonic() + 60, None, time.monotonic()
    while time.monotonic() < deadline:
        if any(fault["stalled"] for fault in account.localstack.faults()):
            return True
        calls = account.calls(since)
        if (seen := len(calls)) != last:
            last, changed = seen, time.monotonic()
        if calls and time.monotonic() - changed > QUIET:
            return False
        time.sleep(0.02)
    raise TimeoutError("the calls did not end")


def test_killed_at_every_call_of_a_create(cluster, account, weir, everyone):
    """D7: the next run finds what the killed one made, by name and tag, and makes nothing twice."""
    first = weir(BUSY)
    cluster.expose("order", ports=ports(30080))
    cluster.wait_hostname("order")
    until_equal(lambda: view(account)["target groups"][0][2], everyone)
    wanted = view(account)
    assert len(wanted["balancers"]) == len(wanted["target groups"]) == len(wanted["listeners"]) == 1
    assert [state for _, state in wanted["attached"]["workers"]] == ["Added"]
    remove(cluster, account)
    first.stop()

    for k in killed_after_each_call(account, weir, lambda: cluster.expose("order", ports=ports(30080))):
        successor = weir(BUSY)
        hostname = cluster.wait_hostname("order")
        until_equal(lambda: view(account), wanted)
        [balancer] = account.elbv2.describe_load_balancers()["LoadBalancers"]
        assert balancer["DNSName"].lower() == hostname, f"killed after call {k}"
        remove(cluster, account)
        successor.stop()


def test_killed_at_every_call_of_a_delete(cluster, account, weir, everyone):
    """D7, R11: nothing is left, and no Auto Scaling group holds a target group that is gone."""

    def created() -> None:
        with_weir = weir(BUSY)
        cluster.expose("order", ports=ports(30080))
        cluster.wait_hostname("order")
        until_equal(lambda: view(account)["target groups"][0][2], everyone)
        with_weir.stop()

    created()
    for _k in killed_after_each_call(account, weir, lambda: cluster.delete("order")):
        successor = weir(BUSY)
        cluster.wait_gone("order")
        until_equal(lambda: view(account), nothing(account))
        successor.stop()
        created()


def test_killed_at_every_call_of_a_node_port_change(cluster, account, weir, everyone):
    """R37: the new target group takes over, the old one goes, the listener and the hostname stay."""
    node_ports = [30080, 30081]
    wanted = {}
    first = weir(BUSY)
    cluster.expose("order", ports=ports(node_ports[1]))
    hostname = cluster.wait_hostname("order")
    for node_port in node_ports:
        cluster.patch("order", {"spec": {"ports": ports(node_port)}})
        until_equal(lambda port=node_port: [group[1:] for group in view(account)["target groups"]],
                    [(node_port, everyone)])  # fmt: skip
        until_equal(lambda: [len(view(account)[key]) for key in ("balancers", "listeners")], [1, 1])
        wanted[node_port] = view(account)
    first.stop()
    listener = the_listener(account)

    def change() -> None:
        node_ports.reverse()
        cluster.patch("order", {"spec": {"ports": ports(node_ports[1])}})

    for k in killed_after_each_call(account, weir, change):
        successor = weir(BUSY)
        until_equal(lambda: view(account), wanted[node_ports[1]])
        assert the_listener(account) == listener, f"killed after call {k}"
        assert cluster.hostname("order") == hostname
        successor.stop()


def the_listener(account) -> str:
    [balancer] = account.elbv2.describe_load_balancers()["LoadBalancers"]
    [listener] = account.elbv2.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]
    return listener["ListenerArn"]


def remove(cluster, account) -> None:
    cluster.delete("order")
    cluster.wait_gone("order")
    until_equal(lambda: view(account), nothing(account))
