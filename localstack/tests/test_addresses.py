"""Addresses, IP address types, source NAT and capacity of network load balancers, refused and shown as AWS does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Control, World

SOURCE_NAT = "EnablePrefixForIpv6SourceNat"


@pytest.fixture
def ipv6(world: World) -> list[str]:
    """What the IPv6 ranges of the first two subnets begin with; the third has none."""
    return world.account.add_ipv6(world.vpc, world.subnets[:2])


def mapped(world: World, *mappings: dict[str, str], **more: Any) -> dict[str, Any]:
    """CreateLoadBalancer's arguments for the first subnets, each with what is chosen in it."""
    rows = [{"SubnetId": subnet, **mapping} for subnet, mapping in zip(world.subnets, mappings, strict=False)]
    return {"Name": world.name("nlb"), "Type": "network", "Scheme": "internal", "SubnetMappings": rows, **more}


def create(world: World, *mappings: dict[str, str], **more: Any) -> dict[str, Any]:
    return world.elb.create_load_balancer(**mapped(world, *mappings, **more))["LoadBalancers"][0]


def addresses(shown: dict[str, Any]) -> list[list[dict[str, str]]]:
    return [zone["LoadBalancerAddresses"] for zone in shown["AvailabilityZones"]]


def test_an_address_is_one_load_balancers(world: World, refusal: Callable) -> None:
    eip = {"AllocationId": world.ec2.allocate_address(Domain="vpc")["AllocationId"]}
    facing = {"Scheme": "internet-facing"}
    first = create(world, eip, **facing)
    assert refusal(create, world=world, **mapped(world, eip, **facing)).code == "ResourceInUse"
    world.elb.delete_load_balancer(LoadBalancerArn=first["LoadBalancerArn"])
    create(world, eip, **facing)
    assert refusal(world.elb.create_load_balancer, **mapped(world, eip)).code == "InvalidConfigurationRequest"


def test_private_addresses_are_internal_and_lie_in_their_subnets(world: World, refusal: Callable) -> None:
    made = create(world, {"PrivateIPv4Address": "10.0.0.9"}, {"PrivateIPv4Address": "10.0.16.9"})
    expected = [[{"PrivateIPv4Address": "10.0.0.9"}], [{"PrivateIPv4Address": "10.0.16.9"}]]
    assert addresses(made) == addresses(world.shown_balancer(made["LoadBalancerArn"])) == expected
    for mapping, more in [
        ({"PrivateIPv4Address": "10.0.16.10"}, {}),
        ({"PrivateIPv4Address": "10.0.0.10"}, {"Scheme": "internet-facing"}),
    ]:
        refused = refusal(world.elb.create_load_balancer, **mapped(world, mapping, **more))
        assert refused.code == "InvalidConfigurationRequest"


@pytest.mark.usefixtures("ipv6")
def test_dualstack_needs_ipv6_in_every_subnet(world: World, refusal: Callable) -> None:
    made = create(world, {}, {}, IpAddressType="dualstack")
    assert world.shown_balancer(made["LoadBalancerArn"])["IpAddressType"] == "dualstack"
    every = mapped(world, {}, {}, {}, IpAddressType="dualstack")
    assert refusal(world.elb.create_load_balancer, **every).code == "InvalidSubnet"
    plain = create(world, {}, {}, {})["LoadBalancerArn"]
    change = world.elb.set_ip_address_type
    assert refusal(change, LoadBalancerArn=plain, IpAddressType="dualstack").code == "InvalidSubnet"
    change(LoadBalancerArn=made["LoadBalancerArn"], IpAddressType="ipv4")
    assert world.shown_balancer(made["LoadBalancerArn"])["IpAddressType"] == "ipv4"


def test_ipv6_addresses_and_prefixes(world: World, ipv6: list[str], refusal: Callable) -> None:
    address, prefix = f"{ipv6[0]}::9", f"{ipv6[0]}:8000::/80"
    both = {"IPv6Address": address, "SourceNatIpv6Prefix": prefix}
    made = create(world, both, {}, IpAddressType="dualstack", **{SOURCE_NAT: "on"})
    shown = world.shown_balancer(made["LoadBalancerArn"])
    assert shown[SOURCE_NAT] == "on"
    assert addresses(shown) == [[{"IPv6Address": address}], []]
    first, second = (zone["SourceNatIpv6Prefixes"] for zone in shown["AvailabilityZones"])
    assert first == [prefix] and second[0].endswith("/80")
    for mapping, more in [
        ({"IPv6Address": f"{ipv6[1]}::9"}, {"IpAddressType": "dualstack"}),
        ({"IPv6Address": f"{ipv6[0]}::8"}, {}),
        ({"SourceNatIpv6Prefix": f"{ipv6[0]}::/80"}, {"IpAddressType": "dualstack"}),
        ({"SourceNatIpv6Prefix": f"{ipv6[0]}::/96"}, {"IpAddressType": "dualstack", SOURCE_NAT: "on"}),
        ({}, {SOURCE_NAT: "on"}),
    ]:
        refused = refusal(world.elb.create_load_balancer, **mapped(world, mapping, **more))
        assert refused.code == "InvalidConfigurationRequest", mapping


@pytest.mark.usefixtures("ipv6")
def test_udp_for_both_families_needs_source_nat(world: World, refusal: Callable) -> None:
    arn = create(world, {}, {}, IpAddressType="dualstack")["LoadBalancerArn"]
    group = world.group_arn(Protocol="UDP", HealthCheckProtocol="TCP", HealthCheckPort="80")
    listener = {"balancer": arn, "group": group, "Protocol": "UDP", "Port": 53}
    assert refusal(world.listener, **listener).code == "InvalidConfigurationRequest"
    subnets = [{"SubnetId": subnet} for subnet in world.subnets[:2]]
    answer = world.elb.set_subnets(LoadBalancerArn=arn, SubnetMappings=subnets, **{SOURCE_NAT: "on"})
    assert answer[SOURCE_NAT] == "on"
    world.listener(**listener)
    off = {"LoadBalancerArn": arn, "SubnetMappings": subnets, SOURCE_NAT: "off"}
    assert refusal(world.elb.set_subnets, **off).code == "InvalidConfigurationRequest"
    world.elb.set_subnets(**off, IpAddressType="ipv4")
    back = world.elb.set_ip_address_type
    refused = refusal(back, LoadBalancerArn=arn, IpAddressType="dualstack")
    assert refused.code == "InvalidConfigurationRequest"
    world.elb.set_subnets(LoadBalancerArn=arn, SubnetMappings=subnets, IpAddressType="dualstack", **{SOURCE_NAT: "on"})


def test_the_address_in_an_enabled_zone_stays(world: World, refusal: Callable) -> None:
    chosen = {"PrivateIPv4Address": "10.0.0.9"}
    arn = create(world, chosen)["LoadBalancerArn"]

    def to(*mappings: dict[str, str]) -> Any:
        rows = mapped(world, *mappings)["SubnetMappings"]
        return world.elb.set_subnets(LoadBalancerArn=arn, SubnetMappings=rows)

    assert len(to(chosen, {})["AvailabilityZones"]) == 2
    for other in ({"PrivateIPv4Address": "10.0.0.10"}, {}):
        rows = mapped(world, other)["SubnetMappings"]
        refused = refusal(world.elb.set_subnets, LoadBalancerArn=arn, SubnetMappings=rows)
        assert refused.code == "InvalidConfigurationRequest"


def test_inbound_rules_on_private_link_are_kept(world: World) -> None:
    group = world.security_group()
    arn = world.balancer(SecurityGroups=[group])["LoadBalancerArn"]
    key = "EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic"
    for value in ("off", "on"):
        world.elb.set_security_groups(LoadBalancerArn=arn, SecurityGroups=[group], **{key: value})
        assert world.shown_balancer(arn)[key] == value


def test_capacity_is_reserved_once_the_load_balancer_is_active(
    world: World, control: Control, refusal: Callable
) -> None:
    control.settings(provision_seconds=30)
    reserve = {"LoadBalancerArn": world.balancer()["LoadBalancerArn"], "ResetCapacityReservation": True}
    assert refusal(world.elb.modify_capacity_reservation, **reserve).code == "InvalidConfigurationRequest"
