"""Which Nodes are targets, and what a Node that cannot be one does to the others: nothing."""

from __future__ import annotations

import time

from sandbox.process import wait_for
from sandbox.scene import NODES
from sandbox.view import (
    attached,
    calls_of,
    expose_one,
    holds,
    lone_instances,
    node_of,
    nodes_follow,
    quiet,
    registered,
    single,
    target_groups,
    targets_are,
    until_equal,
    writes,
)

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
REGISTER, DEREGISTER, DETACH = "RegisterTargets", "DeregisterTargets", "DetachTrafficSources"


def set_label(cluster, instance: str, name: str, value: str | None) -> None:
    cluster.kube.patch(node_of(cluster, instance), {"metadata": {"labels": {name: value}}})


def no_group(cluster, account) -> None:
    """No Auto Scaling group any more: what follows is about nodes that are registered one by one."""
    account.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="workers", ForceDelete=True)
    nodes_follow(cluster, account)


def bare_node(name: str, provider_id: str | None) -> dict[str, object]:
    spec = {"providerID": provider_id} if provider_id else {}
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": spec}


def node_events(cluster, name: str) -> list[tuple[str, str]]:
    """(reason, note) of the Events about a Node, in whatever namespace they are."""
    events = cluster.kube.list("/apis/events.k8s.io/v1/events")
    about = [e for e in events if e["regarding"].get("kind") == "Node" and e["regarding"].get("name") == name]
    return [(event["reason"], event.get("note", "")) for event in about]


def test_a_node_without_provider_id_holds_up_nobody(cluster, account, weir):
    """R20: the good ones are registered, the Node's Event names the field, and it joins once the field is there."""
    no_group(cluster, account)
    good, late = lone_instances(account, 2), lone_instances(account, 1)[0]
    nodes_follow(cluster, account)
    cluster.kube.delete(node_of(cluster, late))
    cluster.kube.create(NODES, bare_node("empty", None))
    cluster.kube.create(NODES, bare_node("malformed", "aws:///us-east-1a/instance-7"))
    weir()
    cluster.expose("order")
    arn = single(account)
    targets_are(account, arn, good, 10)
    cluster.wait_hostname("order")
    for name in ("empty", "malformed"):
        [(reason, note)] = wait_for(lambda name=name: node_events(cluster, name), 10, f"an Event about {name}")
        assert reason == "InvalidProviderID" and "spec.providerID" in note
    cluster.kube.patch(f"{NODES}/empty", {"spec": {"providerID": f"aws:///us-east-1a/{late}"}})
    targets_are(account, arn, [*good, late], 10)
    assert len(node_events(cluster, "empty")) == len(node_events(cluster, "malformed")) == 1


def test_a_stopped_instance_holds_up_nobody(cluster, account, weir):
    """R21: the others are registered, the Service is ready, the stopped one is tried again with a growing wait."""
    no_group(cluster, account)
    good, stopped = lone_instances(account, 3), lone_instances(account, 1)[0]
    nodes_follow(cluster, account)
    path = node_of(cluster, stopped)
    account.ec2.stop_instances(InstanceIds=[stopped])
    weir()
    cluster.expose("order")
    arn = single(account)
    targets_are(account, arn, good, 10)
    cluster.wait_hostname("order")
    quiet(account, 4)
    tries = [call for call in calls_of(account, REGISTER) if call["code"]]
    assert 1 <= len(tries) <= 2
    holds(lambda: registered(account, arn) == set(good), True, 6)
    assert not node_events(cluster, path.rpartition("/")[2])
    assert not [reason for reason, _ in cluster.events("order") if reason.startswith(("Aws", "Target"))]
    account.ec2.start_instances(InstanceIds=[stopped])
    targets_are(account, arn, [*good, stopped], 45)


def test_an_excluded_node_of_an_attached_group(cluster, account, weir):
    """R23: it leaves every target group within 30 s, whatever the label's value; the others never do; it returns."""
    weir()
    names = [f"s{n}" for n in range(6)]
    for name in names:
        cluster.expose(name)
    for name in names:
        cluster.wait_hostname(name)
    everyone = set(account.names["instances"])
    until_equal(lambda: [registered(account, arn) for arn in target_groups(account)], [everyone] * 6)
    excluded = account.names["instances"][1]
    others = everyone - {excluded}
    for value in ("", "false"):
        mark = quiet(account)
        set_label(cluster, excluded, EXCLUDED, value)
        deadline = time.monotonic() + 30
        while any(registered(account, arn) != others for arn in target_groups(account)):
            assert time.monotonic() < deadline
            assert all(others <= registered(account, arn) for arn in target_groups(account))
            time.sleep(0.2)
        quiet(account)
        assert {t["Id"] for c in calls_of(account, DEREGISTER, since=mark) for t in c["request"]["Targets"]} == {excluded}
        assert not calls_of(account, DETACH, since=mark)
        mark = account.mark()
        # Several drift checks do not bring it back, and nothing is done again and again.
        holds(lambda: [registered(account, arn) for arn in target_groups(account)], [others] * 6, 7)
        assert writes(account, since=mark) == []
        set_label(cluster, excluded, EXCLUDED, None)
        until_equal(lambda: [registered(account, arn) for arn in target_groups(account)], [everyone] * 6)
    assert len(attached(account)) == 6


def test_a_node_excluded_before_is_not_a_target_for_long(cluster, account, weir):
    """R23: attaching registers it all the same; it is taken out, also where the attachment takes its time."""
    account.localstack.settings(attach_seconds=2)
    excluded = account.names["instances"][0]
    set_label(cluster, excluded, EXCLUDED, "")
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    until_equal(lambda: attached(account), {arn: "Added"})
    targets_are(account, arn, set(account.names["instances"]) - {excluded}, 30)
    holds(lambda: excluded in registered(account, arn), False, 7)


def test_control_plane_nodes_are_no_targets(cluster, account, weir):
    """R23: neither registered by themselves nor through the group that holds nobody else."""
    [plane] = lone_instances(account, 1)
    made = account.names
    [masters] = account.workers.add_asg("masters", 1, launch_template=made["launch_template"], subnets=made["subnets"])
    nodes_follow(cluster, account)
    for instance in (plane, masters):
        set_label(cluster, instance, CONTROL_PLANE, "")
    weir()
    arn = expose_one(cluster, account)
    mark = quiet(account)
    holds(lambda: registered(account, arn), set(account.names["instances"]), 4)
    assert attached(account, "masters") == {}
    assert not calls_of(account, REGISTER) and writes(account, since=mark) == []


def not_ready(cluster) -> None:
    lost = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting"}
    for node in cluster.kube.list(NODES):
        name = node["metadata"]["name"]
        cluster.kube.patch(f"{NODES}/{name}/status", {"status": {"conditions": [lost]}}, "strategic")
        taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
        cluster.kube.patch(f"{NODES}/{name}", {"spec": {"taints": [taint], "unschedulable": True}})


def test_nodes_that_are_not_ready_stay(cluster, account, weir):
    """R24: every Node unreachable is trouble of the control plane; nothing is taken out, also after a restart."""
    [lone] = lone_instances(account, 1)
    nodes_follow(cluster, account)
    first = weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    everyone = {*account.names["instances"], lone}
    targets_are(account, arn, everyone)
    mark = quiet(account)
    not_ready(cluster)
    holds(lambda: (registered(account, arn), writes(account, since=mark)), (everyone, []), 7)
    first.stop()
    weir()
    holds(lambda: (registered(account, arn), writes(account, since=mark)), (everyone, []), 7)


def test_fargate_nodes_are_left_out(cluster, account, weir):
    """R28: without a word where there are others; alone, the Service is told that nothing can be a target."""
    fargate = bare_node("fargate", "aws:///us-east-1a/0a1b2c3d4e-5f6a7b8c/fargate-ip-10-0-1-2.ec2.internal")
    fargate["metadata"]["labels"]["eks.amazonaws.com/compute-type"] = "fargate"
    cluster.kube.create(NODES, fargate)
    weir()
    arn = expose_one(cluster, account)
    quiet(account)
    assert not calls_of(account, REGISTER)
    assert not node_events(cluster, "fargate")
    assert "NoTargetNode" not in [reason for reason, _ in cluster.events("order")]


def test_only_fargate_nodes(cluster, account, weir):
    """R28: made with an empty target group, and a Warning."""
    no_group(cluster, account)
    fargate = bare_node("fargate", "aws:///us-east-1a/0a1b2c3d4e-5f6a7b8c/fargate-ip-10-0-1-2.ec2.internal")
    fargate["metadata"]["labels"]["eks.amazonaws.com/compute-type"] = "fargate"
    cluster.kube.create(NODES, fargate)
    weir(f"--vpc-id={account.names['vpc']}")
    cluster.expose("order")
    assert "no node" in cluster.wait_event("order", "NoTargetNode")
    cluster.wait_hostname("order")
    assert registered(account, single(account)) == set()
    # The first node that can be one ends it.
    [late] = lone_instances(account, 1)
    nodes_follow(cluster, account)
    targets_are(account, single(account), [late])


def test_nodes_that_vanish_all_at_once_are_not_taken_out(cluster, account, weir):
    """R24: an empty list of Nodes is more likely a fault on the way here than an empty cluster."""
    no_group(cluster, account)
    lone = lone_instances(account, 2)
    nodes_follow(cluster, account)
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    targets_are(account, arn, lone)
    quiet(account)
    for node in cluster.kube.list(NODES):
        cluster.kube.delete(f"{NODES}/{node['metadata']['name']}")
    holds(lambda: registered(account, arn), set(lone), 7)
    assert not calls_of(account, DEREGISTER)
