"""EC2 security groups: one in use cannot be deleted, a description is no part of a rule's identity.

LocalStack has an ec2 provider of its own, which ends in moto; these corrections patch moto's methods below it.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from localstack.utils.patch import patch
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models.security_groups import SecurityGroupBackend, SecurityGroupRule

from localstack_nlb.accounts import balancing_of


@patch(SecurityGroupRule.__eq__)
def _ignore_description(equals: Callable, self: SecurityGroupRule, other: Any) -> bool:
    """RevokeSecurityGroupIngress: "the description is not considered"; moto does consider it in group references."""
    pair = copy.copy(self), copy.copy(other)
    for rule in pair:
        rule.source_group = {k: v for k, v in (getattr(rule, "source_group", None) or {}).items() if k != "Description"}
    return equals(*pair)


def users_of(backend: Any, group_id: str) -> Iterator[str]:
    """Who keeps the group from being deleted: network interfaces (those of instances and load balancers), load
    balancers, rules of other groups that name it."""
    for interface in backend.enis.values():
        ended = interface.instance is not None and interface.instance.state == "terminated"
        if not ended and group_id in [group.id for group in interface.group_set]:
            yield interface.id
    for balancer in balancing_of(backend).load_balancers.values():
        if group_id in (balancer.security_groups or []):
            yield balancer.arn
    for groups in backend.groups.values():
        for other in groups.values():
            rules = [*other.ingress_rules, *other.egress_rules]
            if other.id != group_id and any((rule.source_group or {}).get("GroupId") == group_id for rule in rules):
                yield other.id


@patch(SecurityGroupBackend.delete_security_group)
def _delete_unused(delete: Callable, self: Any, name: str | None = None, group_id: str | None = None) -> Any:
    """DependencyViolation while anything uses it; moto deletes it all the same."""
    if group_id and self.get_security_group_from_id(group_id) and next(users_of(self, group_id), None):
        raise DependencyViolationError(f"resource {group_id} has a dependent object")
    return delete(self, name, group_id)


@patch(SecurityGroupBackend.create_security_group)
def _create_in_known_vpc(create: Callable, self: Any, *given: Any, vpc_id: str | None = None, **more: Any) -> Any:
    """InvalidVpcID.NotFound for an unknown VPC; moto makes a group in the void."""
    if vpc_id:
        self.get_vpc(vpc_id)
    return create(self, *given, vpc_id=vpc_id, **more)
