"""seed.py makes an account like that of an EKS cluster."""

from __future__ import annotations

from collections import Counter

import seed
from conftest import REGION, World


def test_workers_spread_over_three_zones(world: World) -> None:
    zones = Counter(i["Placement"]["AvailabilityZone"] for i in world.account.instances())
    assert zones == {f"{REGION}{letter}": 1 for letter in "abc"}


def test_scaling_keeps_zones_even(world: World) -> None:
    def spread() -> list[int]:
        return sorted(Counter(i["AvailabilityZone"] for i in world.group()["Instances"]).values())

    world.account.scale("workers", 8)
    assert spread() == [2, 3, 3]
    world.account.scale("workers", 4)
    assert spread() == [1, 1, 2]


def test_subnets_are_tagged_for_either_scheme_and_reach_the_internet(world: World) -> None:
    for role in ("elb", "internal-elb"):
        found = world.ec2.describe_subnets(Filters=[{"Name": f"tag:kubernetes.io/role/{role}", "Values": ["1"]}])
        assert sorted(s["SubnetId"] for s in found["Subnets"]) == sorted(world.subnets)
    tables = world.ec2.describe_route_tables(Filters=[{"Name": "association.subnet-id", "Values": [world.subnets[0]]}])[
        "RouteTables"
    ]
    assert any(route.get("GatewayId", "").startswith("igw-") for route in tables[0]["Routes"])
    assert world.balancer(Scheme="internet-facing")["Scheme"] == "internet-facing"


def test_group_is_an_eks_managed_node_group(world: World) -> None:
    group = world.group()
    tags = {tag["Key"]: tag["Value"] for tag in group["Tags"]}
    assert tags["eks:cluster-name"] == "demo" and tags["eks:nodegroup-name"] == "workers"
    assert tags["kubernetes.io/cluster/demo"] == "owned"
    assert (group["MinSize"], group["MaxSize"], group["HealthCheckType"]) == (0, 200, "EC2")


def test_node_security_group_is_found_by_tag_and_vpc(world: World) -> None:
    filters = [
        {"Name": "tag:kubernetes.io/cluster/demo", "Values": ["owned"]},
        {"Name": "vpc-id", "Values": [world.vpc]},
    ]
    found = world.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    assert [group["GroupId"] for group in found] == [world.made["node_security_group"]]
    filters[1]["Values"] = ["vpc-00000000000000000"]
    assert world.ec2.describe_security_groups(Filters=filters)["SecurityGroups"] == []


def test_node_manifests(world: World, endpoint: str) -> None:
    alone = world.account.launch_instance(world.subnets[0], world.made["node_security_group"])
    nodes = seed.node_manifests(endpoint, world.account_id, REGION)
    by_provider = {node["spec"]["providerID"].rsplit("/", 1)[-1]: node for node in nodes}
    assert sorted(by_provider) == sorted([*world.instances, alone])
    assert len({node["metadata"]["name"] for node in nodes}) == 4
    for instance in world.account.instances():
        node, zone = by_provider[instance["InstanceId"]], instance["Placement"]["AvailabilityZone"]
        address = instance["PrivateIpAddress"]
        labels = node["metadata"]["labels"]
        assert node["spec"]["providerID"] == f"aws:///{zone}/{instance['InstanceId']}"
        assert (
            node["metadata"]["name"]
            == f"ip-{address.replace('.', '-')}.ec2.internal"
            == labels["kubernetes.io/hostname"]
        )
        assert labels["topology.kubernetes.io/zone"] == zone
        assert {"type": "InternalIP", "address": address} in node["status"]["addresses"]
        assert labels.get("eks.amazonaws.com/nodegroup") == (None if instance["InstanceId"] == alone else "workers")


def test_equal_addresses_make_different_names() -> None:
    assert seed.unique("ip-10-0-0-4.ec2.internal", {"ip-10-0-0-4.ec2.internal"}) == "ip-10-0-0-4-2.ec2.internal"


def test_accounts_do_not_see_each_other(world: World, endpoint: str) -> None:
    other = seed.Account(endpoint, "999999999999", REGION)
    assert other.instances() == [] and other.members("workers") == []
