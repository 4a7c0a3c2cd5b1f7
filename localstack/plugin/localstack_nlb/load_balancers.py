"""Load balancers as AWS makes network ones. moto knows only the shape of application load balancers."""

import re
import secrets
from collections.abc import Callable, Mapping
from ipaddress import IPv6Network
from typing import Any

from localstack.services.moto import call_moto, call_moto_with_request
from localstack.utils.patch import patch
from moto.elbv2.exceptions import LoadBalancerNotFoundError
from moto.elbv2.models import AvailabilityZone, ELBv2Backend, FakeLoadBalancer

from localstack_nlb import addresses, network_interfaces
from localstack_nlb.accounts import balancing, network, network_of, now, quoted, refuse
from localstack_nlb.paging import page
from localstack_nlb.settings import SETTINGS
from localstack_nlb.tags import check_tags, tag_map

Request = Mapping[str, Any]

SECONDARY_ADDRESSES = "secondary_ips.auto_assigned.per_subnet"
NLB_ATTRIBUTES = {
    "access_logs.s3.enabled": "false",
    "dns_record.client_routing_policy": "any_availability_zone",
    SECONDARY_ADDRESSES: "0",
    "zonal_shift.config.enabled": "false",
}
BOOLEANS = {
    "access_logs.s3.enabled",
    "deletion_protection.enabled",
    "ipv6.deny_all_igw_traffic",
    "load_balancing.cross_zone.enabled",
    "zonal_shift.config.enabled",
}
ROUTING_POLICIES = {"any_availability_zone", "availability_zone_affinity", "partial_availability_zone_affinity"}
HOSTED_ZONES = {"us-east-1": "Z26RNL4JYFTOTI", "eu-west-1": "Z2IFOLAFXWLO4F"}
ENFORCE = "EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic"
AUTO_ASSIGNED = "auto_assigned"
SOURCE_NAT = "EnablePrefixForIpv6SourceNat"
PAGE = 400


# --- what AWS refuses to create


def check_name(name: str) -> None:
    """CreateLoadBalancer, Name: at most 32 letters, digits and hyphens, no hyphen at either end, not `internal-…`."""
    if len(name) > 32:
        raise refuse("ValidationError", f"The load balancer name '{name}' cannot be longer than '32' characters")
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise refuse(
            "ValidationError",
            f"The load balancer name '{name}' can only contain characters that are alphanumeric characters and hyphens(-)",
        )
    if name.startswith("-") or name.endswith("-"):
        raise refuse("ValidationError", f"The load balancer name '{name}' cannot begin or end with '-'")
    if name.startswith("internal-"):
        raise refuse("ValidationError", f"The load balancer name '{name}' cannot begin with 'internal-'")


def mappings_asked(request: Request) -> dict[str, dict[str, str]]:
    """Subnets and SubnetMappings are two ways to say the same; exactly one must be used."""
    subnets, mappings = request.get("Subnets") or [], request.get("SubnetMappings") or []
    if bool(subnets) == bool(mappings):
        raise refuse("ValidationError", "You must specify either subnets or subnet mappings")
    return {m["SubnetId"]: m for m in mappings or ({"SubnetId": subnet} for subnet in subnets)}


def check_subnets(context: Any, wanted: Mapping[str, Mapping[str, str]]) -> list[Any]:
    """One VPC, one subnet a zone; SubnetNotFound rather than EC2's own code; an elastic IP must exist."""
    ec2 = network(context)
    known = {subnet.id: subnet for subnet in ec2.describe_subnets()}
    if missing := [subnet for subnet in wanted if subnet not in known]:
        raise refuse("SubnetNotFound", f"The subnet ID {quoted(missing)} does not exist")
    subnets = [known[subnet] for subnet in wanted]
    if len({subnet.vpc_id for subnet in subnets}) > 1:
        raise refuse("InvalidConfigurationRequest", "All subnets must belong to the same VPC")
    if len({subnet.availability_zone for subnet in subnets}) < len(subnets):
        raise refuse(
            "InvalidConfigurationRequest",
            "A load balancer cannot be attached to multiple subnets in the same Availability Zone",
        )
    asked = [mapping["AllocationId"] for mapping in wanted.values() if mapping.get("AllocationId")]
    if missing := sorted(set(asked) - {address.allocation_id for address in ec2.addresses}):
        raise refuse("AllocationIdNotFound", f"The allocation IDs {quoted(missing)} are not available for use")
    return subnets


def check_security_groups(context: Any, groups: list[str], vpc_id: str) -> None:
    """InvalidSecurityGroup for one that does not exist, InvalidConfigurationRequest for one of another VPC."""
    found = [network(context).get_security_group_from_id(group) for group in groups]
    if missing := [group for group, known in zip(groups, found, strict=True) if known is None]:
        raise refuse("InvalidSecurityGroup", f"The security groups {quoted(missing)} do not exist")
    if any(group.vpc_id != vpc_id for group in found):
        raise refuse("InvalidConfigurationRequest", "One or more security groups are invalid")


def check_scheme(context: Any, scheme: str | None, vpc_id: str) -> None:
    """An internet-facing load balancer needs an internet gateway in its VPC (InvalidSubnet)."""
    if scheme not in (None, "internal", "internet-facing"):
        raise refuse(
            "ValidationError",
            f"1 validation error detected: Value '{scheme}' at 'scheme' failed to satisfy constraint: "
            "Member must satisfy enum value set: [internal, internet-facing]",
        )
    gateways = network(context).internet_gateways.values()
    if scheme != "internal" and not any(gateway.vpc and gateway.vpc.id == vpc_id for gateway in gateways):
        raise refuse("InvalidSubnet", f"VPC {vpc_id} has no internet gateway")


def check_source_nat(kind: str, source_nat: str, wanted: Mapping[str, Mapping[str, str]]) -> None:
    """ "The IP address type must be dualstack" (API reference); a prefix for one subnet is for where it is on."""
    if source_nat == "on" and kind != "dualstack":
        raise refuse("InvalidConfigurationRequest", "IPv6 source NAT prefixes need the IP address type 'dualstack'")
    if source_nat != "on" and any(mapping.get("SourceNatIpv6Prefix") for mapping in wanted.values()):
        raise refuse("InvalidConfigurationRequest", "IPv6 source NAT prefixes were specified and are not enabled")


# --- operations


def settings_of(request: Request) -> tuple:
    return (
        request.get("Type"),
        request.get("Scheme"),
        request.get("IpAddressType"),
        request.get(SOURCE_NAT),
        sorted((subnet, sorted(mapping.items())) for subnet, mapping in mappings_asked(request).items()),
        sorted(request.get("SecurityGroups") or []),
        tag_map(request),
    )


def create_load_balancer(context: Any, request: Request) -> dict:
    """ARN `loadbalancer/net/<name>/<id>`, DNS name `<name>-<id>.elb.<region>.amazonaws.com`. The same request again
    answers the existing one, another one of that name is DuplicateLoadBalancerName (terraform-provider-aws#32942,
    aws-load-balancer-controller#3173); moto makes a second one."""
    backend, name = balancing(context), request["Name"]
    check_name(name)
    check_tags(request.get("Tags"))
    wanted = mappings_asked(request)
    subnets = check_subnets(context, wanted)
    check_scheme(context, request.get("Scheme"), subnets[0].vpc_id)
    check_security_groups(context, request.get("SecurityGroups") or [], subnets[0].vpc_id)
    check_source_nat(request.get("IpAddressType") or "ipv4", request.get(SOURCE_NAT) or "off", wanted)
    for known in backend.load_balancers.values():
        if known.name == name:
            if getattr(known, "settings", None) == settings_of(request):
                return {"LoadBalancers": [known.created | {"State": {"Code": known.state}}]}
            raise refuse(
                "DuplicateLoadBalancerName",
                f"A load balancer with the same name '{name}' exists, but with different settings",
            )
    if request.get("Type") == "network":
        kind, source_nat = request.get("IpAddressType") or "ipv4", request.get(SOURCE_NAT) or "off"
        addresses.check(context, subnets, wanted, request.get("Scheme") or "internet-facing", kind, source_nat)
    result = call_moto(context)
    shown = result["LoadBalancers"][0]
    balancer = backend.load_balancers[shown["LoadBalancerArn"]]
    balancer.active_from = now() + SETTINGS.provision_seconds
    balancer.fails = SETTINGS.provision_failures > 0
    SETTINGS.provision_failures -= balancer.fails
    balancer.scheme = shown["Scheme"] = request.get("Scheme") or "internet-facing"
    if balancer.type == "network":
        rename_network(backend, balancer, request, shown)
        balancer.mappings = wanted
        balancer.enable_prefix_for_ipv6_source_nat = shown[SOURCE_NAT] = request.get(SOURCE_NAT) or "off"
        shown["AvailabilityZones"] = shown_zones(balancer)
        network_interfaces.place(backend, balancer)
        if balancer.security_groups:
            balancer.enforce_security_group_inbound_rules_on_private_link_traffic = shown[ENFORCE] = "on"
    balancer.settings, balancer.created = settings_of(request), shown
    return result


def shown_zones(balancer: FakeLoadBalancer) -> list[dict]:
    return [
        {
            "ZoneName": zone.zone_name,
            "SubnetId": zone.subnet_id,
            "LoadBalancerAddresses": zone.load_balancer_addresses,
            "SourceNatIpv6Prefixes": zone.source_nat_ipv6_prefixes,
        }
        for zone in balancer.availability_zones
    ]


def rename_network(backend: ELBv2Backend, balancer: FakeLoadBalancer, request: Request, shown: dict) -> None:
    old, identity = balancer.arn, secrets.token_hex(8)
    balancer.arn = f"{old.split(':loadbalancer/')[0]}:loadbalancer/net/{balancer.name}/{identity}"
    balancer.dns_name = f"{balancer.name}-{identity}.elb.{backend.region_name}.amazonaws.com"
    balancer.canonical_hosted_zone_id = HOSTED_ZONES.get(backend.region_name, balancer.canonical_hosted_zone_id)
    backend.load_balancers[balancer.arn] = backend.load_balancers.pop(old)
    backend.tagging_service.delete_all_tags_for_resource(old)
    backend.tagging_service.tag_resource(balancer.arn, request.get("Tags"))
    internal = "true" if balancer.scheme == "internal" else "false"
    balancer.attrs.update(NLB_ATTRIBUTES, **{"ipv6.deny_all_igw_traffic": internal})
    shown.update(
        LoadBalancerArn=balancer.arn,
        DNSName=balancer.dns_name,
        CanonicalHostedZoneId=balancer.canonical_hosted_zone_id,
    )


def delete_load_balancer(context: Any, request: Request) -> dict:
    """Refused with deletion protection (OperationNotPermitted); an absent one is no error; listeners go with it and
    target groups stop naming it, its network interfaces stay a while."""
    backend, arn = balancing(context), request["LoadBalancerArn"]
    balancer = backend.load_balancers.get(arn)
    if balancer and balancer.attrs.get("deletion_protection.enabled") == "true":
        raise refuse(
            "OperationNotPermitted", f"Load balancer '{arn}' cannot be deleted: deletion protection is enabled"
        )
    result = call_moto(context)
    if balancer:
        for group in backend.target_groups.values():
            group.load_balancer_arns[:] = [used for used in group.load_balancer_arns if used != arn]
        for resource in [arn, *balancer.listeners]:
            backend.tagging_service.delete_all_tags_for_resource(resource)
        network_interfaces.linger(backend, balancer)
    return result


def describe_load_balancers(context: Any, request: Request) -> dict:
    """Pages of up to 400, and 400 unless told (moto: 50); moto's markers are names, and fail with HTTP 500 for others."""
    if not 1 <= int(request.get("PageSize") or PAGE) <= PAGE:
        raise refuse("ValidationError", f"Page size must be between 1 and {PAGE}")
    marker, balancers = request.get("Marker"), balancing(context).load_balancers.values()
    if marker and marker not in [balancer.name for balancer in balancers]:
        raise refuse("ValidationError", f"Marker '{marker}' is not valid")
    if request.get("PageSize"):
        return call_moto(context)
    return call_moto_with_request(context, {**request, "PageSize": PAGE})


def modify_attributes(context: Any, request: Request) -> dict:
    """Values are checked; moto takes any text. Of secondary addresses: "After you set this value, you can't decrease it"
    (API reference)."""
    present = find_balancer(context, request["LoadBalancerArn"]).attrs.get(SECONDARY_ADDRESSES, "0")
    for attribute in request["Attributes"]:
        key, value = attribute["Key"], attribute.get("Value", "")
        known = {"true", "false"} if key in BOOLEANS else ROUTING_POLICIES if key.startswith("dns_record.") else None
        if known and value not in known:
            raise refuse(
                "ValidationError", f"Load balancer attribute '{key}' must be one of {sorted(known)}, not '{value}'"
            )
        if key == SECONDARY_ADDRESSES and not (value.isdecimal() and int(value) <= 7):
            raise refuse("ValidationError", f"Load balancer attribute '{key}' must be from 0 to 7, not '{value}'")
        if key == SECONDARY_ADDRESSES and int(value) < int(present):
            raise refuse(
                "InvalidConfigurationRequest", f"Load balancer attribute '{key}' cannot be decreased from {present}"
            )
    return call_moto(context)


def find_balancer(context: Any, arn: str) -> FakeLoadBalancer:
    balancer = balancing(context).load_balancers.get(arn)
    if balancer is None:
        raise LoadBalancerNotFoundError()
    return balancer


def set_security_groups(context: Any, request: Request) -> dict:
    """ "You can't perform this operation on a Network Load Balancer unless you specified a security group for the load
    balancer when you created it" (API reference); nor can the last one be taken away."""
    balancer = find_balancer(context, request["LoadBalancerArn"])
    groups = request.get("SecurityGroups") or []
    if balancer.type == "network" and not balancer.security_groups:
        raise refuse(
            "InvalidConfigurationRequest",
            "You cannot set security groups on a Network Load Balancer that was created without any",
        )
    if not groups:
        raise refuse("ValidationError", "At least one security group must be specified")
    check_security_groups(context, groups, balancer.vpc_id)
    result = call_moto(context)
    network_interfaces.regroup(balancing(context), balancer)
    enforce = request.get(ENFORCE) or getattr(
        balancer, "enforce_security_group_inbound_rules_on_private_link_traffic", "on"
    )
    balancer.enforce_security_group_inbound_rules_on_private_link_traffic = result[ENFORCE] = enforce
    balancer.settings = None
    return result


def set_subnets(context: Any, request: Request) -> dict:
    """A network load balancer may shrink to one zone, and may not swap the subnet of a zone it is in
    (InvalidConfigurationRequest, words from aws-load-balancer-controller#4171). moto demands two zones."""
    balancer = find_balancer(context, request["LoadBalancerArn"])
    wanted = mappings_asked(request)
    subnets = check_subnets(context, wanted)
    zones = {subnet.availability_zone: subnet.id for subnet in balancer.subnets}
    for subnet in subnets:
        if zones.get(subnet.availability_zone, subnet.id) != subnet.id:
            raise refuse(
                "InvalidConfigurationRequest",
                "You cannot specify an additional subnet from an Availability Zone that is already associated with the "
                f"load balancer. The Availability Zone '{subnet.availability_zone}' corresponding to the new subnet "
                f"'{subnet.id}' is already associated with the load balancer.",
            )
    if subnets[0].vpc_id != balancer.vpc_id:
        raise refuse("InvalidConfigurationRequest", "All subnets must belong to the load balancer's VPC")
    kind = request.get("IpAddressType") or balancer.ip_address_type
    source_nat = request.get(SOURCE_NAT) or getattr(balancer, "enable_prefix_for_ipv6_source_nat", "off")
    check_source_nat(kind, source_nat, wanted)
    if balancer.type == "network":
        addresses.check_kept(balancer, wanted, kind)
        addresses.check(context, subnets, wanted, balancer.scheme, kind, source_nat, balancer)
    balancer.subnets, balancer.mappings, balancer.settings = subnets, wanted, None
    balancer.ip_address_type = kind
    if balancer.type == "network":
        balancer.enable_prefix_for_ipv6_source_nat = source_nat
        network_interfaces.place(balancing(context), balancer)
    return {"AvailabilityZones": shown_zones(balancer), "IpAddressType": kind, SOURCE_NAT: source_nat}


def set_ip_address_type(context: Any, request: Request) -> dict:
    """A network load balancer must fit the new type: IPv6 in each subnet, source NAT for UDP."""
    balancer = find_balancer(context, request["LoadBalancerArn"])
    if balancer.type == "network":
        kind, source_nat = request["IpAddressType"], getattr(balancer, "enable_prefix_for_ipv6_source_nat", "off")
        check_source_nat(kind, source_nat, {})
        addresses.check(context, balancer.subnets, balancer.mappings, balancer.scheme, kind, source_nat, balancer)
    result = call_moto(context)
    balancer.settings = None
    return result


# --- moto's own methods


@patch(FakeLoadBalancer.activate)
def _activate_when_due(activate: Callable, self: FakeLoadBalancer) -> None:
    """Settings.provision_seconds; without it, as in moto, the first describe finds it active. Settings.provision_failures
    makes it `failed` at that moment."""
    if now() < getattr(self, "active_from", 0):
        return
    if getattr(self, "fails", False):
        self.state = "failed"
    activate(self)


@patch(ELBv2Backend.describe_load_balancers)
def _find_each_one(_describe: Callable, self: ELBv2Backend, arns: list[str] | None, names: list[str] | None) -> list:
    """One unknown ARN or name fails the call (LoadBalancerNotFound); moto shows the last one found in its place."""
    balancers = list(self.load_balancers.values())
    for balancer in balancers:
        balancer.activate()
    if not arns and not names:
        return balancers
    by_name = {balancer.name: balancer for balancer in balancers}
    found = [self.load_balancers.get(arn) for arn in arns or []] + [by_name.get(name) for name in names or []]
    if None in found:
        raise LoadBalancerNotFoundError()
    return list(dict.fromkeys(found))


def _zones_with_addresses(self: FakeLoadBalancer) -> list[AvailabilityZone]:
    """LoadBalancerAddresses shows the elastic IPs and private addresses chosen in SubnetMappings."""
    zones = [AvailabilityZone(subnet) for subnet in self.subnets]
    ec2 = network_of(_Place(self.arn))
    for zone in zones:
        mapping = network_interfaces.mapping_of(self, zone.subnet_id)
        chosen = addresses.chosen(mapping)
        if allocation := chosen.get("AllocationId"):
            # An address that was released meanwhile is nobody's.
            found = [address.public_ip for address in ec2.addresses if address.allocation_id == allocation]
            chosen |= {"IpAddress": address for address in found}
        zone.load_balancer_addresses = [chosen] if chosen else []
        zone.source_nat_ipv6_prefixes = source_nat_prefixes(self, zone, ec2.get_subnet(zone.subnet_id))
    return zones


def source_nat_prefixes(balancer: FakeLoadBalancer, zone: AvailabilityZone, subnet: Any) -> list[str]:
    """One /80 of the subnet's IPv6 range: the one asked for, else one of AWS's choice; here always the last."""
    if getattr(balancer, "enable_prefix_for_ipv6_source_nat", "off") != "on":
        return []
    asked = network_interfaces.mapping_of(balancer, zone.subnet_id).get("SourceNatIpv6Prefix", AUTO_ASSIGNED)
    if asked != AUTO_ASSIGNED:
        return [asked]
    ranges = [IPv6Network(row["ipv6CidrBlock"]) for row in subnet.ipv6_cidr_block_associations.values()]
    return [str(IPv6Network((int(each.broadcast_address) >> 48 << 48, 80))) for each in ranges[:1]]


class _Place:
    """Account and region out of an ARN; the load balancer itself does not know them."""

    def __init__(self, arn: str):
        _, _, _, self.region_name, self.account_id, *_ = arn.split(":")


FakeLoadBalancer.availability_zones = property(_zones_with_addresses)


def _state_with_reason(self: FakeLoadBalancer) -> dict[str, str]:
    """`failed` comes with a reason (LoadBalancerState)."""
    reason = {"Reason": "Internal error"} if self.state == "failed" else {}
    return {"Code": self.state, **reason}


FakeLoadBalancer.load_balancer_state = property(_state_with_reason)


#: Defaults of Network Load Balancers and target groups (ELB user guide, "Quotas").
LIMITS = {
    "network-load-balancers": 50,
    "listeners-per-network-load-balancer": 50,
    "targets-per-network-load-balancer": 3000,
    "targets-per-availability-zone-per-network-load-balancer": 500,
    "target-groups": 3000,
}


def describe_account_limits(context: Any, request: Request) -> dict:
    """moto knows those of Application Load Balancers."""
    known = {limit["Name"]: limit["Max"] for limit in call_moto(context)["Limits"]} | LIMITS | SETTINGS.account_limits
    return page("Limits", [{"Name": name, "Max": str(limit)} for name, limit in known.items()], request)
