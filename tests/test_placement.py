"""Where targets come from: attachments to Auto Scaling groups where that is possible, RegisterTargets elsewhere."""

from __future__ import annotations

from collections import Counter

import pytest

from sandbox.process import wait_for
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
    view,
    writes,
)

ATTACH, DETACH = "AttachTrafficSources", "DetachTrafficSources"
REGISTER, DEREGISTER = "RegisterTargets", "DeregisterTargets"


# --- what tests say about an account


def asked(call) -> set[str]:
    return {target["Id"] for target in call["request"]["Targets"]}


def group(account, name: str, size: int, **how) -> list[str]:
    made = account.names
    return account.workers.add_asg(
        name, size, launch_template=made["launch_template"], subnets=made["subnets"], **how
    )


def foreign_groups(account, count: int, prefix: str = "theirs") -> list[str]:
    """Target groups of somebody else, attached to the workers."""
    arns = [
        account.elbv2.create_target_group(
            Name=f"{prefix}-{n}", Protocol="TCP", Port=31000, VpcId=account.names["vpc"], TargetType="instance"
        )["TargetGroups"][0]["TargetGroupArn"]
        for n in range(count)
    ]
    for start in range(0, count, 10):
        attach_by_hand(account, arns[start : start + 10])
    return arns


def attach_by_hand(account, arns) -> None:
    sources = [{"Identifier": arn, "Type": "elbv2"} for arn in arns]
    account.autoscaling.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=sources)


def detach_by_hand(account, arns) -> None:
    sources = [{"Identifier": arn, "Type": "elbv2"} for arn in arns]
    account.autoscaling.detach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=sources)


def expose_many(cluster, count: int) -> list[str]:
    names = [f"s{n:02}" for n in range(count)]
    for name in names:
        cluster.expose(name)
    return names


def reasons(cluster, name: str) -> list[str]:
    return [reason for reason, _ in cluster.events(name)]


# --- nodes come and go


def test_nodes_of_an_auto_scaling_group_join_and_leave_without_a_call(cluster, account, weir):
    """D3: Auto Scaling does it; weir sees the Nodes and has nothing to do."""
    weir("--drift-interval=10m")
    for name in ("one", "two"):
        cluster.expose(name)
    for name in ("one", "two"):
        cluster.wait_hostname(name)
    until_equal(lambda: len(attached(account)), 2)
    mark = quiet(account)
    for size in (5, 2):
        members = account.workers.scale("workers", size)
        nodes_follow(cluster, account)
        for arn in target_groups(account):
            targets_are(account, arn, members)
        # Longer than the five seconds after which placement looks without being rung for.
        holds(lambda: account.calls(mark), [], 7)


def test_a_node_without_group_joins_and_leaves(cluster, account, weir):
    """R18: registered and deregistered by itself, and nothing else is touched."""
    weir()
    arn = expose_one(cluster, account)
    mark = quiet(account)
    [extra] = lone_instances(account)
    nodes_follow(cluster, account)
    targets_are(account, arn, {*account.names["instances"], extra})
    [call] = calls_of(account, REGISTER, since=mark)
    assert asked(call) == {extra}
    # The instance lives on: AWS itself takes a terminated one out, and weir would have nothing to do if it saw that first.
    cluster.kube.delete(node_of(cluster, extra))
    [call] = wait_for(lambda: calls_of(account, DEREGISTER, since=mark), 20, "a deregistration")
    assert asked(call) == {extra}
    targets_are(account, arn, account.names["instances"])
    quiet(account)
    assert writes(account, since=mark) == [REGISTER, DEREGISTER]


def test_two_groups_and_a_node_without(cluster, account, weir):
    """R18: attached to both, exactly one RegisterTargets with the third."""
    more, extra = group(account, "more", 2), lone_instances(account)[0]
    nodes_follow(cluster, account)
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    targets_are(account, arn, {*account.names["instances"], *more, extra})
    quiet(account, 4)
    assert set(attached(account)) == set(attached(account, "more")) == {arn}
    [call] = calls_of(account, REGISTER)
    assert asked(call) == {extra}
    assert Counter(call["request"]["AutoScalingGroupName"] for call in calls_of(account, ATTACH)) == {
        "workers": 1,
        "more": 1,
    }
    assert not calls_of(account, DEREGISTER, DETACH)


def test_an_instance_leaves_and_enters_its_group(cluster, account, weir):
    """R18: by detach-instances and attach-instances, with more target groups than one drift check reads."""
    weir()
    names = expose_many(cluster, 15)
    for name in names:
        cluster.wait_hostname(name)
    everyone = set(account.names["instances"])
    mover = account.names["instances"][0]
    by_hand = {"InstanceIds": [mover], "AutoScalingGroupName": "workers"}
    until_equal(lambda: list(attached(account).values()), ["Added"] * 15)
    for _ in range(2):
        quiet(account)
        account.autoscaling.detach_instances(**by_hand, ShouldDecrementDesiredCapacity=True)
        # One drift check sees it for all target groups, not the rotation that reads four at a time.
        until_equal(lambda: [registered(account, arn) for arn in target_groups(account)], [everyone] * 15, 8)
        mark = quiet(account)
        account.autoscaling.attach_instances(**by_hand)
        holds(lambda: [registered(account, arn) for arn in target_groups(account)], [everyone] * 15, 4)
        assert not calls_of(account, DEREGISTER, since=mark)


# --- limits of Auto Scaling


def test_sixty_services_on_one_group(cluster, account, weir):
    """R12: fifty are attached, ten registered, nobody flaps, and who waited moves up when a slot is free."""
    weir()
    names = expose_many(cluster, 60)
    for name in names:
        cluster.wait_hostname(name, 120)
    everyone = set(account.names["instances"])
    until_equal(lambda: len(attached(account)), 50, 60)
    until_equal(lambda: all(registered(account, arn) == everyone for arn in target_groups(account)), True, 60)
    assert len(target_groups(account)) == 60
    mark = quiet(account, 4)
    served = {arn for call in calls_of(account, REGISTER) for arn in [call["request"]["TargetGroupArn"]]}
    assert served == set(target_groups(account)) - set(attached(account))
    told = [name for name in names if "AutoScalingGroupFull" in reasons(cluster, name)]
    assert len(told) == 10
    assert all(Counter(reasons(cluster, name))["AutoScalingGroupFull"] == 1 for name in told)
    holds(lambda: writes(account, since=mark), [], 8)

    first = [name for name in names if name not in told][:3]
    for name in first:
        cluster.delete(name)
    for name in first:
        cluster.wait_gone(name, 60)
    until_equal(lambda: len(attached(account)), 50)
    assert len(target_groups(account)) == 57
    assert all(registered(account, arn) == everyone for arn in target_groups(account))
    quiet(account, 4)
    assert not [call for call in calls_of(account, DEREGISTER, since=mark)], "those who moved up stayed registered"


def test_other_peoples_attachments_take_slots(cluster, account, weir):
    """R12: with 48 of them, two of three are attached."""
    theirs = foreign_groups(account, 48)
    weir()
    names = expose_many(cluster, 3)
    for name in names:
        cluster.wait_hostname(name)
    everyone = set(account.names["instances"])
    mine = lambda: set(target_groups(account)) - set(theirs)  # noqa: E731
    until_equal(lambda: [registered(account, arn) for arn in mine()], [everyone] * 3)
    mark = quiet(account, 4)
    assert set(theirs) < set(attached(account)) and len(attached(account)) == 50
    [waiting] = mine() - set(attached(account))
    assert {call["request"]["TargetGroupArn"] for call in calls_of(account, REGISTER)} == {waiting}
    assert sum("AutoScalingGroupFull" in reasons(cluster, name) for name in names) == 1
    holds(lambda: writes(account, since=mark), [], 7)
    detach_by_hand(account, theirs[:1])
    until_equal(lambda: waiting in attached(account), True)
    targets_are(account, waiting, everyone)
    assert not calls_of(account, DEREGISTER, DETACH)


@pytest.mark.parametrize("seconds", [0, 2])
def test_services_that_come_together_are_attached_together(cluster, account, weir, seconds):
    """R13: 25 Services, at most 3 calls, one at a time, also where Auto Scaling takes its time."""
    account.localstack.settings(attach_seconds=seconds)
    weir()
    names = expose_many(cluster, 25)
    for name in names:
        cluster.wait_hostname(name, 60)
    until_equal(lambda: Counter(attached(account).values()), Counter(Added=25), 60)
    quiet(account)
    calls = calls_of(account, ATTACH)
    sizes = [len(call["request"]["TrafficSources"]) for call in calls]
    assert len(calls) <= 3 and max(sizes) <= 10 and sum(sizes) == 25, sizes
    assert not [call["code"] for call in calls if call["code"]]


def test_too_many_updates_at_once_back_off(cluster, account, weir):
    """R13: another tool fills the ten updates on the way; weir waits, and no Service hears of it."""
    words = "Trying to update too many Load Balancers/Target Groups at once. The limit is 10"
    account.faults({"operation": ATTACH, "code": "ValidationError", "message": words, "count": 2})
    weir()
    names = expose_many(cluster, 3)
    for name in names:
        cluster.wait_hostname(name)
    until_equal(lambda: Counter(attached(account).values()), Counter(Added=3), 60)
    times = [call for call in calls_of(account, ATTACH) if call["code"]]
    assert len(times) == 2
    assert not [note for name in names for _, note in cluster.events(name) if "too many" in note]


# --- Auto Scaling groups that cannot be used


def test_a_group_with_elb_health_checks_is_never_attached(cluster, account, weir):
    """R17: it would terminate nodes that a Service makes unhealthy."""
    account.autoscaling.update_auto_scaling_group(AutoScalingGroupName="workers", HealthCheckType="ELB")
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    targets_are(account, single(account), account.names["instances"])
    cluster.wait_event("order", "AutoScalingGroupUsesElbHealth")
    mark = quiet(account)
    holds(lambda: writes(account, since=mark), [], 7)
    assert not calls_of(account, ATTACH)
    assert Counter(reasons(cluster, "order"))["AutoScalingGroupUsesElbHealth"] == 1


def test_a_group_switched_to_elb_health_checks_is_let_go(cluster, account, weir):
    """R17: registered first, then detached, within a drift interval."""
    weir()
    arn = expose_one(cluster, account)
    mark = quiet(account)
    account.autoscaling.update_auto_scaling_group(AutoScalingGroupName="workers", HealthCheckType="ELB")
    until_equal(lambda: attached(account), {}, 15)
    targets_are(account, arn, account.names["instances"])
    quiet(account)
    steps = writes(account, since=mark)
    assert steps[:2] == [REGISTER, DETACH] and DEREGISTER not in steps, steps
    cluster.wait_event("order", "AutoScalingGroupUsesElbHealth")
    account.autoscaling.update_auto_scaling_group(AutoScalingGroupName="workers", HealthCheckType="EC2")
    until_equal(lambda: list(attached(account)), [arn])
    targets_are(account, arn, account.names["instances"])


def test_an_instance_refresh(cluster, account, weir):
    """R19: registered at once, attached when the refresh is over, and then no double book-keeping."""
    account.localstack.settings(instance_refresh=["workers"])
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order", 10)
    arn = single(account)
    targets_are(account, arn, account.names["instances"], 10)
    assert attached(account) == {}
    assert "InstanceRefreshInProgress" in cluster.wait_event("order", "AutoScalingGroupRefuses")
    account.localstack.settings(instance_refresh=[])
    until_equal(lambda: attached(account), {arn: "Added"}, 45)
    quiet(account, 4)
    assert not calls_of(account, DEREGISTER)
    assert registered(account, arn) == set(account.names["instances"])


def test_a_group_that_adds_nothing_to_load_balancers(cluster, account, weir):
    """The process AddToLoadBalancer is suspended: who joins is registered by weir, once, and leaves by itself."""
    workers = {"AutoScalingGroupName": "workers"}
    account.autoscaling.suspend_processes(**workers, ScalingProcesses=["AddToLoadBalancer"])
    weir()
    arn = expose_one(cluster, account)
    quiet(account, 4)
    members = account.workers.scale("workers", 4)
    nodes_follow(cluster, account)
    targets_are(account, arn, members)
    mark = quiet(account, 4)
    # The drift checks that read the targets find nothing to do.
    holds(lambda: writes(account, since=mark), [], 7)
    members = account.workers.scale("workers", 2)
    nodes_follow(cluster, account)
    targets_are(account, arn, members)


# --- what others do


def test_a_target_group_that_vanished_does_not_hold_up_the_batch(cluster, account, weir):
    """R14: nine are attached, the tenth is made again."""
    account.faults({"operation": ATTACH, "delay": 4})
    weir()
    names = expose_many(cluster, 10)
    [call] = wait_for(lambda: calls_of(account, ATTACH), 20, "an attachment under way")
    arns = [source["Identifier"] for source in call["request"]["TrafficSources"]]
    victim = arns[0]
    name = target_groups(account)[victim]
    for balancer in account.elbv2.describe_load_balancers()["LoadBalancers"]:
        for listener in account.elbv2.describe_listeners(LoadBalancerArn=balancer["LoadBalancerArn"])["Listeners"]:
            if listener["DefaultActions"][0]["TargetGroupArn"] == victim:
                account.elbv2.delete_listener(ListenerArn=listener["ListenerArn"])
    account.elbv2.delete_target_group(TargetGroupArn=victim)
    account.localstack.faults([])
    until_equal(lambda: set(arns[1:]) <= set(attached(account)), True)
    until_equal(lambda: len(attached(account)), 10)
    assert victim not in attached(account)
    assert sorted(target_groups(account).values()).count(name) == 1
    for name in names:
        cluster.wait_hostname(name)
    until_equal(lambda: [registered(account, arn) for arn in attached(account)], [set(account.names["instances"])] * 10)
    until_equal(lambda: len(view(account)["listeners"]), 10)
    assert None not in [target_group for *_, target_group in view(account)["listeners"]]


def test_target_groups_that_auto_scaling_does_not_know_yet_are_attached_a_moment_later(cluster, account, weir):
    """They are there: none is made again, and nobody is said to have undone anything."""
    unknown = "One or more of the target groups may not be valid"
    account.faults({"operation": ATTACH, "code": "ValidationError", "message": unknown, "count": 4})
    weir("--drift-interval=10m")
    names = expose_many(cluster, 2)
    until_equal(lambda: sorted(attached(account).values()), ["Added"] * 2)
    until_equal(lambda: [registered(account, arn) for arn in attached(account)], [set(account.names["instances"])] * 2)
    assert len(calls_of(account, "CreateTargetGroup")) == 2
    assert {reason for name in names for reason in reasons(cluster, name)} <= {"Waiting", "LoadBalancerReady"}


def test_a_foreign_target_group_stays(cluster, account, weir):
    """R15: through create, drift check and delete; and tags of nothing are never asked for."""
    theirs = foreign_groups(account, 1)
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    until_equal(lambda: len(attached(account)), 2)
    quiet(account, 4)
    assert theirs[0] in attached(account)
    cluster.delete("order")
    cluster.wait_gone("order")
    quiet(account, 4)
    assert attached(account) == {theirs[0]: "Added"}
    assert registered(account, theirs[0]) == set(account.names["instances"])
    assert all(call["request"]["ResourceArns"] for call in calls_of(account, "DescribeTags"))
    touched = [arn for call in calls_of(account, DETACH) for arn in call["request"]["TrafficSources"]]
    assert theirs[0] not in [source["Identifier"] for source in touched]


def test_what_others_detach_is_attached_again(cluster, account, weir):
    """R16: within a drift interval; after the third time one Event names the group."""
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    for time in range(3):
        targets_are(account, arn, account.names["instances"])
        until_equal(lambda: attached(account), {arn: "Added"})
        quiet(account, 3.5)
        assert reasons(cluster, "order").count("AttachmentRemovedByOthers") == 0, time
        detach_by_hand(account, [arn])
        until_equal(lambda: attached(account), {arn: "Added"}, 10)
    targets_are(account, arn, account.names["instances"])
    note = cluster.wait_event("order", "AttachmentRemovedByOthers")
    assert "workers" in note and "something else manages" in note
    quiet(account, 4)
    assert reasons(cluster, "order").count("AttachmentRemovedByOthers") == 1


def test_deleting_lets_every_group_go_first(cluster, account, weir):
    """R11: an empty group too; a target group deleted while attached stops the group from launching anything."""
    group(account, "burst", 1)
    nodes_follow(cluster, account)
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    until_equal(lambda: (list(attached(account)), list(attached(account, "burst"))), ([arn], [arn]))
    account.workers.scale("burst", 0)
    nodes_follow(cluster, account)
    mark = quiet(account, 4)
    assert list(attached(account, "burst")) == [arn]
    account.localstack.settings(detach_seconds=2)
    cluster.delete("order")
    cluster.wait_gone("order")
    steps = [(call["operation"], call["request"].get("AutoScalingGroupName")) for call in account.calls(mark)]
    gone = steps.index(("DeleteTargetGroup", None))
    assert steps.index((DETACH, "workers")) < gone and steps.index((DETACH, "burst")) < gone
    assert attached(account) == attached(account, "burst") == {}
    assert len(account.workers.scale("burst", 2)) == 2
    assert len(account.workers.scale("workers", 4)) == 4


def test_what_the_older_calls_attached_goes_before_it_is_deleted(cluster, account, weir):
    """R11: ours, attached by hand; the group can launch afterwards."""
    weir("--drift-interval=2s")
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    group(account, "burst", 1)
    account.autoscaling.attach_load_balancer_target_groups(AutoScalingGroupName="burst", TargetGroupARNs=[arn])
    theirs = foreign_groups(account, 1)
    account.autoscaling.attach_load_balancer_target_groups(AutoScalingGroupName="burst", TargetGroupARNs=theirs)
    quiet(account, 5)
    account.localstack.settings(detach_seconds=2)
    mark = account.mark()
    cluster.delete("order")
    cluster.wait_gone("order", 40)
    steps = [call["operation"] for call in account.calls(mark)]
    assert steps.index("DetachLoadBalancerTargetGroups") < steps.index("DeleteTargetGroup")
    listed = account.autoscaling.describe_load_balancer_target_groups(AutoScalingGroupName="burst")
    assert [row["LoadBalancerTargetGroupARN"] for row in listed["LoadBalancerTargetGroups"]] == theirs
    assert len(account.workers.scale("burst", 2)) == 2


def test_a_slot_that_a_deletion_frees_does_not_go_to_the_next_one_deleted(cluster, account, weir):
    """R12: with two slots and six Services that go together."""
    foreign_groups(account, 48)
    weir("--concurrency=1")
    names = expose_many(cluster, 6)
    for name in names:
        cluster.wait_hostname(name)
    until_equal(lambda: len(attached(account)), 50)
    mark = quiet(account)
    for name in names:
        cluster.delete(name)
    for name in names:
        cluster.wait_gone(name, 60)
    assert not calls_of(account, ATTACH, since=mark)


def test_ghosts(cluster, account, weir):
    """R11: a target group that is gone and was ours by name is detached; somebody else's is not touched."""
    weir()
    cluster.expose("order")
    cluster.wait_hostname("order")
    arn = single(account)
    prefix = "-".join(target_groups(account)[arn].split("-")[:2])
    ghosts = [*foreign_groups(account, 1, f"{prefix}-ghost"), *foreign_groups(account, 1, "weir-zzzzzz-ghost")]
    for ghost in ghosts:
        account.elbv2.delete_target_group(TargetGroupArn=ghost)
    until_equal(lambda: set(attached(account)), {arn, ghosts[1]})
    mark = quiet(account)
    holds(lambda: writes(account, since=mark), [], 4)
    assert set(attached(account)) == {arn, ghosts[1]}
