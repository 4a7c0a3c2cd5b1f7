"""Target groups and their targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Control, World


def check_of(group: dict) -> tuple:
    return (
        group["HealthCheckProtocol"],
        group.get("HealthCheckPath"),
        group.get("Matcher", {}).get("HttpCode"),
        group["HealthCheckIntervalSeconds"],
        group["HealthCheckTimeoutSeconds"],
        group["HealthyThresholdCount"],
        group["UnhealthyThresholdCount"],
    )


def test_defaults_of_a_tcp_check(world: World) -> None:
    assert check_of(world.target_group()) == ("TCP", None, None, 30, 10, 5, 2)


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "TCP_UDP", "TLS"])
def test_defaults_of_an_http_check(shared: World, protocol: str) -> None:
    group = shared.target_group(Protocol=protocol, HealthCheckProtocol="HTTP")
    assert check_of(group) == ("HTTP", "/", "200-399", 30, 6, 5, 2)
    assert check_of(shared.shown_group(group["TargetGroupArn"])) == check_of(group)


def test_what_is_asked_for_is_kept(world: World) -> None:
    group = world.target_group(
        HealthCheckProtocol="HTTP",
        HealthCheckPath="/healthz",
        HealthCheckPort="10256",
        Matcher={"HttpCode": "200"},
        HealthCheckIntervalSeconds=5,
        HealthCheckTimeoutSeconds=2,
        HealthyThresholdCount=2,
    )
    assert check_of(group) == ("HTTP", "/healthz", "200", 5, 2, 2, 2)
    assert group["HealthCheckPort"] == "10256"


@pytest.mark.parametrize(
    "change",
    [
        {"HealthCheckIntervalSeconds": 301},
        {"HealthCheckTimeoutSeconds": 121},
        {"HealthyThresholdCount": 11},
        {"UnhealthyThresholdCount": 11},
        {"HealthCheckProtocol": "UDP"},
        {"HealthCheckPort": "0"},
        {"HealthCheckProtocol": "HTTP", "HealthCheckPath": "healthz"},
        {"HealthCheckProtocol": "HTTP", "Matcher": {"HttpCode": "199"}},
        {"HealthCheckIntervalSeconds": 5, "HealthCheckTimeoutSeconds": 6},
    ],
)
def test_refuses_health_checks_out_of_range(shared: World, refusal: Callable, change: dict) -> None:
    assert refusal(shared.target_group, **change).code == "ValidationError"
    arn = shared.group_arn()
    assert refusal(shared.elb.modify_target_group, TargetGroupArn=arn, **change).code == "ValidationError"


@pytest.mark.parametrize("change", [{"HealthCheckPath": "/x"}, {"Matcher": {"HttpCode": "200"}}])
def test_a_tcp_check_has_neither_path_nor_matcher(shared: World, refusal: Callable, change: dict) -> None:
    assert refusal(shared.target_group, **change).code == "InvalidConfigurationRequest"
    arn = shared.group_arn()
    assert refusal(shared.elb.modify_target_group, TargetGroupArn=arn, **change).code == "InvalidConfigurationRequest"
    shared.elb.modify_target_group(TargetGroupArn=arn, HealthCheckProtocol="HTTP", **change)


def test_modify_changes_matcher_and_kind_of_check(world: World) -> None:
    arn = world.group_arn(HealthCheckProtocol="HTTP")

    def modify(**change: object) -> tuple:
        shown = world.elb.modify_target_group(TargetGroupArn=arn, **change)["TargetGroups"][0]
        assert check_of(shown) == check_of(world.shown_group(arn))
        return check_of(shown)[:3]

    assert modify(Matcher={"HttpCode": "200-299"}, HealthCheckPath="/x") == ("HTTP", "/x", "200-299")
    assert modify(HealthCheckProtocol="TCP") == ("TCP", None, None)
    assert modify(HealthCheckProtocol="HTTP") == ("HTTP", "/", "200-399")


def test_same_request_again_is_the_same_group(world: World, refusal: Callable) -> None:
    first = world.target_group(Name="twice")
    off = [{"Key": "preserve_client_ip.enabled", "Value": "false"}]
    world.elb.modify_target_group_attributes(TargetGroupArn=first["TargetGroupArn"], Attributes=off)
    assert world.target_group(Name="twice")["TargetGroupArn"] == first["TargetGroupArn"]
    assert refusal(world.target_group, Name="twice", Port=1).code == "DuplicateTargetGroupName"
    world.elb.modify_target_group(TargetGroupArn=first["TargetGroupArn"], HealthyThresholdCount=3)
    assert refusal(world.target_group, Name="twice").code == "DuplicateTargetGroupName"


def test_attributes(world: World, refusal: Callable) -> None:
    arn, udp = world.group_arn(), world.group_arn(Protocol="UDP")
    modify = world.elb.modify_target_group_attributes

    def attribute(key: str, value: str) -> list[dict]:
        return [{"Key": key, "Value": value}]

    shown = {a["Key"]: a["Value"] for a in world.elb.describe_target_group_attributes(TargetGroupArn=arn)["Attributes"]}
    assert shown["preserve_client_ip.enabled"] == "true" and "slow_start.duration_seconds" not in shown
    delay = "deregistration_delay.timeout_seconds"
    answer = modify(TargetGroupArn=arn, Attributes=attribute(delay, "3600"))["Attributes"]
    assert {a["Key"]: a["Value"] for a in answer} == shown | {delay: "3600"}
    for key, value in ((delay, "3601"), ("no.such.key", "1"), ("proxy_protocol_v2.enabled", "on")):
        assert refusal(modify, TargetGroupArn=arn, Attributes=attribute(key, value)).code == "ValidationError"
    off = attribute("preserve_client_ip.enabled", "false")
    assert refusal(modify, TargetGroupArn=udp, Attributes=off).code == "InvalidConfigurationRequest"


HEALTHY = "target_group_health.{}.minimum_healthy_targets.{}".format
TERMINATION = "target_health_state.unhealthy.connection_termination.enabled"
DRAINING = "target_health_state.unhealthy.draining_interval_seconds"


@pytest.mark.parametrize(
    ("protocol", "wanted", "code"),
    [
        ("TCP", {"load_balancing.cross_zone.enabled": "true"}, None),
        ("TCP", {"load_balancing.cross_zone.enabled": "off"}, "ValidationError"),
        ("TCP", {"stickiness.enabled": "true", "stickiness.type": "source_ip"}, None),
        ("TCP", {"stickiness.type": "lb_cookie"}, "InvalidConfigurationRequest"),
        ("TLS", {"stickiness.enabled": "true"}, "InvalidConfigurationRequest"),
        ("TCP", {HEALTHY("dns_failover", "count"): "off", HEALTHY("dns_failover", "percentage"): "50"}, None),
        ("TCP", {HEALTHY("unhealthy_state_routing", "count"): "off"}, "ValidationError"),
        ("TCP", {HEALTHY("dns_failover", "percentage"): "101"}, "ValidationError"),
        ("TCP", {TERMINATION: "false", DRAINING: "360000"}, None),
        ("TCP", {TERMINATION: "true", DRAINING: "60"}, "InvalidConfigurationRequest"),
        ("TCP", {TERMINATION: "false", DRAINING: "360001"}, "ValidationError"),
        ("UDP", {TERMINATION: "true"}, "InvalidConfigurationRequest"),
    ],
)
def test_values_of_attributes(shared: World, refusal: Callable, protocol: str, wanted: dict, code: str | None) -> None:
    arn = shared.group_arn(Protocol=protocol)
    attributes = [{"Key": key, "Value": value} for key, value in wanted.items()]
    modify, describe = shared.elb.modify_target_group_attributes, shared.elb.describe_target_group_attributes
    before = describe(TargetGroupArn=arn)["Attributes"]
    if code:
        assert refusal(modify, TargetGroupArn=arn, Attributes=attributes).code == code
        assert describe(TargetGroupArn=arn)["Attributes"] == before
    else:
        modify(TargetGroupArn=arn, Attributes=attributes)
        shown = {row["Key"]: row["Value"] for row in describe(TargetGroupArn=arn)["Attributes"]}
        assert shown.items() >= wanted.items()


def test_cross_zone_goes_back_to_the_load_balancers(world: World) -> None:
    arn = world.group_arn()
    for value in ("true", "use_load_balancer_configuration"):
        row = {"Key": "load_balancing.cross_zone.enabled", "Value": value}
        answer = world.elb.modify_target_group_attributes(TargetGroupArn=arn, Attributes=[row])["Attributes"]
        assert row in answer


def test_delete(world: World, refusal: Callable) -> None:
    arn = world.group_arn()
    listener = world.listener(world.balancer()["LoadBalancerArn"], arn)
    assert refusal(world.elb.delete_target_group, TargetGroupArn=arn).code == "ResourceInUse"
    world.elb.delete_listener(ListenerArn=listener["ListenerArn"])
    for _ in range(2):
        world.elb.delete_target_group(TargetGroupArn=arn)
    assert refusal(world.shown_group, arn=arn).code == "TargetGroupNotFound"


def test_pages(world: World, refusal: Callable) -> None:
    arns = {world.group_arn() for _ in range(5)}
    pages = list(world.elb.get_paginator("describe_target_groups").paginate(PaginationConfig={"PageSize": 2}))
    assert [len(page["TargetGroups"]) for page in pages] == [2, 2, 1]
    assert {group["TargetGroupArn"] for page in pages for group in page["TargetGroups"]} == arns
    assert refusal(world.elb.describe_target_groups, Marker="nonsense").code == "ValidationError"


# --- targets


def test_one_instance_on_two_ports_is_two_targets(world: World) -> None:
    arn, node = world.group_arn(), world.instances[0]
    world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": node}, {"Id": node, "Port": 81}, {"Id": node}])
    assert world.targets(arn) == [(node, 81), (node, 30080)]
    assert {row["HealthCheckPort"] for row in world.health(arn)} == {"81", "30080"}
    world.elb.deregister_targets(TargetGroupArn=arn, Targets=[{"Id": node, "Port": 81}])
    assert world.targets(arn) == [(node, 30080)]


def test_only_running_instances(world: World, refusal: Callable) -> None:
    arn = world.group_arn()
    good, stopped = (
        world.account.launch_instance(world.subnets[0], world.made["node_security_group"]) for _ in range(2)
    )
    world.ec2.stop_instances(InstanceIds=[stopped])

    def register(*ids: str) -> None:
        world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": target} for target in ids])

    down = refusal(lambda: register(good, stopped))
    assert down.code == "InvalidTarget"
    assert down.message == f"The following targets are not in a running state and cannot be registered: '{stopped}'"
    unknown = refusal(lambda: register(good, "i-00000000000000000"))
    assert unknown.code == "InvalidTarget"
    assert unknown.message == "The following targets do not exist: 'i-00000000000000000'"
    assert refusal(lambda: register("10.0.0.4")).code == "ValidationError"
    assert world.targets(arn) == []
    register(good)
    assert world.registered(arn) == [good]


def test_addresses(world: World, refusal: Callable) -> None:
    arn = world.group_arn(TargetType="ip")
    world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": "10.0.0.4"}, {"Id": "10.0.0.4", "Port": 81}])
    assert world.targets(arn) == [("10.0.0.4", 81), ("10.0.0.4", 30080)]
    assert (
        refusal(world.elb.register_targets, TargetGroupArn=arn, Targets=[{"Id": "8.8.8.8"}]).code == "ValidationError"
    )


def test_deregistering_a_stranger_succeeds(world: World) -> None:
    arn = world.group_arn()
    world.elb.deregister_targets(TargetGroupArn=arn, Targets=[{"Id": world.instances[0]}])
    assert world.targets(arn) == []


def test_health_says_whether_the_group_is_in_use(world: World) -> None:
    arn, node = world.group_arn(), world.instances[0]
    world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": node}])

    def health(**more: object) -> tuple:
        row = world.elb.describe_target_health(TargetGroupArn=arn, **more)["TargetHealthDescriptions"][0][
            "TargetHealth"
        ]
        return row["State"], row.get("Reason")

    assert health() == ("unused", "Target.NotInUse")
    world.listener(world.balancer()["LoadBalancerArn"], arn)
    assert health() == ("healthy", None)
    assert health(Targets=[{"Id": world.instances[1]}]) == ("unused", "Target.NotRegistered")
    world.ec2.stop_instances(InstanceIds=[node])
    assert health() == ("unused", "Target.InvalidState")


def test_terminated_instances_leave_every_group(world: World) -> None:
    groups = [world.group_arn() for _ in range(2)]
    node = world.account.launch_instance(world.subnets[0], world.made["node_security_group"])
    for arn in groups:
        world.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": node}, {"Id": node, "Port": 81}])
    world.ec2.terminate_instances(InstanceIds=[node])
    assert [world.targets(arn) for arn in groups] == [[], []]


def test_a_load_balancer_has_room_for_so_many_targets(world: World, control: Control, refusal: Callable) -> None:
    control.settings(targets_per_balancer=4)
    arn = world.balancer()["LoadBalancerArn"]
    first, second, alone = world.group_arn(), world.group_arn(Port=30081), world.group_arn(Port=30082)
    for port, group in ((80, first), (81, second)):
        world.listener(arn, group, Port=port)
    ids = [{"Id": instance} for instance in world.instances]

    def register(group: str, targets: list[dict[str, str]]) -> None:
        world.elb.register_targets(TargetGroupArn=group, Targets=targets)

    register(first, ids)
    register(first, ids)
    assert refusal(register, group=second, targets=ids).code == "TooManyTargets"
    assert world.registered(second) == []
    register(second, ids[:1])
    register(alone, ids)
    world.elb.deregister_targets(TargetGroupArn=first, Targets=ids[:2])
    register(second, ids)
