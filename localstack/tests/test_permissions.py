"""IAM: policies by action, resource and condition; what calls ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
import seed
from conftest import REGION, Control, World
from localstack_nlb.policies import allowed, condition_holds


def allow(action: Any, resource: Any = "*", **condition: dict) -> dict:
    return {"Effect": "Allow", "Action": action, "Resource": resource} | ({"Condition": condition} if condition else {})


@pytest.mark.parametrize(
    ("operator", "wanted", "have", "holds"),
    [
        ("StringEquals", "a", "a", True),
        ("StringEquals", ["a", "b"], "b", True),
        ("StringEquals", "a", None, False),
        ("StringEqualsIfExists", "a", None, True),
        ("StringNotEquals", "a", "b", True),
        ("StringNotEquals", ["a", "b"], "b", False),
        ("StringNotEquals", "a", None, True),
        ("StringLike", "a*", "abc", True),
        ("Null", "false", "x", True),
        ("Null", "false", None, False),
        ("Null", "true", None, True),
        ("ForAllValues:StringEquals", ["a", "b"], ["a", "b"], True),
        ("ForAllValues:StringEquals", ["a"], ["a", "b"], False),
        ("ForAllValues:StringEquals", ["a"], None, True),
        ("ForAnyValue:StringEquals", ["a"], ["a", "b"], True),
        ("ForAnyValue:StringEquals", ["c"], ["a", "b"], False),
        ("ForAnyValue:StringEquals", ["a"], None, False),
    ],
)
def test_conditions(operator: str, wanted: Any, have: Any, holds: bool) -> None:
    facts = {} if have is None else {"aws:Key": have}
    assert condition_holds(operator, "aws:key", wanted, facts) == holds


def test_deny_wins_and_patterns_match() -> None:
    policy = [allow("elasticloadbalancing:Describe*"), allow("ec2:*", "arn:aws:ec2:*:*:vpc/*")]
    assert allowed(policy, "elasticloadbalancing:DescribeTags", "*", {})
    assert not allowed(policy, "elasticloadbalancing:AddTags", "*", {})
    assert allowed(policy, "ec2:DeleteVpc", "arn:aws:ec2:r:1:vpc/vpc-1", {})
    assert not allowed(policy, "ec2:DeleteVpc", "arn:aws:ec2:r:1:subnet/s-1", {})
    assert not allowed([*policy, allow("*") | {"Effect": "Deny"}], "elasticloadbalancing:DescribeTags", "*", {})


@pytest.fixture
def user(world: World, control: Control) -> Callable[..., dict]:
    """user(*statements): clients of a user with that policy; enforcement is on from then."""
    iam = seed.client("iam", world.endpoint, world.account_id, REGION)

    def make(*statements: dict) -> dict:
        control.post("policy", {"enforce": False})
        name = world.name("user")
        iam.create_user(UserName=name)
        document = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        control.post("policy", {"enforce": True})
        return {
            service: boto3.client(
                service,
                endpoint_url=world.endpoint,
                region_name=REGION,
                aws_access_key_id=key["AccessKeyId"],
                aws_secret_access_key=key["SecretAccessKey"],
            )
            for service in ("elbv2", "ec2", "autoscaling")
        }

    return make


def test_only_what_carries_the_clusters_tag(world: World, user: Callable, refusal: Callable) -> None:
    mine = [{"Key": "weir.dev/cluster", "Value": "demo"}]
    own, foreign = world.balancer(Tags=mine)["LoadBalancerArn"], world.balancer()["LoadBalancerArn"]
    arn = world.group_arn()
    tagged = {"aws:ResourceTag/weir.dev/cluster": "demo"}
    asg_tag = {"autoscaling:ResourceTag/kubernetes.io/cluster/demo": "owned"}
    clients = user(
        allow("elasticloadbalancing:DeleteLoadBalancer", StringEquals=tagged),
        allow("autoscaling:AttachTrafficSources", StringEquals=asg_tag),
    )
    elb, asg = clients["elbv2"], clients["autoscaling"]
    refused = refusal(elb.delete_load_balancer, LoadBalancerArn=foreign)
    assert refused.code == "AccessDenied" and refused.status == 403
    assert "elasticloadbalancing:DeleteLoadBalancer" in refused.message and foreign in refused.message
    elb.delete_load_balancer(LoadBalancerArn=own)
    assert refusal(elb.describe_load_balancers).code == "AccessDenied"
    asg.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=[{"Identifier": arn, "Type": "elbv2"}])
    assert refusal(asg.detach_traffic_sources, AutoScalingGroupName="workers", TrafficSources=[]).code == "AccessDenied"


def test_ec2_has_its_own_code(world: World, user: Callable, refusal: Callable) -> None:
    ec2 = user(allow("ec2:DescribeVpcs"))["ec2"]
    assert ec2.describe_vpcs()["Vpcs"]
    assert refusal(ec2.describe_subnets).code == "UnauthorizedOperation"


def test_tags_on_create_ask_for_tagging(world: World, control: Control, user: Callable, refusal: Callable) -> None:
    create = user(allow("elasticloadbalancing:CreateTargetGroup"))["elbv2"].create_target_group
    asked = {"Protocol": "TCP", "Port": 1, "VpcId": world.vpc}
    assert create(Name="plain", **asked)["TargetGroups"]
    refused = refusal(create, Name="tagged", **asked, Tags=[{"Key": "k", "Value": "v"}])
    assert "elasticloadbalancing:AddTags" in refused.message
    created = {"elasticloadbalancing:CreateAction": "CreateTargetGroup"}
    both = user(
        allow("elasticloadbalancing:CreateTargetGroup", StringEquals={"aws:RequestTag/k": "v"}),
        allow("elasticloadbalancing:AddTags", StringEquals=created),
    )["elbv2"].create_target_group
    assert both(Name="tagged", **asked, Tags=[{"Key": "k", "Value": "v"}])["TargetGroups"]
    assert refusal(both, Name="other", **asked, Tags=[{"Key": "k", "Value": "w"}]).code == "AccessDenied"


def test_audit(world: World, control: Control) -> None:
    balancer, group = world.balancer()["LoadBalancerArn"], world.group_arn()
    assert control.delete("audit") == []
    world.listener(balancer, group, Tags=[{"Key": "k", "Value": "v"}])
    rows = {row["action"]: row for row in control.get("audit")}
    assert rows["elasticloadbalancing:CreateListener"]["resource"] == balancer
    tagging = rows["elasticloadbalancing:AddTags"]
    assert tagging["resource"] == balancer.replace(":loadbalancer/", ":listener/") + "/new"
    assert tagging["context"]["aws:RequestTag/k"] == "v"
    assert tagging["context"]["elasticloadbalancing:CreateAction"] == "CreateListener"


def test_what_is_attached_can_be_limited(world: World, control: Control, user: Callable, refusal: Callable) -> None:
    """autoscaling:TrafficSourceIdentifiers and autoscaling:TargetGroupARNs hold all of a call's."""
    ours, theirs = world.group_arn(Name="weir-ours"), world.group_arn(Name="theirs")
    named = "arn:aws:elasticloadbalancing:*:*:targetgroup/weir-*/*"
    identified = {"ForAllValues:StringLike": {"autoscaling:TrafficSourceIdentifiers": named}}
    listed = {"ForAllValues:ArnLike": {"autoscaling:TargetGroupARNs": named}}
    asg = user(
        allow("autoscaling:AttachTrafficSources", **identified),
        allow("autoscaling:DetachLoadBalancerTargetGroups", **listed),
    )["autoscaling"]
    both = [{"Identifier": arn, "Type": "elbv2"} for arn in (ours, theirs)]
    refused = refusal(asg.attach_traffic_sources, AutoScalingGroupName="workers", TrafficSources=both)
    assert refused.code == "AccessDenied"
    asg.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=both[:1])
    world.asg.attach_load_balancer_target_groups(AutoScalingGroupName="workers", TargetGroupARNs=[theirs])
    detach = asg.detach_load_balancer_target_groups
    assert refusal(detach, AutoScalingGroupName="workers", TargetGroupARNs=[theirs]).code == "AccessDenied"


def test_the_audit_of_one_account_and_client(world: World, control: Control) -> None:
    world.balancer()
    rows = control.get("audit", account=world.account_id, client="boto")
    assert rows and {row["account"] for row in rows} == {world.account_id}
    assert control.get("audit", account=world.account_id, client="rust") == []
