"""What AWS refuses of the addresses of network load balancers: Elastic IPs, private and IPv6 addresses, prefixes.

moto takes them as they are. Sources: `SubnetMapping`, `CreateLoadBalancer` and `SetSubnets` in the API reference, and
"IP address types" and "UDP over IPv6" in the guide for Network Load Balancers.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from moto.elbv2.models import FakeLoadBalancer

from localstack_nlb.accounts import balancing, network, quoted, refuse

Request = Mapping[str, Any]
Mappings = Mapping[str, Mapping[str, str]]

SOURCE_NAT = "EnablePrefixForIpv6SourceNat"
PREFIX = "SourceNatIpv6Prefix"
PREFIX_LENGTH = 80


def invalid(message: str) -> Exception:
    return refuse("InvalidConfigurationRequest", message)


def ipv6_ranges(subnet: Any) -> list[str]:
    """The IPv6 CIDR blocks that are associated with a subnet."""
    rows = subnet.ipv6_cidr_block_associations.values()
    return [row["ipv6CidrBlock"] for row in rows if row["ipv6CidrBlockState"]["State"] == "associated"]


def is_udp(balancer: FakeLoadBalancer) -> bool:
    return any("UDP" in listener.protocol for listener in balancer.listeners.values())


def check(
    context: Any,
    subnets: Iterable[Any],
    wanted: Mappings,
    scheme: str,
    kind: str,
    source_nat: str,
    itself: FakeLoadBalancer | None = None,
) -> None:
    """What AWS refuses of a load balancer with these mappings, IP address type and source NAT."""
    for subnet in subnets:
        ranges, mapping = ipv6_ranges(subnet), wanted[subnet.id]
        if kind == "dualstack" and not ranges:
            raise refuse("InvalidSubnet", f"The subnet '{subnet.id}' must have an associated IPv6 CIDR block")
        if mapping.get("AllocationId") and scheme == "internal":
            raise invalid("You cannot specify Elastic IP addresses for an internal load balancer")
        if address := mapping.get("PrivateIPv4Address"):
            if scheme != "internal":
                raise invalid("You cannot specify private IPv4 addresses for an internet-facing load balancer")
            if ip_address(address) not in ip_network(subnet.cidr_block):
                raise invalid(f"The address '{address}' is not within the subnet '{subnet.id}'")
        for key, value in (("IPv6Address", mapping.get("IPv6Address")), (PREFIX, mapping.get(PREFIX))):
            if value and value != "auto_assigned" and not is_within(value, ranges):
                raise invalid(f"The {key} '{value}' is not within the subnet '{subnet.id}'")
        if mapping.get("IPv6Address") and kind != "dualstack":
            raise invalid("An IPv6 address needs the IP address type dualstack")
    if kind == "dualstack" and source_nat != "on" and itself and is_udp(itself):
        raise invalid(f"A dualstack load balancer with a UDP listener needs {SOURCE_NAT}")
    check_free(context, wanted, itself)


def is_within(value: str, ranges: Iterable[str]) -> bool:
    asked = ip_network(value, strict=False)
    is_prefix = "/" in value
    return any(asked.subnet_of(ip_network(known)) for known in ranges) and (
        not is_prefix or asked.prefixlen == PREFIX_LENGTH
    )


def check_free(context: Any, wanted: Mappings, itself: FakeLoadBalancer | None) -> None:
    """ResourceInUse for an address that another load balancer, or an instance, has."""
    taken = {
        value
        for other in balancing(context).load_balancers.values()
        if other is not itself
        for mapping in getattr(other, "mappings", {}).values()
        for value in chosen(mapping).values()
    }
    taken |= {address.allocation_id for address in network(context).addresses if address.association_id}
    asked = [value for mapping in wanted.values() for value in chosen(mapping).values()]
    if used := [value for value in asked if value in taken]:
        raise refuse("ResourceInUse", f"The addresses {quoted(used)} are in use")


def chosen(mapping: Mapping[str, str]) -> dict[str, str]:
    """The addresses in a mapping, which only one load balancer can have."""
    return {key: mapping[key] for key in ("AllocationId", "PrivateIPv4Address", "IPv6Address") if mapping.get(key)}


def check_kept(balancer: FakeLoadBalancer, wanted: Mappings, kind: str) -> None:
    """SetSubnets: "you must include all subnets that were enabled previously, with their existing configurations"."""
    for subnet, mapping in balancer.mappings.items():
        before, after = chosen(mapping), chosen(wanted.get(subnet, mapping))
        if kind != balancer.ip_address_type:
            # IPv6 comes or goes with the type.
            before.pop("IPv6Address", None)
            after.pop("IPv6Address", None)
        if subnet in wanted and before != after:
            raise invalid(f"The addresses of the load balancer in subnet '{subnet}' cannot be changed")


def check_listener(balancer: FakeLoadBalancer, protocol: str) -> None:
    dualstack = balancer.ip_address_type == "dualstack"
    if "UDP" in protocol and dualstack and getattr(balancer, "enable_prefix_for_ipv6_source_nat", "off") != "on":
        raise invalid(f"A UDP listener of a dualstack load balancer needs {SOURCE_NAT}")
