"""Load balancers answer as AWS's network load balancers do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from ipaddress import IPv6Network
from itertools import islice

import pytest
from conftest import Control, World


def test_names_and_shape(world: World) -> None:
    lb = world.balancer(Name="shop", SecurityGroups=[world.security_group()])
    identity = re.fullmatch(
        r"arn:aws:elasticloadbalancing:us-east-1:\d{12}:loadbalancer/net/shop/([0-9a-f]{16})", lb["LoadBalancerArn"]
    )
    assert identity
    assert lb["DNSName"] == f"shop-{identity[1]}.elb.us-east-1.amazonaws.com"
    assert lb["State"]["Code"] == "provisioning"
    assert lb["EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic"] == "on"
    shown = world.shown_balancer(lb["LoadBalancerArn"])
    assert shown["State"]["Code"] == "active"
    assert shown["DNSName"] == lb["DNSName"]
    assert [zone["ZoneName"] for zone in shown["AvailabilityZones"]] == world.made["zones"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Name": "n" * 33}, "ValidationError"),
        ({"Name": "a_b"}, "ValidationError"),
        ({"Name": "-ab"}, "ValidationError"),
        ({"Name": "ab-"}, "ValidationError"),
        ({"Name": "internal-ab"}, "ValidationError"),
        ({"Scheme": "secret"}, "ValidationError"),
        ({"Subnets": []}, "ValidationError"),
        ({"Subnets": ["subnet-00000000000000000"]}, "SubnetNotFound"),
        ({"SecurityGroups": ["sg-00000000000000000"]}, "InvalidSecurityGroup"),
        ({"Tags": [{"Key": f"k{n}", "Value": ""} for n in range(51)]}, "TooManyTags"),
        ({"Tags": [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]}, "DuplicateTagKeys"),
        ({"Tags": [{"Key": "aws:k", "Value": "1"}]}, "ValidationError"),
        ({"Tags": [{"Key": "k", "Value": "1,2"}]}, "ValidationError"),
    ],
)
def test_refuses_on_create(shared: World, refusal: Callable, change: dict, code: str) -> None:
    assert refusal(shared.balancer, **change).code == code
    assert shared.elb.describe_load_balancers()["LoadBalancers"] == []


def test_a_name_of_32_characters_is_fine(world: World) -> None:
    assert world.balancer(Name="n" * 32)["LoadBalancerName"] == "n" * 32


def test_one_subnet_a_zone_and_one_vpc(world: World, refusal: Callable) -> None:
    twin = world.account.add_subnet(world.vpc, "us-east-1a", "10.0.64.0/20")
    same_zone = refusal(world.balancer, Subnets=[world.subnets[0], twin])
    assert same_zone.code == "InvalidConfigurationRequest"
    assert "multiple subnets in the same Availability Zone" in same_zone.message
    elsewhere = world.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    foreign = world.account.add_subnet(elsewhere, "us-east-1b", "10.9.0.0/20")
    assert refusal(world.balancer, Subnets=[world.subnets[0], foreign]).code == "InvalidConfigurationRequest"
    assert refusal(world.balancer, Subnets=[foreign], Scheme="internet-facing").code == "InvalidSubnet"
    assert world.balancer(Subnets=[foreign])["VpcId"] == elsewhere


def test_same_request_again_is_the_same_load_balancer(world: World, refusal: Callable) -> None:
    first = world.balancer(Name="twice")
    assert world.balancer(Name="twice")["LoadBalancerArn"] == first["LoadBalancerArn"]
    assert refusal(world.balancer, Name="twice", Scheme="internet-facing").code == "DuplicateLoadBalancerName"
    assert len(world.elb.describe_load_balancers()["LoadBalancers"]) == 1


def test_elastic_ips_are_checked_and_shown(world: World, refusal: Callable) -> None:
    address = world.ec2.allocate_address(Domain="vpc")

    def create(allocation: str) -> dict:
        mapping = {"SubnetId": world.subnets[0], "AllocationId": allocation}
        return world.elb.create_load_balancer(Name="eip", Type="network", SubnetMappings=[mapping])["LoadBalancers"][0]

    assert refusal(create, allocation="eipalloc-00000000000000000").code == "AllocationIdNotFound"
    made = create(address["AllocationId"])
    for shown in (made, world.shown_balancer(made["LoadBalancerArn"])):
        assert shown["AvailabilityZones"][0]["LoadBalancerAddresses"] == [
            {"AllocationId": address["AllocationId"], "IpAddress": address["PublicIp"]}
        ]


def test_prefixes_for_source_nat_are_checked_and_shown(world: World, refusal: Callable) -> None:
    world.ec2.associate_vpc_cidr_block(VpcId=world.vpc, AmazonProvidedIpv6CidrBlock=True)
    [vpc] = world.ec2.describe_vpcs(VpcIds=[world.vpc])["Vpcs"]
    network = IPv6Network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
    first, second = world.subnets[:2]
    ranges = list(islice(network.subnets(new_prefix=64), 2))
    for subnet, part in zip((first, second), ranges, strict=True):
        world.ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=str(part))
    chosen = str(next(ranges[0].subnets(new_prefix=80)))
    mappings = [
        {"SubnetId": first, "SourceNatIpv6Prefix": chosen},
        {"SubnetId": second, "SourceNatIpv6Prefix": "auto_assigned"},
    ]
    asked = {"Subnets": [], "SubnetMappings": mappings, "IpAddressType": "dualstack"}
    on = {"EnablePrefixForIpv6SourceNat": "on"}
    assert refusal(world.balancer, **asked).code == "InvalidConfigurationRequest"
    assert refusal(world.balancer, **{**asked, **on, "IpAddressType": "ipv4"}).code == "InvalidConfigurationRequest"

    made = world.balancer(**asked, **on)
    shown = world.shown_balancer(made["LoadBalancerArn"])
    assert made["EnablePrefixForIpv6SourceNat"] == shown["EnablePrefixForIpv6SourceNat"] == "on"
    [[theirs], [given]] = [zone["SourceNatIpv6Prefixes"] for zone in shown["AvailabilityZones"]]
    assert theirs == chosen
    assert IPv6Network(given).subnet_of(ranges[1]) and IPv6Network(given).prefixlen == 80

    plain = [{"SubnetId": subnet} for subnet in (first, second)]
    world.elb.set_subnets(
        LoadBalancerArn=made["LoadBalancerArn"], SubnetMappings=plain, EnablePrefixForIpv6SourceNat="off"
    )
    shown = world.shown_balancer(made["LoadBalancerArn"])
    assert shown["EnablePrefixForIpv6SourceNat"] == "off"
    assert not any(zone.get("SourceNatIpv6Prefixes") for zone in shown["AvailabilityZones"])


def test_capacity_is_reserved_and_given_back(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]
    assert world.elb.describe_capacity_reservation(LoadBalancerArn=arn)["CapacityReservationState"] == []
    assert refusal(world.elb.modify_capacity_reservation, LoadBalancerArn=arn).code == "ValidationError"
    wanted = {"CapacityUnits": 300}
    world.elb.modify_capacity_reservation(LoadBalancerArn=arn, MinimumLoadBalancerCapacity=wanted)
    shown = world.elb.describe_capacity_reservation(LoadBalancerArn=arn)
    assert shown["MinimumLoadBalancerCapacity"] == wanted
    zones = {row["AvailabilityZone"]: row["State"]["Code"] for row in shown["CapacityReservationState"]}
    assert zones == dict.fromkeys(world.made["zones"], "provisioned")
    assert sum(row["EffectiveCapacityUnits"] for row in shown["CapacityReservationState"]) == 300
    world.elb.modify_capacity_reservation(LoadBalancerArn=arn, ResetCapacityReservation=True)
    assert "MinimumLoadBalancerCapacity" not in world.elb.describe_capacity_reservation(LoadBalancerArn=arn)


def test_describe_fails_for_one_unknown(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]
    describe = world.elb.describe_load_balancers
    assert refusal(describe, LoadBalancerArns=[arn, arn[:-4] + "0000"]).code == "LoadBalancerNotFound"
    assert refusal(describe, Names=["nobody"]).code == "LoadBalancerNotFound"
    assert refusal(describe, PageSize=401).code == "ValidationError"
    assert refusal(describe, Marker="nonsense").code == "ValidationError"


def test_pages(world: World) -> None:
    arns = {world.balancer(Subnets=world.subnets[:1])["LoadBalancerArn"] for _ in range(55)}
    first = world.elb.describe_load_balancers()
    assert {lb["LoadBalancerArn"] for lb in first["LoadBalancers"]} == arns and "NextMarker" not in first
    pages = list(world.elb.get_paginator("describe_load_balancers").paginate(PaginationConfig={"PageSize": 25}))
    assert [len(page["LoadBalancers"]) for page in pages] == [25, 25, 5]
    assert {lb["LoadBalancerArn"] for page in pages for lb in page["LoadBalancers"]} == arns


def test_attributes_of_a_network_load_balancer(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]
    shown = {
        a["Key"]: a["Value"] for a in world.elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    }
    assert shown["dns_record.client_routing_policy"] == "any_availability_zone"
    assert shown["load_balancing.cross_zone.enabled"] == "false"
    assert shown["ipv6.deny_all_igw_traffic"] == "true"
    wrong = [{"Key": "load_balancing.cross_zone.enabled", "Value": "yes"}]
    assert (
        refusal(world.elb.modify_load_balancer_attributes, LoadBalancerArn=arn, Attributes=wrong).code
        == "ValidationError"
    )


def test_secondary_addresses_become_more_and_never_fewer(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]
    key = "secondary_ips.auto_assigned.per_subnet"

    def asked(value: str) -> dict:
        return {"LoadBalancerArn": arn, "Attributes": [{"Key": key, "Value": value}]}

    for value in ("1", "3", "3"):
        world.elb.modify_load_balancer_attributes(**asked(value))
    wrong = {value: refusal(world.elb.modify_load_balancer_attributes, **asked(value)).code for value in ("2", "0", "8")}
    assert wrong == {"2": "InvalidConfigurationRequest", "0": "InvalidConfigurationRequest", "8": "ValidationError"}
    shown = world.elb.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    assert {"Key": key, "Value": "3"} in shown


def test_deletion_protection_and_absent_ones(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]

    def protect(value: str) -> None:
        attributes = [{"Key": "deletion_protection.enabled", "Value": value}]
        world.elb.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=attributes)

    protect("true")
    assert refusal(world.elb.delete_load_balancer, LoadBalancerArn=arn).code == "OperationNotPermitted"
    protect("false")
    world.elb.delete_load_balancer(LoadBalancerArn=arn)
    world.elb.delete_load_balancer(LoadBalancerArn=arn)
    assert world.elb.describe_load_balancers()["LoadBalancers"] == []


def test_set_subnets_down_to_one_zone_and_back(world: World, refusal: Callable) -> None:
    arn = world.balancer()["LoadBalancerArn"]

    def to(*subnets: str) -> list[str]:
        answer = world.elb.set_subnets(LoadBalancerArn=arn, Subnets=list(subnets))
        return [zone["SubnetId"] for zone in answer["AvailabilityZones"]]

    assert to(world.subnets[1]) == [world.subnets[1]]
    assert [zone["SubnetId"] for zone in world.shown_balancer(arn)["AvailabilityZones"]] == [world.subnets[1]]
    twin = world.account.add_subnet(world.vpc, "us-east-1b", "10.0.64.0/20")
    swap = refusal(world.elb.set_subnets, LoadBalancerArn=arn, Subnets=[twin])
    assert swap.code == "InvalidConfigurationRequest"
    assert "already associated with the load balancer" in swap.message and "us-east-1b" in swap.message
    assert to(world.subnets[0]) == [world.subnets[0]]
    assert to(world.subnets[0], twin) == [world.subnets[0], twin]


def test_security_groups_can_be_changed_only_if_there_were_some(world: World, refusal: Callable) -> None:
    first, second = world.security_group(), world.security_group()
    bare, guarded = world.balancer()["LoadBalancerArn"], world.balancer(SecurityGroups=[first])["LoadBalancerArn"]
    change = world.elb.set_security_groups
    assert refusal(change, LoadBalancerArn=bare, SecurityGroups=[first]).code == "InvalidConfigurationRequest"
    assert change(LoadBalancerArn=guarded, SecurityGroups=[second])["SecurityGroupIds"] == [second]
    assert world.shown_balancer(guarded)["SecurityGroups"] == [second]
    assert refusal(change, LoadBalancerArn=guarded, SecurityGroups=[]).code == "ValidationError"


def test_network_interfaces_carry_the_groups_and_follow_the_subnets(world: World) -> None:
    group = world.security_group()
    arn = world.balancer(SecurityGroups=[group])["LoadBalancerArn"]

    def interfaces() -> list[dict]:
        return world.ec2.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [group]}])[
            "NetworkInterfaces"
        ]

    assert {i["SubnetId"] for i in interfaces()} == set(world.subnets)
    assert {i["Description"] for i in interfaces()} == {"ELB " + arn.split(":loadbalancer/")[1]}
    world.elb.set_subnets(LoadBalancerArn=arn, Subnets=world.subnets[:1])
    assert [i["SubnetId"] for i in interfaces()] == world.subnets[:1]
    other = world.security_group()
    world.elb.set_security_groups(LoadBalancerArn=arn, SecurityGroups=[other])
    assert interfaces() == []
    world.ec2.delete_security_group(GroupId=group)


def test_provisioning_takes_the_time_asked_for(world: World, control: Control) -> None:
    control.settings(provision_seconds=0.6)
    arn = world.balancer()["LoadBalancerArn"]
    assert world.shown_balancer(arn)["State"]["Code"] == "provisioning"
    time.sleep(0.7)
    assert world.shown_balancer(arn)["State"]["Code"] == "active"


def test_the_next_ones_fail_as_often_as_asked_for(world: World, control: Control) -> None:
    control.settings(provision_failures=1)
    first, second = (world.balancer()["LoadBalancerArn"] for _ in range(2))
    assert world.shown_balancer(first)["State"] == {"Code": "failed", "Reason": "Internal error"}
    assert world.shown_balancer(second)["State"]["Code"] == "active"
    assert control.get("settings")["provision_failures"] == 0


def test_tags_up_to_fifty_all_resources_or_none(world: World, refusal: Callable) -> None:
    arn, group = world.balancer()["LoadBalancerArn"], world.group_arn()

    def tags(resource: str) -> int:
        return len(world.elb.describe_tags(ResourceArns=[resource])["TagDescriptions"][0]["Tags"])

    world.elb.add_tags(ResourceArns=[arn], Tags=[{"Key": f"k{n}", "Value": ""} for n in range(49)])
    world.elb.add_tags(ResourceArns=[arn], Tags=[{"Key": "k49", "Value": ""}])
    assert (
        refusal(world.elb.add_tags, ResourceArns=[group, arn], Tags=[{"Key": "one more", "Value": ""}]).code
        == "TooManyTags"
    )
    assert (tags(arn), tags(group)) == (50, 0)
    world.elb.add_tags(ResourceArns=[arn], Tags=[{"Key": "k1", "Value": "changed"}])
    assert refusal(world.elb.describe_tags, ResourceArns=[arn] * 21).code == "ValidationError"
    assert refusal(world.elb.describe_tags, ResourceArns=[arn, arn[:-4] + "0000"]).code == "LoadBalancerNotFound"


def test_limits_of_the_account(world: World, control: Control) -> None:
    def limits() -> dict[str, str]:
        return {limit["Name"]: limit["Max"] for limit in world.elb.describe_account_limits()["Limits"]}

    assert limits()["network-load-balancers"] == "50"
    assert limits()["application-load-balancers"] == "20"
    control.settings(account_limits={"network-load-balancers": 1})
    assert limits()["network-load-balancers"] == "1" and limits()["target-groups"] == "3000"
    page = world.elb.describe_account_limits(PageSize=1)
    assert len(page["Limits"]) == 1 and page["NextMarker"]
