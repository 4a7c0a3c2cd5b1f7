"""Target groups attached to Auto Scaling groups: states, limits, the two families."""

from __future__ import annotations

import time
from collections.abc import Callable

from conftest import Control, World, source


def test_attach_registers_members_with_the_groups_port(world: World) -> None:
    arn = world.group_arn(Port=31000)
    world.attach(arn)
    assert world.targets(arn) == [(node, 31000) for node in world.instances]
    assert world.sources() == {arn: "Added"}
    world.attach(arn)
    assert world.sources() == {arn: "Added"}


def test_detach_deregisters_them(world: World) -> None:
    arn = world.group_arn()
    world.attach(arn)
    world.detach(arn)
    assert world.targets(arn) == [] and world.sources() == {}


def test_each_family_sees_its_own(world: World, refusal: Callable) -> None:
    by_source, by_group = world.group_arn(), world.group_arn()
    world.attach(by_source)
    world.asg.attach_load_balancer_target_groups(AutoScalingGroupName="workers", TargetGroupARNs=[by_group])
    assert world.sources() == {by_source: "Added"}
    rows = world.asg.describe_load_balancer_target_groups(AutoScalingGroupName="workers")["LoadBalancerTargetGroups"]
    assert rows == [{"LoadBalancerTargetGroupARN": by_group, "State": "Added"}]
    group = world.group()
    assert group["TargetGroupARNs"] == [by_group]
    assert group["TrafficSources"] == [source(by_source)]
    assert refusal(lambda: world.detach(by_group)).code == "ValidationError"
    detach = world.asg.detach_load_balancer_target_groups
    assert refusal(detach, AutoScalingGroupName="workers", TargetGroupARNs=[by_source]).code == "ValidationError"
    detach(AutoScalingGroupName="workers", TargetGroupARNs=[by_group])
    assert world.group()["TargetGroupARNs"] == [] and world.registered(by_group) == []
    assert world.registered(by_source) == world.instances


def test_a_group_may_be_born_attached(world: World) -> None:
    arn = world.group_arn()
    world.asg.create_auto_scaling_group(
        AutoScalingGroupName="born",
        MinSize=0,
        MaxSize=2,
        DesiredCapacity=2,
        LaunchTemplate={"LaunchTemplateId": world.made["launch_template"], "Version": "$Latest"},
        VPCZoneIdentifier=world.subnets[0],
        TrafficSources=[source(arn)],
    )
    assert world.sources("born") == {arn: "Added"}
    assert world.registered(arn) == world.members("born") and len(world.members("born")) == 2


def test_unknown_things_are_validation_errors(world: World, refusal: Callable) -> None:
    arn = world.group_arn()
    gone = arn[:-4] + "0000"
    batch = refusal(lambda: world.attach(arn, gone))
    assert batch.code == "ValidationError"
    assert batch.message == "Provided Target Groups may not be valid. Please ensure they exist and try again."
    assert world.sources() == {} and world.targets(arn) == []
    assert refusal(lambda: world.attach(arn, asg="nobody")).code == "ValidationError"
    assert refusal(world.asg.describe_traffic_sources, AutoScalingGroupName="nobody").code == "ValidationError"
    wrong = [{"Identifier": arn, "Type": "lattice"}]
    assert (
        refusal(world.asg.attach_traffic_sources, AutoScalingGroupName="workers", TrafficSources=wrong).code
        == "ValidationError"
    )


def test_ten_a_call(world: World, refusal: Callable) -> None:
    arns = [world.group_arn() for _ in range(11)]
    many = refusal(lambda: world.attach(*arns))
    assert many.code == "ValidationError"
    assert many.message == "Trying to update too many Load Balancers/Target Groups at once. The limit is 10"
    world.attach(*arns[:10])
    world.attach(arns[10])
    assert refusal(lambda: world.detach(*arns)).message == many.message
    assert len(world.sources()) == 11


def test_ten_in_flight(world: World, control: Control, refusal: Callable) -> None:
    arns = [world.group_arn() for _ in range(12)]
    control.settings(attach_seconds=0.8)
    world.attach(*arns[:6])
    assert set(world.sources().values()) == {"Adding"}
    assert world.targets(arns[0]) == []
    assert "at once. The limit is 10" in refusal(lambda: world.attach(*arns[6:11])).message
    world.attach(*arns[6:10])
    assert "at once. The limit is 10" in refusal(lambda: world.attach(arns[10])).message
    time.sleep(0.9)
    assert world.registered(arns[0]) == world.instances
    world.attach(arns[10])
    assert [world.sources()[arn] for arn in (arns[0], arns[10])] == ["Added", "Adding"]


def test_removing_takes_time_and_counts_as_in_flight(world: World, control: Control, refusal: Callable) -> None:
    arns = [world.group_arn() for _ in range(11)]
    world.attach(*arns[:10])
    control.settings(detach_seconds=0.8)
    world.detach(*arns[:10])
    assert set(world.sources().values()) == {"Removing"} and world.targets(arns[0]) == []
    assert "at once. The limit is 10" in refusal(lambda: world.attach(arns[10])).message
    time.sleep(0.9)
    assert world.sources() == {}
    world.attach(arns[10])
    assert world.sources() == {arns[10]: "Added"}


def test_fifty_in_all_counting_both_families(world: World, refusal: Callable) -> None:
    arns = [world.group_arn() for _ in range(51)]
    for start in range(0, 40, 10):
        world.attach(*arns[start : start + 10])
    world.asg.attach_load_balancer_target_groups(AutoScalingGroupName="workers", TargetGroupARNs=arns[40:49])
    two = refusal(lambda: world.attach(*arns[49:51]))
    assert two.code == "ValidationError"
    assert two.message == "Too many Target Groups specified for this group. The limit is 50"
    world.attach(arns[49])
    assert refusal(lambda: world.attach(arns[50])).message == two.message


def test_listing_has_pages(world: World) -> None:
    arns = [world.group_arn() for _ in range(5)]
    world.attach(*arns)
    first = world.asg.describe_traffic_sources(AutoScalingGroupName="workers", MaxRecords=3)
    rest = world.asg.describe_traffic_sources(AutoScalingGroupName="workers", NextToken=first["NextToken"])
    assert [row["Identifier"] for page in (first, rest) for row in page["TrafficSources"]] == arns
    assert "NextToken" not in rest


def test_in_service_only_with_elb_health_checks(world: World) -> None:
    world.account.add_asg(
        "elb", 1, launch_template=world.made["launch_template"], subnets=world.subnets, health_check_type="ELB"
    )
    arn = world.group_arn()
    world.attach(arn, asg="elb")
    assert world.sources("elb") == {arn: "InService"}


def test_instance_refresh_refuses_attaching(world: World, control: Control, refusal: Callable) -> None:
    arn = world.group_arn()
    control.settings(instance_refresh=["workers"])
    assert refusal(lambda: world.attach(arn)).code == "InstanceRefreshInProgress"
    shown = world.asg.describe_instance_refreshes(AutoScalingGroupName="workers")["InstanceRefreshes"]
    assert [refresh["Status"] for refresh in shown] == ["InProgress"]
    control.settings(instance_refresh=[])
    world.attach(arn)
    assert world.asg.describe_instance_refreshes(AutoScalingGroupName="workers")["InstanceRefreshes"] == []
