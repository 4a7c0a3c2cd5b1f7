"""Listeners of network load balancers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import seed
from conftest import REGION, World


@pytest.fixture
def arn(world: World) -> str:
    return world.balancer()["LoadBalancerArn"]


@pytest.mark.parametrize(
    ("listener", "group", "fits"),
    [
        ("TCP", "TCP", True),
        ("TCP", "TCP_UDP", True),
        ("TCP", "UDP", False),
        ("UDP", "UDP", True),
        ("UDP", "TCP", False),
        ("TCP_UDP", "TCP_UDP", True),
        ("TCP_UDP", "UDP", False),
    ],
)
def test_protocols_must_fit(shared: World, refusal: Callable, listener: str, group: str, fits: bool) -> None:
    arn, target = shared.balancer()["LoadBalancerArn"], shared.group_arn(Protocol=group)
    if fits:
        assert shared.listener(arn, target, Protocol=listener)["Protocol"] == listener
    else:
        assert refusal(shared.listener, balancer=arn, group=target, Protocol=listener).code == "IncompatibleProtocols"
        assert shared.elb.describe_listeners(LoadBalancerArn=arn)["Listeners"] == []


def test_one_listener_a_port(world: World, arn: str, refusal: Callable) -> None:
    group, other = world.group_arn(), world.group_arn()
    first = world.listener(arn, group)
    assert world.listener(arn, group)["ListenerArn"] == first["ListenerArn"]
    assert refusal(world.listener, balancer=arn, group=other).code == "DuplicateListener"
    assert refusal(world.listener, balancer=arn, group=other, Port=70000).code == "ValidationError"
    second = world.listener(arn, other, Port=81)["ListenerArn"]
    assert refusal(world.elb.modify_listener, ListenerArn=second, Port=80).code == "DuplicateListener"


def test_shape(world: World, arn: str) -> None:
    group = world.group_arn()
    made = world.listener(arn, group, Tags=[{"Key": "k", "Value": "v"}])
    shown = world.elb.describe_listeners(ListenerArns=[made["ListenerArn"]])["Listeners"][0]
    assert shown == made
    assert ":listener/net/" in made["ListenerArn"] and "SslPolicy" not in made
    assert made["DefaultActions"] == [
        {"Type": "forward", "TargetGroupArn": group, "ForwardConfig": {"TargetGroups": [{"TargetGroupArn": group}]}}
    ]
    tags = world.elb.describe_tags(ResourceArns=[made["ListenerArn"]])["TagDescriptions"][0]["Tags"]
    assert tags == [{"Key": "k", "Value": "v"}]


def test_the_default_rule_has_no_tags_of_its_own(world: World, arn: str, refusal: Callable) -> None:
    made = world.listener(arn, world.group_arn(), Tags=[{"Key": "k", "Value": "v"}])
    [rule] = world.elb.describe_rules(ListenerArn=made["ListenerArn"])["Rules"]
    assert rule["IsDefault"]
    [shown] = world.elb.describe_tags(ResourceArns=[rule["RuleArn"]])["TagDescriptions"]
    assert shown == {"ResourceArn": rule["RuleArn"], "Tags": []}
    stranger = rule["RuleArn"].rpartition("/")[0] + "/0123456789abcdef"
    assert refusal(world.elb.describe_tags, ResourceArns=[stranger]).code == "RuleNotFound"


def test_a_group_serves_one_load_balancer(world: World, arn: str, refusal: Callable) -> None:
    group, other = world.group_arn(), world.balancer()["LoadBalancerArn"]
    world.listener(arn, group)
    world.listener(arn, group, Port=81)
    assert world.shown_group(group)["LoadBalancerArns"] == [arn]
    assert refusal(world.listener, balancer=other, group=group).code == "TargetGroupAssociationLimit"
    world.elb.delete_load_balancer(LoadBalancerArn=arn)
    assert world.shown_group(group)["LoadBalancerArns"] == []
    world.listener(other, group)
    assert world.shown_group(group)["LoadBalancerArns"] == [other]


def test_modify_moves_the_association(world: World, arn: str, refusal: Callable) -> None:
    old, new = world.group_arn(), world.group_arn()
    listener = world.listener(arn, old)["ListenerArn"]

    def forward(group: str) -> dict:
        actions = [{"Type": "forward", "TargetGroupArn": group}]
        return world.elb.modify_listener(ListenerArn=listener, DefaultActions=actions)["Listeners"][0]

    assert forward(new)["DefaultActions"][0]["TargetGroupArn"] == new
    assert world.shown_group(old)["LoadBalancerArns"] == []
    assert world.shown_group(new)["LoadBalancerArns"] == [arn]
    world.elb.delete_target_group(TargetGroupArn=old)
    assert refusal(forward, group=old).code == "TargetGroupNotFound"
    assert refusal(world.elb.delete_target_group, TargetGroupArn=new).code == "ResourceInUse"


def test_deleting_one_of_two_listeners_keeps_the_association(world: World, arn: str, refusal: Callable) -> None:
    group = world.group_arn()
    listeners = [world.listener(arn, group, Port=port)["ListenerArn"] for port in (80, 81)]
    world.elb.delete_listener(ListenerArn=listeners[0])
    assert world.shown_group(group)["LoadBalancerArns"] == [arn]
    assert refusal(world.elb.describe_listeners, ListenerArns=listeners).code == "ListenerNotFound"
    world.elb.delete_listener(ListenerArn=listeners[1])
    assert world.shown_group(group)["LoadBalancerArns"] == []


def test_modify_protocol_and_port(world: World, arn: str, refusal: Callable) -> None:
    both = world.group_arn(Protocol="TCP_UDP")
    listener = world.listener(arn, both)["ListenerArn"]
    shown = world.elb.modify_listener(ListenerArn=listener, Protocol="UDP", Port=53)["Listeners"][0]
    assert (shown["Protocol"], shown["Port"]) == ("UDP", 53)
    assert refusal(world.elb.modify_listener, ListenerArn=listener, Protocol="HTTP").code == "ValidationError"
    assert refusal(world.elb.modify_listener, ListenerArn=listener, Protocol="TLS").code == "ValidationError"


POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"


@pytest.fixture
def certificates(world: World) -> list[str]:
    acm = seed.client("acm", world.endpoint, world.account_id, REGION)
    return [acm.request_certificate(DomainName=f"{name}.example.org")["CertificateArn"] for name in "abc"]


def named(*arns: str) -> list[dict[str, str]]:
    return [{"CertificateArn": arn} for arn in arns]


def test_tls(world: World, arn: str, certificates: list[str], refusal: Callable) -> None:
    first, second, _ = certificates
    tls = {"balancer": arn, "group": world.group_arn(), "Protocol": "TLS", "Port": 443}
    certified = {"Certificates": named(first)}
    assert refusal(world.listener, **tls).code == "ValidationError"
    assert refusal(world.listener, **tls, Certificates=named(first[:-4] + "0000")).code == "CertificateNotFound"
    assert refusal(world.listener, **tls, Certificates=named(first, second)).code == "TooManyCertificates"
    assert refusal(world.listener, **tls, **certified, SslPolicy="mine").code == "SSLPolicyNotFound"
    assert refusal(world.listener, **tls, **certified, AlpnPolicy=["HTTP9"]).code == "ALPNPolicyNotFound"
    made = world.listener(**tls, **certified, SslPolicy=POLICY, AlpnPolicy=["HTTP2Preferred"])
    assert (made["Certificates"], made["AlpnPolicy"]) == (named(first), ["HTTP2Preferred"])
    shown = world.elb.modify_listener(
        ListenerArn=made["ListenerArn"], Certificates=named(second), AlpnPolicy=["HTTP1Only"]
    )["Listeners"][0]
    assert (shown["Certificates"], shown["AlpnPolicy"]) == (named(second), ["HTTP1Only"])
    assert shown["SslPolicy"] == POLICY
    plain = {"balancer": arn, "group": tls["group"], "Port": 80}
    for extra in (certified, {"SslPolicy": POLICY}, {"AlpnPolicy": ["HTTP1Only"]}):
        assert refusal(world.listener, **plain, **extra).code == "ValidationError"


def test_to_tls_and_back(world: World, arn: str, certificates: list[str], refusal: Callable) -> None:
    """Certificate and policy come in the same call, and go with TLS."""
    listener = world.listener(arn, world.group_arn())["ListenerArn"]
    modify, tls = world.elb.modify_listener, {"ListenerArn": listener, "Protocol": "TLS"}
    assert refusal(modify, **tls, SslPolicy=POLICY).code == "ValidationError"
    assert refusal(modify, **tls, Certificates=named(certificates[0])).code == "ValidationError"
    shown = modify(**tls, Certificates=named(certificates[0]), SslPolicy=POLICY)["Listeners"][0]
    assert (shown["Protocol"], shown["Certificates"]) == ("TLS", named(certificates[0]))
    world.elb.add_listener_certificates(ListenerArn=listener, Certificates=named(certificates[1]))
    shown = modify(ListenerArn=listener, Protocol="TCP")["Listeners"][0]
    assert shown["Protocol"] == "TCP" and not {"Certificates", "SslPolicy", "AlpnPolicy"} & shown.keys()
    assert refusal(modify, **tls).code == "ValidationError"
    modify(**tls, Certificates=named(certificates[0]), SslPolicy=POLICY)
    assert world.elb.describe_listener_certificates(ListenerArn=listener)["Certificates"] == [
        {"CertificateArn": certificates[0], "IsDefault": True}
    ]


def test_more_certificates(world: World, arn: str, certificates: list[str], refusal: Callable) -> None:
    first, second, third = certificates
    group = world.group_arn()
    tls = {"Protocol": "TLS", "Port": 443, "Certificates": named(first)}
    listener = world.listener(arn, group, **tls)["ListenerArn"]
    add, remove = world.elb.add_listener_certificates, world.elb.remove_listener_certificates

    def shown() -> list[tuple[str, bool]]:
        rows = world.elb.describe_listener_certificates(ListenerArn=listener)["Certificates"]
        return [(row["CertificateArn"], row["IsDefault"]) for row in rows]

    for change in (add, remove):
        assert refusal(change, ListenerArn=listener, Certificates=named(second, third)).code == "ValidationError"
    for _ in range(2):
        add(ListenerArn=listener, Certificates=named(second))
        add(ListenerArn=listener, Certificates=named(third))
        assert shown() == [(first, True), (second, False), (third, False)]
    assert refusal(add, ListenerArn=listener, Certificates=named(first[:-4] + "0000")).code == "CertificateNotFound"
    assert refusal(remove, ListenerArn=listener, Certificates=named(first)).code == "OperationNotPermitted"
    remove(ListenerArn=listener, Certificates=named(second))
    assert shown() == [(first, True), (third, False)]
    add(ListenerArn=listener, Certificates=named(first))
    assert shown() == [(first, True), (third, False), (first, False)]
    acm = seed.client("acm", world.endpoint, world.account_id, REGION)
    many = [acm.request_certificate(DomainName=f"{n}.example.net")["CertificateArn"] for n in range(24)]
    for each in many[:23]:
        add(ListenerArn=listener, Certificates=named(each))
    assert refusal(add, ListenerArn=listener, Certificates=named(many[23])).code == "TooManyCertificates"
    plain = world.listener(arn, group)["ListenerArn"]
    assert refusal(add, ListenerArn=plain, Certificates=named(second)).code == "ValidationError"


def test_attributes(world: World, arn: str, refusal: Callable) -> None:
    tcp = world.listener(arn, world.group_arn())["ListenerArn"]
    udp = world.listener(arn, world.group_arn(Protocol="UDP"), Protocol="UDP", Port=53)["ListenerArn"]

    def attribute(value: str, key: str = "tcp.idle_timeout.seconds") -> list[dict[str, str]]:
        return [{"Key": key, "Value": value}]

    modify, describe = world.elb.modify_listener_attributes, world.elb.describe_listener_attributes
    assert describe(ListenerArn=tcp)["Attributes"] == attribute("350")
    assert describe(ListenerArn=udp)["Attributes"] == []
    assert modify(ListenerArn=tcp, Attributes=attribute("60"))["Attributes"] == attribute("60")
    assert describe(ListenerArn=tcp)["Attributes"] == attribute("60")
    for value in ("59", "6001", "long"):
        assert refusal(modify, ListenerArn=tcp, Attributes=attribute(value)).code == "ValidationError"
    foreign = attribute("60", "routing.http.response.server.enabled")
    assert refusal(modify, ListenerArn=tcp, Attributes=foreign).code == "InvalidConfigurationRequest"
    assert refusal(modify, ListenerArn=udp, Attributes=attribute("60")).code == "InvalidConfigurationRequest"


def test_ipv6_targets_need_a_dualstack_load_balancer(world: World, arn: str, refusal: Callable) -> None:
    group = world.group_arn(IpAddressType="ipv6")
    assert world.shown_group(group)["IpAddressType"] == "ipv6"
    assert refusal(world.listener, balancer=arn, group=group).code == "InvalidConfigurationRequest"
    world.account.add_ipv6(world.vpc, world.subnets)
    world.elb.set_ip_address_type(LoadBalancerArn=arn, IpAddressType="dualstack")
    world.listener(arn, group)


def test_fifty_listeners(world: World, arn: str, refusal: Callable) -> None:
    group = world.group_arn()
    for port in range(1, 51):
        world.listener(arn, group, Port=port)
    assert refusal(world.listener, balancer=arn, group=group, Port=51).code == "TooManyListeners"
    pages = list(
        world.elb.get_paginator("describe_listeners").paginate(LoadBalancerArn=arn, PaginationConfig={"PageSize": 20})
    )
    assert [len(page["Listeners"]) for page in pages] == [20, 20, 10]
