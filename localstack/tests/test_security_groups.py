"""Which EC2 security groups can be deleted when."""

from __future__ import annotations

import time
from collections.abc import Callable

from conftest import Control, World

PORTS = {"IpProtocol": "tcp", "FromPort": 30000, "ToPort": 32767}


def test_in_use_by_an_instance(world: World, refusal: Callable) -> None:
    group = world.made["node_security_group"]
    assert refusal(world.ec2.delete_security_group, GroupId=group).code == "DependencyViolation"
    world.account.scale("workers", 0)
    world.ec2.delete_security_group(GroupId=group)


def test_in_use_by_a_rule_of_another_group(world: World, refusal: Callable) -> None:
    named, naming = world.security_group(), world.security_group()
    described = [PORTS | {"UserIdGroupPairs": [{"GroupId": named, "Description": "from the load balancer"}]}]
    world.ec2.authorize_security_group_ingress(GroupId=naming, IpPermissions=described)
    assert refusal(world.ec2.delete_security_group, GroupId=named).code == "DependencyViolation"
    bare = [PORTS | {"UserIdGroupPairs": [{"GroupId": named}]}]
    assert (
        refusal(world.ec2.authorize_security_group_ingress, GroupId=naming, IpPermissions=bare).code
        == "InvalidPermission.Duplicate"
    )
    world.ec2.revoke_security_group_ingress(GroupId=naming, IpPermissions=bare)
    world.ec2.delete_security_group(GroupId=named)


def test_in_use_by_a_load_balancer_and_a_while_after(world: World, control: Control, refusal: Callable) -> None:
    group = world.security_group()
    arn = world.balancer(SecurityGroups=[group])["LoadBalancerArn"]
    assert refusal(world.ec2.delete_security_group, GroupId=group).code == "DependencyViolation"
    control.settings(eni_linger_seconds=0.6)
    world.elb.delete_load_balancer(LoadBalancerArn=arn)
    assert refusal(world.ec2.delete_security_group, GroupId=group).code == "DependencyViolation"
    left = world.ec2.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [group]}])
    assert len(left["NetworkInterfaces"]) == 3
    time.sleep(0.7)
    world.ec2.delete_security_group(GroupId=group)
    assert refusal(world.ec2.describe_security_groups, GroupIds=[group]).code == "InvalidGroup.NotFound"


def test_without_lingering_it_goes_with_its_load_balancer(world: World) -> None:
    group = world.security_group()
    arn = world.balancer(SecurityGroups=[group])["LoadBalancerArn"]
    world.elb.delete_load_balancer(LoadBalancerArn=arn)
    world.ec2.delete_security_group(GroupId=group)


def test_unknown_vpc(world: World, refusal: Callable) -> None:
    create = world.ec2.create_security_group
    lost = refusal(create, GroupName="lost", Description="d", VpcId="vpc-00000000000000000")
    assert lost.code == "InvalidVpcID.NotFound"
    assert create(GroupName="in-default", Description="d")["GroupId"].startswith("sg-")
