"""What a Service asks of its target groups: attributes, health checks, and which nodes may be targets."""

from __future__ import annotations

from typing import Any

from sandbox.checks import (
    ANNOTATION,
    CALM,
    attached,
    balancer,
    counted,
    listeners,
    note,
    target_of,
    targets,
    wait_rest,
    writes,
)
from sandbox.process import wait_for
from sandbox.view import node_of

INVALID = "InvalidConfiguration"
NODE_LABELS = ANNOTATION + "target-node-labels"


def annotate(cluster, name: str, key: str, value: str | None) -> None:
    cluster.patch(name, {"metadata": {"annotations": {key: value}}})


def target_group_of(cluster, account, name: str, port: int = 80) -> str:
    """ARN of the target group behind a listener of a Service."""
    hostname = cluster.wait_hostname(name)
    return target_of(listeners(account, balancer(account, hostname)["LoadBalancerArn"])[port])


# --- which nodes


def label(cluster, instance: str, pool: str | None) -> None:
    cluster.kube.patch(node_of(cluster, instance), {"metadata": {"labels": {"pool": pool}}})


def wait_targets(account, arn: str, instances: set[str], timeout: float = 20) -> None:
    wait_for(lambda: targets(account, arn) == instances, timeout, f"{sorted(instances)} to be the targets")


def asked_for(calls: list[dict[str, Any]], operation: str) -> list[set[str]]:
    """The instances of each call of this operation."""
    return [{row["Id"] for row in call["request"]["Targets"]} for call in calls if call["operation"] == operation]


def test_nodes_with_the_labels_asked_for_are_the_targets(cluster, account, weir):
    """target-node-labels: registered one by one, as labels come and go; a label on no node is worth a word."""
    web, batch, spare = account.names["instances"]
    label(cluster, web, "web")
    label(cluster, batch, "batch")
    controller = weir(CALM)
    mark = account.mark()
    for name, labels in {"plain": "", "picky": "pool=web", "nobody": "pool=gone"}.items():
        cluster.expose(name, annotations={NODE_LABELS: labels})
    cluster.expose("wrong", annotations={NODE_LABELS: "pool"})
    plain, picky, nobody = (target_group_of(cluster, account, name) for name in ("plain", "picky", "nobody"))
    wait_targets(account, plain, {web, batch, spare})
    wait_targets(account, picky, {web})
    wait_rest(account)
    assert attached(account) == {plain}
    assert targets(account, nobody) == set()
    assert note(cluster, "nobody", "NoTargetNode") == (
        f'{NODE_LABELS}: "pool=gone" is on no node that can be a target, so the load balancer has none'
    )
    assert note(cluster, "wrong", INVALID) == (
        f'{NODE_LABELS}: "pool" has the part "pool" without "="; '
        r"expected key=value,… with \, for a comma inside a value"
    )
    assert counted(writes(account, mark))["CreateLoadBalancer"] == 3

    mark = account.mark()
    label(cluster, spare, "web")
    wait_targets(account, picky, {web, spare})
    label(cluster, web, "batch")
    wait_targets(account, picky, {spare})
    wait_rest(account)
    assert asked_for(writes(account, mark), "RegisterTargets") == [{spare}]
    assert asked_for(writes(account, mark), "DeregisterTargets") == [{web}]
    assert len(writes(account, mark)) == 2

    # A new process finds all that as it should be.
    controller.stop()
    mark = account.mark()
    weir(CALM)
    wait_rest(account)
    assert writes(account, mark) == []
    assert targets(account, picky) == {spare} and attached(account) == {plain}


def test_labels_asked_for_of_a_running_service(cluster, account, weir):
    """target-node-labels on a live Service: registered, then let go by the Auto Scaling group; and back."""
    web, *others = account.names["instances"]
    label(cluster, web, "web")
    weir(CALM)
    cluster.expose("order")
    arn = target_group_of(cluster, account, "order")
    wait_targets(account, arn, {web, *others})
    wait_rest(account)

    mark = account.mark()
    annotate(cluster, "order", NODE_LABELS, "pool=web")
    wait_for(lambda: attached(account) == set(), 20, "the Auto Scaling group to let go")
    wait_targets(account, arn, {web})
    wait_rest(account)
    steps = writes(account, mark)
    assert [call["operation"] for call in steps][:2] == ["RegisterTargets", "DetachTrafficSources"]
    assert set(counted(steps)) == {"RegisterTargets", "DetachTrafficSources"}, "AWS takes out the others"
    assert all(instances == {web} for instances in asked_for(steps, "RegisterTargets"))

    mark = account.mark()
    annotate(cluster, "order", NODE_LABELS, None)
    wait_for(lambda: attached(account) == {arn}, 20, "the Auto Scaling group to take it")
    wait_targets(account, arn, {web, *others})
    wait_rest(account)
    assert counted(writes(account, mark)) == {"AttachTrafficSources": 1}
    assert target_group_of(cluster, account, "order") == arn
