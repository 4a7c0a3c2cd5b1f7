"""AWS refuses, stalls or loses answers: what is said, what goes on meanwhile, and how it ends."""

from __future__ import annotations

import time
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from sandbox.checks import (
    ANNOTATION,
    CALM,
    FINALIZER,
    attached,
    balancer,
    balancers,
    counted,
    group,
    is_served,
    left_in_aws,
    note,
    rules,
    serve,
    tags,
    target_groups,
    targets,
    wait_nothing_left,
    wait_rest,
    writes,
)
from sandbox.process import wait_for
from sandbox.view import lone_instances, nodes_follow

#: Whoever tests a recovery does not want to wait for the minutes that are right in production.
SOON = "--retry-max-interval=3s"
DENIED = {"code": "AccessDenied", "status": 403, "count": -1}


def every_second(code: str, status: int, calls: int = 200) -> list[dict[str, Any]]:
    """Faults that hit the second, fourth, … call: a later one does not see the calls that the ones before it took."""
    return [{"code": code, "status": status, "skip": number + 1} for number in range(calls)]


def calls_of(account, operation: str, since: int = 0) -> list[dict[str, Any]]:
    return [call for call in account.calls(since) if call["operation"] == operation]


def aws_notes(cluster, name: str = "order") -> list[str]:
    return [note for reason, note in cluster.events(name) if reason.startswith("Aws")]


def test_r1_a_deletion_without_permission_is_said_and_completed_later(cluster, account, weir):
    """R1: one Event names action and ARN; the finalizer stays; no hammering; it ends when the permission is back."""
    weir(CALM, SOON)
    hostname = serve(cluster, account)
    arn = balancer(account, hostname)["LoadBalancerArn"]
    before = left_in_aws(account)
    account.faults({"operation": "DeleteLoadBalancer", **DENIED})
    mark = account.mark()
    cluster.delete("order")
    sentence = note(cluster, "order", "AwsAccessDenied", 10)
    assert f"elasticloadbalancing:DeleteLoadBalancer on {arn}" in sentence
    wait_for(lambda: len(calls_of(account, "DeleteLoadBalancer", mark)) >= 2, 10, "another try")
    assert cluster.service("order")["metadata"]["finalizers"] == [FINALIZER]
    tries = [moment(call) for call in calls_of(account, "DeleteLoadBalancer", mark)]
    assert all(later - earlier > 2 for earlier, later in pairwise(tries)), tries
    assert left_in_aws(account) == before, "nothing else is taken away while it stands"
    account.faults()
    cluster.wait_gone("order", 10)
    wait_nothing_left(account)
    assert note(cluster, "order", "AwsAccessDenied") == sentence


def moment(call: dict[str, Any]) -> float:
    return datetime.fromisoformat(call["time"]).timestamp()


def test_r1_the_default_wait_is_long(cluster, account, weir):
    """R1: at most a try in minutes where only people can help."""
    weir(CALM)
    serve(cluster, account)
    account.faults({"operation": "DeleteLoadBalancer", **DENIED})
    mark = account.mark()
    cluster.delete("order")
    cluster.wait_event("order", "AwsAccessDenied", 10)
    time.sleep(2)
    assert len(calls_of(account, "DeleteLoadBalancer", mark)) == 1


CREATES = {
    "CreateSecurityGroup": "ec2:CreateSecurityGroup",
    "AuthorizeSecurityGroupIngress": "ec2:AuthorizeSecurityGroupIngress",
    "CreateLoadBalancer": "elasticloadbalancing:CreateLoadBalancer",
    "CreateTargetGroup": "elasticloadbalancing:CreateTargetGroup",
    "CreateListener": "elasticloadbalancing:CreateListener",
    "AttachTrafficSources": "autoscaling:AttachTrafficSources",
}


@pytest.mark.parametrize(("operation", "action"), CREATES.items(), ids=CREATES)
def test_r53_a_missing_permission_to_create_is_named(cluster, account, weir, operation, action):
    """R1, R53: the Event names the action; the Service is served once the permission is there."""
    weir(SOON)
    code = "UnauthorizedOperation" if action.startswith("ec2:") else "AccessDenied"
    account.faults({**DENIED, "operation": operation, "code": code})
    cluster.expose("order")
    wait_for(lambda: any(action in text for text in aws_notes(cluster)), 15, f"an Event that names {action}")
    assert len(aws_notes(cluster)) == 1
    mark = account.mark()
    time.sleep(2)
    assert len(calls_of(account, operation, mark)) <= 3, "no hammering"
    account.faults()
    hostname = cluster.wait_hostname("order", 20)
    wait_for(lambda: is_served(account, hostname), 45, "it to be served")


@pytest.mark.parametrize("operation", CREATES)
def test_d7_an_answer_that_got_lost_makes_nothing_twice(cluster, account, weir, operation):
    """D7: the call took effect, the answer is an error, also for the SDK's own retries."""
    weir(SOON)
    account.faults({"operation": operation, "code": "InternalFailure", "status": 500, "when": "after", "count": 5})
    cluster.expose("order")
    hostname = cluster.wait_hostname("order", 60)
    wait_for(lambda: is_served(account, hostname), 60, "it to be served")
    wait_rest(account)
    left = left_in_aws(account)
    assert (len(left["balancers"]), len(left["target groups"]), len(left["groups"])) == (1, 1, 2)
    assert rules(group(account, "frontend-group")) == {("tcp", 80, 80, "0.0.0.0/0")}
    cluster.delete("order")
    cluster.wait_gone("order")
    wait_nothing_left(account)


@pytest.mark.parametrize(
    "operation", ["DeleteLoadBalancer", "DeleteTargetGroup", "DetachTrafficSources", "DeleteSecurityGroup"]
)
def test_d7_an_answer_to_a_deletion_that_got_lost(cluster, account, weir, operation):
    weir(SOON)
    serve(cluster, account)
    account.faults({"operation": operation, "code": "InternalFailure", "status": 500, "when": "after", "count": 5})
    cluster.delete("order")
    cluster.wait_gone("order", 60)
    wait_nothing_left(account)
    assert attached(account) == set()


@pytest.mark.parametrize(("code", "status"), [("Throttling", 400), ("ServiceUnavailable", 503)])
def test_r48_every_second_call_fails(cluster, account, weir, code, status):
    """R48: all Services are ready at last, and no retry makes an Event."""
    names = [f"order-{number}" for number in range(4)]
    weir(SOON)
    account.faults(*every_second(code, status))
    for name in names:
        cluster.expose(name)
    hostnames = [cluster.wait_hostname(name, 90) for name in names]
    account.faults()
    for hostname in hostnames:
        wait_for(lambda hostname=hostname: is_served(account, hostname), 45, f"{hostname} to be served")
    assert len(balancers(account)) == len(target_groups(account)) == len(names)
    assert [aws_notes(cluster, name) for name in names] == [[]] * len(names)


def test_a_quota_is_named_and_tried_again(cluster, account, weir):
    weir(CALM, SOON)
    account.faults({"operation": "CreateLoadBalancer", "code": "TooManyLoadBalancers", "count": -1})
    cluster.expose("order")
    sentence = note(cluster, "order", "AwsQuotaExceeded", 15)
    assert "quota" in sentence and "TooManyLoadBalancers" in sentence
    account.faults()
    cluster.wait_hostname("order", 15)
    assert note(cluster, "order", "AwsQuotaExceeded") == sentence


def test_r3_a_security_group_in_use_does_not_hold_up_others(cluster, account, weir):
    """R3: the network interfaces outlive the load balancer; the Event names one, other Services go on."""
    weir(CALM, SOON)
    serve(cluster, account)
    frontend = group(account, "frontend-group")["GroupId"]
    account.localstack.settings(eni_linger_seconds=14)
    mark = account.mark()
    cluster.delete("order")
    wait_for(lambda: calls_of(account, "DeleteSecurityGroup", mark), 15, "the group to be tried")
    cluster.expose("other")
    cluster.wait_hostname("other", 10)
    wait_for(lambda: [text for text in aws_notes(cluster) if "eni-" in text], 20, "an Event that names an interface")
    assert frontend in aws_notes(cluster)[0]
    assert cluster.service("order")["metadata"]["finalizers"] == [FINALIZER]
    tries = calls_of(account, "DeleteSecurityGroup", mark)
    times = [moment(call) for call in tries if call["request"].get("GroupId") == frontend]
    assert all(later - earlier >= 1.9 for earlier, later in pairwise(times)), times
    counts = counted(writes(account, mark))
    assert counts["DeleteLoadBalancer"] == counts["DeleteTargetGroup"] == 1, counts
    account.localstack.settings(eni_linger_seconds=0)
    cluster.delete("other")
    cluster.wait_gone("order", 30)
    cluster.wait_gone("other", 30)
    wait_nothing_left(account)


def test_r3_refused_several_times(cluster, account, weir):
    """R3: gone at last, and the finalizer stays until then."""
    weir(SOON)
    serve(cluster, account)
    account.faults({"operation": "DeleteSecurityGroup", "code": "DependencyViolation", "count": 3})
    cluster.delete("order")
    cluster.wait_gone("order", 30)
    wait_nothing_left(account)


def test_r2_a_rule_of_ours_elsewhere_is_revoked_first(cluster, account, weir):
    """R2: whatever left it there."""
    weir(CALM)
    serve(cluster, account)
    frontend = group(account, "frontend-group")["GroupId"]
    other = account.ec2.create_security_group(
        GroupName="other", Description="A group of the VPC", VpcId=account.names["vpc"]
    )["GroupId"]
    pair = {"GroupId": frontend, "Description": f"weir.dev/cluster={account.cluster}: from an older release"}
    account.ec2.authorize_security_group_ingress(
        GroupId=other,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "UserIdGroupPairs": [pair]}],
    )
    cluster.delete("order")
    cluster.wait_gone("order", 30)
    wait_nothing_left(account)
    [left] = account.ec2.describe_security_groups(GroupIds=[other])["SecurityGroups"]
    assert rules(left) == set()
    assert aws_notes(cluster) == []


def test_r3_a_foreign_rule_is_named_and_left(cluster, account, weir):
    """R3, D4: somebody else's rule holds the group; the Event names it, and nothing of theirs is touched."""
    weir(CALM, SOON)
    serve(cluster, account)
    frontend = group(account, "frontend-group")["GroupId"]
    other = account.ec2.create_security_group(
        GroupName="other", Description="A group of the VPC", VpcId=account.names["vpc"]
    )["GroupId"]
    theirs = [{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "UserIdGroupPairs": [{"GroupId": frontend}]}]
    account.ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=theirs)
    cluster.delete("order")
    wait_for(lambda: [text for text in aws_notes(cluster) if other in text], 25, "an Event that names the group")
    assert len(aws_notes(cluster)) == 1
    [left] = account.ec2.describe_security_groups(GroupIds=[other])["SecurityGroups"]
    assert rules(left) == {("tcp", 80, 80, frontend)}
    account.ec2.revoke_security_group_ingress(GroupId=other, IpPermissions=theirs)
    cluster.wait_gone("order", 15)


def test_r4_deletion_protection_of_the_console_is_respected(cluster, account, weir):
    """R4: nothing is deleted, one Event says what to switch off."""
    weir(SOON)
    hostname = serve(cluster, account)
    arn = balancer(account, hostname)["LoadBalancerArn"]

    def protect(value: str) -> None:
        protection = [{"Key": "deletion_protection.enabled", "Value": value}]
        account.elbv2.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=protection)

    protect("true")
    before, served = left_in_aws(account), attached(account)
    cluster.delete("order")
    sentence = note(cluster, "order", "AwsConflict", 15)
    assert arn in sentence and "deletion_protection.enabled" in sentence
    wait_rest(account, 2)
    assert left_in_aws(account) == before and attached(account) == served
    assert cluster.service("order")["metadata"]["finalizers"] == [FINALIZER]
    protect("false")
    cluster.wait_gone("order", 15)
    wait_nothing_left(account)


def test_r7_a_load_balancer_in_use_keeps_the_rest(cluster, account, weir):
    """R7: an endpoint service uses it. Nothing else of the Service goes before it does, and it is not hammered."""
    weir(CALM)
    serve(cluster, account)
    before, served = left_in_aws(account), attached(account)
    [lb] = balancers(account)
    offered = {"NetworkLoadBalancerArns": [lb["LoadBalancerArn"]], "AcceptanceRequired": False}
    service = account.ec2.create_vpc_endpoint_service_configuration(**offered)["ServiceConfiguration"]["ServiceId"]
    words = "Load balancer is currently associated with another service"
    account.faults({"operation": "DeleteLoadBalancer", "code": "ResourceInUse", "message": words, "count": -1})
    mark = account.mark()
    cluster.delete("order")
    sentence = note(cluster, "order", "AwsConflict", 15)
    assert words in sentence and "protected" not in sentence
    assert service in sentence, "the endpoint service is named"
    time.sleep(2)
    assert len(calls_of(account, "DeleteLoadBalancer", mark)) == 1
    assert left_in_aws(account) == before and attached(account) == served
    assert cluster.service("order")["metadata"]["finalizers"] == [FINALIZER]


def test_r8_a_target_group_still_in_use(cluster, account, weir):
    """R8: success on the sixth try, without running the whole plan again and without an Event."""
    weir(CALM)
    serve(cluster, account)
    account.faults({"operation": "DeleteTargetGroup", "code": "ResourceInUse", "count": 5})
    mark = account.mark()
    cluster.delete("order")
    cluster.wait_gone("order", 30)
    counts = counted(writes(account, mark))
    assert (counts["DeleteTargetGroup"], counts["DeleteLoadBalancer"]) == (6, 1)
    assert aws_notes(cluster) == []
    wait_nothing_left(account)


def test_what_does_not_depend_on_a_failure_goes_on(cluster, account, weir):
    """A health check that cannot be changed holds up neither the source ranges nor the tags."""
    weir(CALM, SOON)
    serve(cluster, account)
    account.faults({"operation": "ModifyTargetGroup", **DENIED})
    cluster.patch(
        "order",
        {
            "metadata": {"annotations": {ANNOTATION + "additional-resource-tags": "team=blue"}},
            "spec": {"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/24"]},
        },
    )
    assert "elasticloadbalancing:ModifyTargetGroup" in note(cluster, "order", "AwsAccessDenied")
    wanted = {("tcp", 80, 80, "192.0.2.0/24")}
    wait_for(lambda: rules(group(account, "frontend-group")) == wanted, 10, "the source ranges")
    assert {"Key": "team", "Value": "blue"} in group(account, "frontend-group")["Tags"]
    account.faults()
    local = str(cluster.service("order")["spec"]["healthCheckNodePort"])
    wait_for(lambda: target_groups(account)[0]["HealthCheckPort"] == local, 15, "the health check")


def test_tags_that_cannot_be_set_do_not_hold_up_the_listeners(cluster, account, weir):
    """Not in the same reconcile, and not in those that follow while the tags wait for their next try."""
    weir(CALM)
    hostname = serve(cluster, account)
    account.localstack.settings(attach_seconds=2)
    account.faults({"operation": "AddTags", **DENIED})
    number = 30081 if cluster.service("order")["spec"]["ports"][0]["nodePort"] != 30081 else 30082
    port = {"name": "main", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": number}
    mark = account.mark()
    cluster.patch(
        "order",
        {
            "metadata": {"annotations": {ANNOTATION + "additional-resource-tags": "team=blue"}},
            "spec": {"ports": [port]},
        },
    )
    wait_for(lambda: len(aws_notes(cluster)) == 2, 10, "a sentence each about the load balancer and the listener")
    assert all("elasticloadbalancing:AddTags" in sentence for sentence in aws_notes(cluster))
    wait_for(lambda: [tg["Port"] for tg in target_groups(account)] == [number], 20, "only the new target group")
    assert is_served(account, hostname)
    assert len(calls_of(account, "AddTags", mark)) == 2, "no second try before its time"


def test_tags_that_cannot_be_removed_are_not_forgotten(cluster, account, weir):
    """What is set next would overwrite the record of which tags are weir's."""
    weir(CALM, SOON)
    key = ANNOTATION + "additional-resource-tags"
    hostname = serve(cluster, account, annotations={key: "team=blue,cost=7"})
    arn = balancer(account, hostname)["LoadBalancerArn"]
    account.faults({"operation": "RemoveTags", **DENIED})
    mark = account.mark()
    cluster.patch("order", {"metadata": {"annotations": {key: "team=red"}}})
    cluster.wait_event("order", "AwsAccessDenied", 10)
    wait_rest(account)
    assert calls_of(account, "AddTags", mark) == []
    told = aws_notes(cluster)
    assert len(told) == 3, "the tags of load balancer, listener and target group"
    assert all("elasticloadbalancing:RemoveTags" in sentence for sentence in told)
    account.faults()
    wait_for(lambda: "cost" not in tags(account, arn), 15, "the tag to go")
    wait_for(lambda: tags(account, arn)["team"] == "red", 15, "the other one to be changed")


def test_a_load_balancer_that_aws_cannot_set_up_is_made_again(cluster, account, weir):
    """Once, at once, with an Event."""
    weir(CALM)
    account.localstack.settings(provision_failures=1)
    cluster.expose("order")
    hostname = cluster.wait_hostname("order", 20)
    wait_for(lambda: is_served(account, hostname), 20, "it to be served")
    sentence = note(cluster, "order", "LoadBalancerFailed")
    assert "Internal error" in sentence and "made again" in sentence
    counts = counted(writes(account))
    assert (counts["CreateLoadBalancer"], counts["DeleteLoadBalancer"], counts["CreateTargetGroup"]) == (2, 1, 1)
    assert len(balancers(account)) == 1


def test_a_load_balancer_that_aws_cannot_set_up_twice_waits(cluster, account, weir):
    """No third one before a wait; an edit ends it."""
    weir(CALM)
    account.localstack.settings(provision_failures=2)
    cluster.expose("order")

    def told() -> list[str]:
        return [text for reason, text in cluster.events("order") if reason == "LoadBalancerFailed"]

    wait_for(lambda: len(told()) == 2, 20, "two Events")
    assert "tried again" in told()[1]
    wait_rest(account, 2)
    assert counted(writes(account))["CreateLoadBalancer"] == 2
    assert cluster.hostname("order") is None
    cluster.patch("order", {"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}})
    hostname = cluster.wait_hostname("order", 20)
    wait_for(lambda: is_served(account, hostname), 20, "it to be served")
    cluster.delete("order")
    cluster.wait_gone("order")
    wait_nothing_left(account)


def test_groups_of_nodes_that_cannot_be_read_are_told_of(cluster, account, weir):
    """A node whose labels do not tell its group is nobody's target until they can."""
    weir(CALM, SOON)
    serve(cluster, account)
    account.faults({"operation": "DescribeAutoScalingInstances", **DENIED})
    [extra] = lone_instances(account)
    nodes_follow(cluster, account)
    assert "autoscaling:DescribeAutoScalingInstances" in note(cluster, "order", "AwsAccessDenied", 15)
    account.faults()
    [arn] = [tg["TargetGroupArn"] for tg in target_groups(account)]
    wait_for(lambda: extra in targets(account, arn), 15, "the node to be registered")


def test_r56_no_hostname_before_the_load_balancer_is_active(cluster, account, weir):
    """R56: status empty and one Event until then; all are looked at in one shared describe."""
    names = [f"order-{number}" for number in range(5)]
    weir(CALM)
    account.localstack.settings(provision_seconds=4)
    mark = account.mark()
    for name in names:
        cluster.expose(name)
    for name in names:
        assert "to become active" in note(cluster, name, "Waiting")
    assert [cluster.hostname(name) for name in names] == [None] * len(names)
    for name in names:
        cluster.wait_hostname(name, 20)
    states = {lb["State"]["Code"] for lb in balancers(account)}
    assert states == {"active"}
    looks = calls_of(account, "DescribeLoadBalancers", mark)
    assert len(looks) <= 6, looks
    assert max(len(look["request"].get("LoadBalancerArns") or []) for look in looks) == len(names)
    assert all("to become active" in note(cluster, name, "Waiting") for name in names)
