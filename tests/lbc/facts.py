"""What AWS has for a Service, read back by a client that neither controller knows: path -> value.

Two accounts never hold the same ids, and two controllers never give the same names. So that their facts can be
compared, three things are said by role, and nothing else is changed or left out:

1. an id that the account had before, by what it is the id of (`Furniture.roles`): "subnet of zone a"
2. a resource that the controller made, by its place: the target group behind listener 80 is "target group of 80", the
   security group that only this load balancer carries "own group", the one that others carry too "shared group"
3. a name that the controller made up, by "generated"
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sandbox.aws import Account
from sandbox.kube import Object

Facts = dict[str, str]
Row = dict[str, Any]

#: How the names begin that the controllers make up.
GENERATED = ("k8s-", "weir-")
TAGS_A_CALL = 20
#: Tags with which the controllers name a resource's Service.
SERVICE_TAGS = ("service.k8s.aws/stack", "weir.dev/service")
#: Kinds of resources, and what their ids have in them.
KINDS = {"load balancer": ":loadbalancer/", "listener": ":listener/", "target group": ":targetgroup/", "group": "sg-"}

BALANCER_FIELDS = (
    "Scheme",
    "Type",
    "IpAddressType",
    "VpcId",
    "EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic",
    "EnablePrefixForIpv6SourceNat",
)
TARGET_GROUP_FIELDS = (
    "Protocol",
    "Port",
    "TargetType",
    "IpAddressType",
    "VpcId",
    "HealthCheckEnabled",
    "HealthCheckProtocol",
    "HealthCheckPort",
    "HealthCheckPath",
    "HealthCheckIntervalSeconds",
    "HealthCheckTimeoutSeconds",
    "HealthyThresholdCount",
    "UnhealthyThresholdCount",
)


class Reading:
    """One look at an account; facts are then told from it and from a few calls for each resource."""

    def __init__(self, account: Account, roles: Mapping[str, str]) -> None:
        self.account, self.elbv2, self.roles = account, account.elbv2, roles
        self.balancers = {row["DNSName"].lower(): row for row in self.elbv2.describe_load_balancers()["LoadBalancers"]}
        pages = self.elbv2.get_paginator("describe_target_groups").paginate()
        self.target_groups = {row["TargetGroupArn"]: row for page in pages for row in page["TargetGroups"]}
        groups = account.ec2.describe_security_groups()["SecurityGroups"]
        self.groups = {row["GroupId"]: row for row in groups}
        carried = Counter(group for row in self.balancers.values() for group in row.get("SecurityGroups", []))
        self.shared = {group for group, count in carried.items() if count > 1 and group not in roles}
        arns = [row["LoadBalancerArn"] for row in self.balancers.values()]
        self.listeners = {arn: self.elbv2.describe_listeners(LoadBalancerArn=arn)["Listeners"] for arn in arns}
        arns += [row["ListenerArn"] for rows in self.listeners.values() for row in rows]
        self.tags = self._tags([*arns, *self.target_groups])
        asgs = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        self.asgs = [row["AutoScalingGroupName"] for row in asgs]
        self.attached = {asg: self._attached(asg) for asg in self.asgs}

    def of_service(self, service: Object) -> Facts:
        """Of a Service without a hostname there is only to say what was made for it all the same."""
        ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
        balancer = self.balancers.get(ingress[0].get("hostname", ""))
        if balancer is None:
            return {"served": "no", "half-built": text(self._made_for(service))}
        facts = {"served": "yes", "half-built": text([])}
        facts["status"] = text([{**each, "hostname": "its name"} for each in ingress])
        facts["finalizers"] = text(sorted(service["metadata"].get("finalizers", [])))
        facts |= under("load balancer", self._balancer(balancer))
        for identity in balancer.get("SecurityGroups", []):
            if self._group_role(identity) == "own group":
                facts |= under("own group", self._group(self.groups[identity]))
        for listener in self.listeners[balancer["LoadBalancerArn"]]:
            facts |= under(f"listener {listener['Port']}", self._listener(listener))
            for arn in target_groups_of(listener):
                facts |= under(f"target group of {listener['Port']}", self._target_group(self.target_groups[arn]))
        return facts

    def of_cluster(self) -> Facts:
        """What the controller has beside its Services: rules of the nodes, groups of all load balancers, leftovers."""
        used = {arn for rows in self.listeners.values() for row in rows for arn in target_groups_of(row)}
        facts = {"target groups without a listener": str(len(self.target_groups.keys() - used))}
        for identity, row in self.groups.items():
            if identity in self.roles:
                facts |= under(self.roles[identity], self._rules(row))
        for identity in self.shared:
            facts |= under("shared group", self._group(self.groups[identity]))
        carried = {group for row in self.balancers.values() for group in row.get("SecurityGroups", [])}
        made = [row for row in self.groups.values() if row["GroupName"].startswith(GENERATED)]
        facts["security groups that nothing carries"] = str(len([row for row in made if row["GroupId"] not in carried]))
        return facts

    def _made_for(self, service: Object) -> list[str]:
        """Kinds of resources that have the Service among their tags."""
        name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
        tagged = {**self.tags, **{identity: as_map(row.get("Tags", [])) for identity, row in self.groups.items()}}
        mine = [identity for identity, tags in tagged.items() if name in (tags.get(key) for key in SERVICE_TAGS)]
        return sorted({kind for kind, mark in KINDS.items() for identity in mine if mark in identity})

    # --- one resource each

    def _balancer(self, row: Row) -> Facts:
        arn = row["LoadBalancerArn"]
        facts = {key: self._said(row[key]) for key in BALANCER_FIELDS if row.get(key)}
        facts["Name"] = generated(row["LoadBalancerName"])
        facts["SecurityGroups"] = text(sorted(map(self._group_role, row.get("SecurityGroups", []))))
        for zone in row["AvailabilityZones"]:
            facts |= under(f"zone {zone['ZoneName'][-1]}", self._zone(zone))
        attributes = self.elbv2.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
        reservation = self.elbv2.describe_capacity_reservation(LoadBalancerArn=arn)
        facts["capacity"] = text(reservation.get("MinimumLoadBalancerCapacity", {}))
        return facts | under("attributes", as_map(attributes)) | under("tags", self.tags[arn])

    def _zone(self, row: Row) -> Facts:
        facts = {"subnet": self._said(row["SubnetId"])}
        for address in row.get("LoadBalancerAddresses", []):
            facts |= {key: self._said(value) for key, value in address.items()}
        if prefixes := row.get("SourceNatIpv6Prefixes"):
            facts["SourceNatIpv6Prefixes"] = text([self._said(each) for each in prefixes])
        return facts

    def _listener(self, row: Row) -> Facts:
        arn = row["ListenerArn"]
        facts = {key: str(row[key]) for key in ("Protocol", "SslPolicy") if row.get(key)}
        if policies := row.get("AlpnPolicy"):
            facts["AlpnPolicy"] = text(policies)
        if row["Protocol"] == "TLS":
            rows = self.elbv2.describe_listener_certificates(ListenerArn=arn)["Certificates"]
            for certificate in rows:
                kind = "default certificate" if certificate["IsDefault"] else "more certificates"
                facts[f"{kind} / {self._said(certificate['CertificateArn'])}"] = "yes"
        facts["actions"] = text([each["Type"] for each in row["DefaultActions"]])
        attributes = self.elbv2.describe_listener_attributes(ListenerArn=arn)["Attributes"]
        return facts | under("attributes", as_map(attributes)) | under("tags", self.tags[arn])

    def _target_group(self, row: Row) -> Facts:
        arn = row["TargetGroupArn"]
        facts = {key: self._said(row[key]) for key in TARGET_GROUP_FIELDS if row.get(key) is not None}
        if codes := row.get("Matcher", {}).get("HttpCode"):
            facts["Matcher"] = codes
        targets = self.elbv2.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        facts["targets"] = text(
            sorted(f"{self._said(each['Target']['Id'])}:{each['Target']['Port']}" for each in targets)
        )
        facts["traffic sources"] = text([asg for asg in self.asgs if arn in self.attached[asg]])
        attributes = self.elbv2.describe_target_group_attributes(TargetGroupArn=arn)["Attributes"]
        return facts | under("attributes", as_map(attributes)) | under("tags", self.tags[arn])

    def _group(self, row: Row) -> Facts:
        facts = {"Name": generated(row["GroupName"]), "Description": row["Description"]}
        return facts | self._rules(row) | under("tags", as_map(row.get("Tags", [])))

    def _rules(self, row: Row) -> Facts:
        """A rule is its own path, and its description the value."""
        facts: Facts = {}
        for direction, rules in (("inbound", row["IpPermissions"]), ("outbound", row["IpPermissionsEgress"])):
            for rule in rules:
                for source, description in sources(rule):
                    facts[f"{direction} / {traffic(rule)} {self._group_role(source)}"] = description
        return facts

    def _group_role(self, identity: str) -> str:
        if identity in self.shared:
            return "shared group"
        if identity in self.groups and identity not in self.roles:
            return "own group"
        return self._said(identity)

    def _said(self, value: Any) -> str:
        return self.roles.get(str(value), str(value))

    # --- calls

    def _tags(self, arns: list[str]) -> dict[str, Facts]:
        found: dict[str, Facts] = {}
        for start in range(0, len(arns), TAGS_A_CALL):
            rows = self.elbv2.describe_tags(ResourceArns=arns[start : start + TAGS_A_CALL])["TagDescriptions"]
            found |= {row["ResourceArn"]: as_map(row["Tags"]) for row in rows}
        return found

    def _attached(self, asg: str) -> set[str]:
        """An Auto Scaling group has no more of them than a page has."""
        rows = self.account.autoscaling.describe_traffic_sources(AutoScalingGroupName=asg)["TrafficSources"]
        return {row["Identifier"] for row in rows}


def target_groups_of(listener: Row) -> list[str]:
    actions = listener["DefaultActions"]
    forwards = [each for action in actions for each in action.get("ForwardConfig", {}).get("TargetGroups", [])]
    named = [action["TargetGroupArn"] for action in actions if "TargetGroupArn" in action]
    return list(dict.fromkeys([*named, *(each["TargetGroupArn"] for each in forwards)]))


def sources(rule: Row) -> Iterable[tuple[str, str]]:
    """(source, description) of a rule's permissions."""
    lists = (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("PrefixListIds", "PrefixListId"))
    for key, field in (*lists, ("UserIdGroupPairs", "GroupId")):
        for source in rule.get(key, []):
            yield source[field], source.get("Description", "")


def traffic(rule: Row) -> str:
    """`tcp 80`, `tcp 30000-32767`, `icmp 3 4` (type and code), or `all`."""
    protocol = rule["IpProtocol"]
    if protocol == "-1":
        return "all"
    first, last = rule.get("FromPort"), rule.get("ToPort")
    if protocol in ("icmp", "icmpv6", "58"):
        return f"{protocol} {first} {last}"
    return f"{protocol} {first}" if first == last else f"{protocol} {first}-{last}"


def generated(name: str) -> str:
    return "generated" if name.startswith(GENERATED) else name


def as_map(rows: Iterable[Row]) -> Facts:
    return {row["Key"]: row.get("Value", "") for row in rows}


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def under(section: str, facts: Mapping[str, str]) -> Facts:
    return {f"{section} / {path}": value for path, value in facts.items()}
