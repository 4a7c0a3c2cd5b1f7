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


def test_tls(world: World, arn: str, refusal: Callable) -> None:
    acm = seed.client("acm", world.endpoint, world.account_id, REGION)
    first, second = (acm.request_certificate(DomainName=f"{n}.example.org")["CertificateArn"] for n in "ab")
    group = world.group_arn()
    tls = {"balancer": arn, "group": group, "Protocol": "TLS", "Port": 443}
    certified = {"Certificates": [{"CertificateArn": first}]}
    assert refusal(world.listener, **tls).code == "ValidationError"
    assert (
        refusal(world.listener, **tls, Certificates=[{"CertificateArn": first[:-4] + "0000"}]).code
        == "CertificateNotFound"
    )
    assert refusal(world.listener, **tls, **certified, SslPolicy="mine").code == "SSLPolicyNotFound"
    made = world.listener(
        **tls, **certified, SslPolicy="ELBSecurityPolicy-TLS13-1-2-2021-06", AlpnPolicy=["HTTP2Preferred"]
    )
    assert (made["Certificates"], made["AlpnPolicy"]) == ([{"CertificateArn": first}], ["HTTP2Preferred"])
    shown = world.elb.modify_listener(
        ListenerArn=made["ListenerArn"], Certificates=[{"CertificateArn": second}], AlpnPolicy=["HTTP1Only"]
    )["Listeners"][0]
    assert (shown["Certificates"], shown["AlpnPolicy"]) == ([{"CertificateArn": second}], ["HTTP1Only"])
    assert shown["SslPolicy"] == "ELBSecurityPolicy-TLS13-1-2-2021-06"


def test_fifty_listeners(world: World, arn: str, refusal: Callable) -> None:
    group = world.group_arn()
    for port in range(1, 51):
        world.listener(arn, group, Port=port)
    assert refusal(world.listener, balancer=arn, group=group, Port=51).code == "TooManyListeners"
    pages = list(
        world.elb.get_paginator("describe_listeners").paginate(LoadBalancerArn=arn, PaginationConfig={"PageSize": 20})
    )
    assert [len(page["Listeners"]) for page in pages] == [20, 20, 10]
