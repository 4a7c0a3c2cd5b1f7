"""Targets follow the members of Auto Scaling groups; a deleted target group stops launches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import World


@pytest.fixture
def arn(world: World) -> str:
    """A target group attached to the workers."""
    arn = world.group_arn()
    world.attach(arn)
    return arn


def deregister(world: World, arn: str, node: str) -> None:
    world.elb.deregister_targets(TargetGroupArn=arn, Targets=[{"Id": node}])


def test_scaling_out_and_in(world: World, arn: str) -> None:
    for size in (6, 2):
        members = world.account.scale("workers", size)
        assert world.registered(arn) == members and len(members) == size
    world.asg.update_auto_scaling_group(AutoScalingGroupName="workers", DesiredCapacity=4)
    assert world.registered(arn) == world.members() and len(world.members()) == 4


@pytest.mark.parametrize("way", ["ec2", "autoscaling"])
def test_a_terminated_member_is_replaced_and_so_is_its_target(world: World, arn: str, way: str) -> None:
    node = world.instances[0]
    if way == "ec2":
        world.ec2.terminate_instances(InstanceIds=[node])
    else:
        world.asg.terminate_instance_in_auto_scaling_group(InstanceId=node, ShouldDecrementDesiredCapacity=False)
    assert node not in world.registered(arn)
    assert world.registered(arn) == world.members() and len(world.members()) == 3


def test_who_was_deregistered_stays_out_until_attached_again(world: World, arn: str) -> None:
    out, *rest = world.instances
    deregister(world, arn, out)
    assert world.registered(arn) == rest
    world.account.scale("workers", 4)
    assert out in world.members() and out not in world.registered(arn) and len(world.registered(arn)) == 3
    world.detach(arn)
    world.attach(arn)
    assert world.registered(arn) == world.members()


def test_standby_leaves_and_comes_back(world: World, arn: str) -> None:
    node = world.instances[0]
    deregister(world, arn, node)
    world.asg.enter_standby(AutoScalingGroupName="workers", InstanceIds=[node], ShouldDecrementDesiredCapacity=True)
    assert node not in world.registered(arn)
    world.asg.exit_standby(AutoScalingGroupName="workers", InstanceIds=[node])
    assert world.registered(arn) == world.instances


def test_instances_move_between_groups(world: World, arn: str, refusal: Callable) -> None:
    world.account.add_asg("burst", 1, launch_template=world.made["launch_template"], subnets=world.subnets)
    other, node = world.group_arn(), world.instances[0]
    world.attach(other, asg="burst")
    join = {"AutoScalingGroupName": "burst", "InstanceIds": [node]}
    assert refusal(world.asg.attach_instances, **join).code == "ValidationError"
    world.asg.detach_instances(AutoScalingGroupName="workers", InstanceIds=[node], ShouldDecrementDesiredCapacity=True)
    assert world.registered(arn) == world.instances[1:]
    assert refusal(world.asg.detach_instances, **join, ShouldDecrementDesiredCapacity=True).code == "ValidationError"
    world.asg.attach_instances(**join)
    assert node in world.registered(other) and world.registered(other) == world.members("burst")
    shown = world.asg.describe_auto_scaling_instances(InstanceIds=[node])["AutoScalingInstances"]
    assert [row["AutoScalingGroupName"] for row in shown] == ["burst"]


def test_detached_without_decrement_is_replaced(world: World, arn: str) -> None:
    node = world.instances[0]
    world.asg.detach_instances(AutoScalingGroupName="workers", InstanceIds=[node], ShouldDecrementDesiredCapacity=False)
    assert len(world.members()) == 3 and node not in world.members()
    assert world.registered(arn) == world.members()


def test_add_to_load_balancer_suspended(world: World, arn: str) -> None:
    processes = {"AutoScalingGroupName": "workers", "ScalingProcesses": ["AddToLoadBalancer"]}
    world.asg.suspend_processes(**processes)
    world.account.scale("workers", 4)
    assert world.registered(arn) == world.instances
    world.asg.resume_processes(**processes)
    assert world.registered(arn) == world.instances
    world.account.scale("workers", 5)
    assert len(world.registered(arn)) == 4


def test_one_group_attached_to_two(world: World, arn: str) -> None:
    others = world.account.add_asg("burst", 2, launch_template=world.made["launch_template"], subnets=world.subnets)
    alone = world.account.launch_instance(world.subnets[0], world.made["node_security_group"])
    world.attach(arn, asg="burst")
    world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": alone}])
    assert world.registered(arn) == sorted([*world.instances, *others, alone])
    world.detach(arn, asg="burst")
    assert world.registered(arn) == sorted([*world.instances, alone])


def test_a_ghost_stays_listed_and_stops_every_launch(world: World, arn: str) -> None:
    world.elb.delete_target_group(TargetGroupArn=arn)
    assert world.sources() == {arn: "Added"}
    world.account.scale("workers", 5)
    assert world.members() == world.instances and world.group()["DesiredCapacity"] == 5
    world.ec2.terminate_instances(InstanceIds=[world.instances[0]])
    assert world.members() == world.instances[1:]
    activities = world.asg.describe_scaling_activities(AutoScalingGroupName="workers")["Activities"]
    assert activities and {activity["StatusCode"] for activity in activities} == {"Failed"}
    reason = "One or more target groups not found. Validating load balancer configuration failed."
    assert {activity["StatusMessage"] for activity in activities} == {reason}


def test_launches_resume_once_the_ghost_is_detached(world: World, arn: str) -> None:
    kept = world.group_arn()
    world.attach(kept)
    world.elb.delete_target_group(TargetGroupArn=arn)
    world.account.scale("workers", 5)
    assert len(world.members()) == 3
    world.detach(arn)
    assert len(world.members()) == 5 and world.registered(kept) == world.members()


def test_scaling_in_is_not_stopped_by_a_ghost(world: World, arn: str) -> None:
    world.elb.delete_target_group(TargetGroupArn=arn)
    assert len(world.account.scale("workers", 1)) == 1


def test_unknown_groups_and_instances(world: World, refusal: Callable) -> None:
    assert (
        refusal(world.asg.set_desired_capacity, AutoScalingGroupName="nobody", DesiredCapacity=1).code
        == "ValidationError"
    )
    stranger = {"InstanceId": "i-00000000000000000", "ShouldDecrementDesiredCapacity": True}
    assert refusal(world.asg.terminate_instance_in_auto_scaling_group, **stranger).code == "ValidationError"
