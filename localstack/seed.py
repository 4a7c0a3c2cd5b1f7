"""An AWS account as an EKS cluster finds it, made and changed through the AWS API alone.

    seed(endpoint)              VPC, three public subnets, node security group, launch template, workers' ASG
    node_manifests(...)         the Kubernetes Node objects of the instances that run there
    Account(endpoint, ...)      what tests do to it later: further groups, single instances, scaling

In LocalStack a 12-digit access key id picks the account, so accounts are free: one for each test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from ipaddress import IPv6Network
from itertools import islice
from typing import Any

import boto3
from botocore.config import Config

INSTANCE_TYPE = "m5.large"
NODE_CREATION = "2026-01-01T00:00:00Z"


def client(service: str, endpoint: str, account: str, region: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=account,
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}),
    )


def as_tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def specification(kind: str, tags: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": as_tags(tags)}]


class Account:
    """One account and region, with the clients and names that the other functions need."""

    def __init__(self, endpoint: str, account: str = "000000000000", region: str = "us-east-1", cluster: str = "demo"):
        self.endpoint, self.account, self.region, self.cluster = endpoint, account, region, cluster
        self.ec2 = client("ec2", endpoint, account, region)
        self.autoscaling = client("autoscaling", endpoint, account, region)

    @property
    def owned(self) -> dict[str, str]:
        return {f"kubernetes.io/cluster/{self.cluster}": "owned"}

    # --- the network

    def create_network(self) -> dict[str, Any]:
        """VPC 10.0.0.0/16 and a /20 in each of three zones, reaching the internet: good for either scheme."""
        ec2 = self.ec2
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=specification("vpc", {"Name": self.cluster}))
        vpc_id = vpc["Vpc"]["VpcId"]
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc_id)
        table = ec2.create_route_table(VpcId=vpc_id)["RouteTable"]["RouteTableId"]
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        zones = [f"{self.region}{letter}" for letter in "abc"]
        subnets = [self.add_subnet(vpc_id, zone, f"10.0.{16 * n}.0/20", table) for n, zone in enumerate(zones)]
        return {"vpc": vpc_id, "internet_gateway": gateway, "route_table": table, "subnets": subnets, "zones": zones}

    def add_subnet(self, vpc_id: str, zone: str, cidr: str, route_table: str | None = None, **more_tags: str) -> str:
        tags = self.owned | {"kubernetes.io/role/elb": "1", "kubernetes.io/role/internal-elb": "1"} | more_tags
        subnet = self.ec2.create_subnet(
            VpcId=vpc_id, CidrBlock=cidr, AvailabilityZone=zone, TagSpecifications=specification("subnet", tags)
        )["Subnet"]["SubnetId"]
        if route_table:
            self.ec2.associate_route_table(RouteTableId=route_table, SubnetId=subnet)
        return subnet

    def add_ipv6(self, vpc_id: str, subnets: Iterable[str]) -> list[str]:
        """Gives the VPC an IPv6 range and each of these subnets a /64 of it. Answers what those begin with."""
        self.ec2.associate_vpc_cidr_block(VpcId=vpc_id, AmazonProvidedIpv6CidrBlock=True)
        [vpc] = self.ec2.describe_vpcs(VpcIds=[vpc_id])["Vpcs"]
        whole = IPv6Network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
        # Not the first one: its fourth group may be 0, which is not written.
        ranges = islice(whole.subnets(new_prefix=64), 1, None)
        parts = [str(part) for _, part in zip(subnets, ranges, strict=False)]
        for subnet, part in zip(subnets, parts, strict=True):
            self.ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=part)
        return [part.removesuffix("::/64") for part in parts]

    def create_node_group(self, vpc_id: str) -> str:
        """The security group on the nodes' interfaces."""
        return self.ec2.create_security_group(
            GroupName=f"{self.cluster}-nodes",
            Description="Nodes of the cluster",
            VpcId=vpc_id,
            TagSpecifications=specification("security-group", self.owned),
        )["GroupId"]

    def create_launch_template(self, node_group: str) -> str:
        return self.ec2.create_launch_template(
            LaunchTemplateName=f"{self.cluster}-nodes",
            LaunchTemplateData={
                "ImageId": self.image(),
                "InstanceType": INSTANCE_TYPE,
                "SecurityGroupIds": [node_group],
            },
        )["LaunchTemplate"]["LaunchTemplateId"]

    def image(self) -> str:
        """One of our own: listing the public ones takes the emulator most of a second."""
        if own := self.ec2.describe_images(Owners=["self"])["Images"]:
            return own[0]["ImageId"]
        return self.ec2.register_image(Name=f"{self.cluster}-node", RootDeviceName="/dev/xvda")["ImageId"]

    # --- workers

    def add_asg(
        self,
        name: str,
        size: int,
        *,
        launch_template: str,
        subnets: Iterable[str],
        nodegroup: str | None = None,
        health_check_type: str = "EC2",
        tags: dict[str, str] | None = None,
        max_size: int = 200,
    ) -> list[str]:
        """An Auto Scaling group of the cluster; with `nodegroup` an EKS managed one. Answers its instance ids."""
        own = dict(self.owned)
        if nodegroup:
            own |= {"eks:cluster-name": self.cluster, "eks:nodegroup-name": nodegroup}
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=max_size,
            DesiredCapacity=size,
            LaunchTemplate={"LaunchTemplateId": launch_template, "Version": "$Latest"},
            VPCZoneIdentifier=",".join(subnets),
            HealthCheckType=health_check_type,
            Tags=[
                {
                    "Key": key,
                    "Value": value,
                    "PropagateAtLaunch": True,
                    "ResourceId": name,
                    "ResourceType": "auto-scaling-group",
                }
                for key, value in (own | (tags or {})).items()
            ],
        )
        return self.members(name)

    def members(self, asg: str) -> list[str]:
        groups = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[asg])["AutoScalingGroups"]
        return sorted(instance["InstanceId"] for group in groups for instance in group["Instances"])

    def scale(self, asg: str, size: int) -> list[str]:
        self.autoscaling.set_desired_capacity(AutoScalingGroupName=asg, DesiredCapacity=size)
        return self.members(asg)

    def launch_instance(self, subnet: str, node_group: str, instance_type: str = INSTANCE_TYPE, **tags: str) -> str:
        """A node of the cluster that no Auto Scaling group knows."""
        return self.ec2.run_instances(
            ImageId=self.image(),
            InstanceType=instance_type,
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            SecurityGroupIds=[node_group],
            TagSpecifications=specification("instance", self.owned | tags),
        )["Instances"][0]["InstanceId"]

    # --- nodes

    def instances(self) -> list[dict[str, Any]]:
        """Running instances of the cluster, by id."""
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {"Name": f"tag:kubernetes.io/cluster/{self.cluster}", "Values": ["owned", "shared"]},
                {"Name": "instance-state-name", "Values": ["running"]},
            ]
        )
        found = [i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]]
        return sorted(found, key=lambda instance: instance["InstanceId"])

    def nodegroups(self) -> dict[str, str]:
        """Instance id -> EKS managed node group, from the tags of the ASG that the instance is in now."""
        pages = self.autoscaling.get_paginator("describe_auto_scaling_groups").paginate()
        found = {}
        for group in (group for page in pages for group in page["AutoScalingGroups"]):
            tags = {tag["Key"]: tag["Value"] for tag in group["Tags"]}
            if "eks:nodegroup-name" in tags:
                found |= {instance["InstanceId"]: tags["eks:nodegroup-name"] for instance in group["Instances"]}
        return found

    def node_manifests(self) -> list[dict[str, Any]]:
        nodegroups, names = self.nodegroups(), set()
        manifests = []
        for instance in self.instances():
            name = unique(f"ip-{instance['PrivateIpAddress'].replace('.', '-')}.{self.domain}", names)
            names.add(name)
            manifests.append(node_manifest(instance, name, self.region, nodegroups.get(instance["InstanceId"])))
        return manifests

    @property
    def domain(self) -> str:
        return "ec2.internal" if self.region == "us-east-1" else f"{self.region}.compute.internal"


def unique(name: str, taken: set[str]) -> str:
    """The emulator may give one address twice."""
    host, _, domain = name.partition(".")
    number = 2
    while name in taken:
        name, number = f"{host}-{number}.{domain}", number + 1
    return name


def node_manifest(instance: dict[str, Any], name: str, region: str, nodegroup: str | None) -> dict[str, Any]:
    zone = instance["Placement"]["AvailabilityZone"]
    labels = {
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": instance["InstanceType"],
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
    }
    if nodegroup:
        labels["eks.amazonaws.com/nodegroup"] = nodegroup
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": NODE_CREATION,
        "lastTransitionTime": NODE_CREATION,
    }
    addresses = [
        {"type": "InternalIP", "address": instance["PrivateIpAddress"]},
        {"type": "Hostname", "address": name},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": f"aws:///{zone}/{instance['InstanceId']}"},
        "status": {"addresses": addresses, "conditions": [ready]},
    }


def seed(
    endpoint: str, account: str = "000000000000", region: str = "us-east-1", cluster: str = "demo", workers: int = 3
) -> dict[str, Any]:
    """The account with `workers` nodes in the managed node group `workers`; names and ids of all it made."""
    there = Account(endpoint, account, region, cluster)
    made = there.create_network()
    made["node_security_group"] = there.create_node_group(made["vpc"])
    made["launch_template"] = there.create_launch_template(made["node_security_group"])
    made["asg"] = "workers"
    made["instances"] = there.add_asg(
        "workers",
        workers,
        launch_template=made["launch_template"],
        subnets=made["subnets"],
        nodegroup="workers",
    )
    return made | {"account": account, "region": region, "cluster": cluster}


def node_manifests(
    endpoint: str, account: str = "000000000000", region: str = "us-east-1", cluster: str = "demo"
) -> list[dict[str, Any]]:
    """Node objects for `kubectl apply` (and, their status being a subresource, `--subresource=status`)."""
    return Account(endpoint, account, region, cluster).node_manifests()


def main() -> None:
    parser = argparse.ArgumentParser(description=seed.__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("--account", default="000000000000")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--cluster", default="demo")
    parser.add_argument("--workers", type=int, default=3)
    print(json.dumps(seed(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
