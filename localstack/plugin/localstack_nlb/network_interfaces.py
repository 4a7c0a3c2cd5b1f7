"""The network interfaces of load balancers, which moto does not make.

AWS puts one into each enabled subnet, described as "ELB net/<name>/<id>", carrying the load balancer's security
groups. They outlive it: until they are gone, its groups cannot be deleted (DependencyViolation; seen in
kubernetes-sigs/aws-load-balancer-controller#208). Settings.eni_linger_seconds says for how long here.
"""

from collections.abc import Iterable
from typing import Any

from moto.ec2.models.elastic_network_interfaces import NetworkInterface

from localstack_nlb.accounts import network_of, now
from localstack_nlb.settings import SETTINGS


def place(backend: Any, balancer: Any) -> None:
    """Interfaces in the subnets the load balancer has now; those in other subnets go."""
    ec2 = network_of(backend)
    mine: dict[str, NetworkInterface] = balancer.__dict__.setdefault("interfaces", {})
    subnets = [subnet.id for subnet in balancer.subnets]
    for subnet_id in [known for known in mine if known not in subnets]:
        remove(ec2, [mine.pop(subnet_id)])
    for subnet in balancer.subnets:
        if subnet.id in mine:
            continue
        address = mapping_of(balancer, subnet.id).get("PrivateIPv4Address")
        interface = ec2.create_network_interface(
            subnet.id,
            address,
            group_ids=list(balancer.security_groups or []),
            description=f"ELB {balancer.arn.split(':loadbalancer/')[1]}",
        )
        interface.requester_managed, interface.interface_type, interface.status = (
            True,
            "network_load_balancer",
            "in-use",
        )
        mine[subnet.id] = interface


def regroup(backend: Any, balancer: Any) -> None:
    ec2 = network_of(backend)
    for interface in getattr(balancer, "interfaces", {}).values():
        interface._group_set = [ec2.get_security_group_from_id(group) for group in balancer.security_groups]


def linger(backend: Any, balancer: Any) -> None:
    """The load balancer is deleted, its interfaces go later."""
    due = now() + SETTINGS.eni_linger_seconds
    leaving = backend.__dict__.setdefault("leaving_interfaces", [])
    leaving += [(due, interface) for interface in getattr(balancer, "interfaces", {}).values()]
    release_due(backend)


def release_due(backend: Any) -> None:
    leaving = getattr(backend, "leaving_interfaces", [])
    remove(network_of(backend), [interface for due, interface in leaving if due <= now()])
    leaving[:] = [(due, interface) for due, interface in leaving if due > now()]


def remove(ec2: Any, interfaces: Iterable[NetworkInterface]) -> None:
    for interface in interfaces:
        ec2.enis.pop(interface.id, None)


def mapping_of(balancer: Any, subnet_id: str) -> dict[str, str]:
    return getattr(balancer, "mappings", {}).get(subnet_id, {})
