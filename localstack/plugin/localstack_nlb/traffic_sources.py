"""Target groups attached to Auto Scaling groups, by either family of operations.

AttachTrafficSources ...               "traffic sources"
AttachLoadBalancerTargetGroups ...     "target groups"

moto knows only the second. Each family describes and detaches what it attached itself (API reference of
DetachLoadBalancerTargetGroups); limits count both. States: Adding -> Added, Removing -> gone, in the time that the
settings say. While Adding nothing is registered yet, while Removing nothing is registered any more: the worst of what
AWS's "are being (de)registered" allows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from localstack.services.moto import call_moto
from moto.autoscaling.models import FakeAutoScalingGroup

from localstack_nlb.accounts import balancing, now, refuse
from localstack_nlb.scaling_groups import attachments_of, deregister, find_scaling_group, members_of, register
from localstack_nlb.settings import SETTINGS

Request = Mapping[str, Any]

SOURCES, GROUPS = "traffic sources", "target groups"
AT_ONCE = 10
IN_ALL = 50


@dataclass
class Attachment:
    identifier: str
    kind: str
    family: str
    state: str = "Adding"
    due: float = 0


def settle(group: FakeAutoScalingGroup) -> None:
    """What is due becomes Added, its members registered, or is gone."""
    attachments = attachments_of(group)
    for attachment in list(attachments):
        if attachment.due > now():
            continue
        if attachment.state == "Adding":
            attachment.state = "Added"
            register(group, attachment.identifier, members_of(group))
        elif attachment.state == "Removing":
            attachments.remove(attachment)
    group.target_group_arns = [a.identifier for a in attachments if a.family == GROUPS]


def attached(group: FakeAutoScalingGroup, family: str) -> dict[str, Attachment]:
    return {a.identifier: a for a in attachments_of(group) if a.family == family}


# --- limits


def check_refresh(group: FakeAutoScalingGroup) -> None:
    if group.name in SETTINGS.instance_refresh:
        raise refuse(
            "InstanceRefreshInProgress",
            f"An active instance refresh exists for Auto Scaling group '{group.name}' and blocks this operation",
        )


def check_in_flight(group: FakeAutoScalingGroup, asked: Iterable[str], changing: Iterable[str]) -> None:
    """Ten in a call, and ten on the way (aws-sdk-java#746, terraform-provider-aws#11301)."""
    on_the_way = sum(attachment.state in ("Adding", "Removing") for attachment in attachments_of(group))
    if len(list(asked)) > AT_ONCE or on_the_way + len(list(changing)) > AT_ONCE:
        raise refuse(
            "ValidationError",
            f"Trying to update too many Load Balancers/Target Groups at once. The limit is {AT_ONCE}",
        )


def check_existing(context: Any, arns: Iterable[str]) -> None:
    """One unknown ARN fails the whole call (zalando-incubator/kube-ingress-aws-controller#254)."""
    if any(arn not in balancing(context).target_groups for arn in arns):
        raise refuse(
            "ValidationError", "Provided Target Groups may not be valid. Please ensure they exist and try again."
        )


def check_slots(group: FakeAutoScalingGroup, arns: Iterable[str]) -> None:
    """Fifty, other people's included (zalando-incubator/kube-ingress-aws-controller#444)."""
    if len({*(a.identifier for a in attachments_of(group)), *arns}) > IN_ALL:
        raise refuse("ValidationError", f"Too many Target Groups specified for this group. The limit is {IN_ALL}")


# --- attach, detach, describe, for either family


def attach(context: Any, group: FakeAutoScalingGroup, family: str, kinds: Mapping[str, str]) -> dict:
    known = attached(group, family)
    fresh = [arn for arn in kinds if arn not in known or known[arn].state == "Removing"]
    check_refresh(group)
    check_in_flight(group, kinds, [arn for arn in fresh if arn not in known])
    check_existing(context, kinds)
    check_slots(group, kinds)
    for arn in fresh:
        if arn in known:
            attachments_of(group).remove(known[arn])
        attachments_of(group).append(Attachment(arn, kinds[arn], family, due=now() + SETTINGS.attach_seconds))
    settle(group)
    return {}


def detach(group: FakeAutoScalingGroup, family: str, arns: list[str]) -> dict:
    known = attached(group, family)
    if any(arn not in known for arn in arns):
        raise refuse("ValidationError", "Trying to remove Target Groups that are not part of the group")
    check_in_flight(group, arns, [arn for arn in arns if known[arn].state == "Added"])
    for arn in arns:
        if known[arn].state != "Removing":
            known[arn].state, known[arn].due = "Removing", now() + SETTINGS.detach_seconds
            deregister(group, arn, members_of(group))
    settle(group)
    return {}


def state_of(group: FakeAutoScalingGroup, attachment: Attachment) -> str:
    """InService only where Auto Scaling itself looks at ELB health."""
    healthy = attachment.state == "Added" and "ELB" in (group.health_check_type or "") and members_of(group)
    return "InService" if healthy else attachment.state


def listing(context: Any, request: Request, key: str, family: str, row: Callable[[Attachment, str], dict]) -> dict:
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    wanted = request.get("TrafficSourceType")
    rows = [
        row(attachment, state_of(group, attachment))
        for attachment in attached(group, family).values()
        if wanted in (None, attachment.kind)
    ]
    start, size = int(request.get("NextToken") or 0), int(request.get("MaxRecords") or IN_ALL)
    result: dict[str, Any] = {key: rows[start : start + size]}
    if start + size < len(rows):
        result["NextToken"] = str(start + size)
    return result


# --- operations


def kinds_asked(request: Request) -> dict[str, str]:
    kinds = {source["Identifier"]: source.get("Type") or "elbv2" for source in request.get("TrafficSources") or []}
    if wrong := sorted(set(kinds.values()) - {"elbv2"}):
        raise refuse("ValidationError", f"Traffic source type '{wrong[0]}' is not valid for these identifiers")
    return kinds


def attach_sources(context: Any, request: Request) -> dict:
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    return attach(context, group, SOURCES, kinds_asked(request))


def attach_groups(context: Any, request: Request) -> dict:
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    return attach(context, group, GROUPS, dict.fromkeys(request["TargetGroupARNs"], "elbv2"))


def detach_sources(context: Any, request: Request) -> dict:
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    return detach(group, SOURCES, list(kinds_asked(request)))


def detach_groups(context: Any, request: Request) -> dict:
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    return detach(group, GROUPS, list(dict.fromkeys(request["TargetGroupARNs"])))


def describe_sources(context: Any, request: Request) -> dict:
    def row(attachment: Attachment, state: str) -> dict:
        return {"Identifier": attachment.identifier, "Type": attachment.kind, "State": state}

    return listing(context, request, "TrafficSources", SOURCES, row)


def describe_groups(context: Any, request: Request) -> dict:
    def row(attachment: Attachment, state: str) -> dict:
        return {"LoadBalancerTargetGroupARN": attachment.identifier, "State": state}

    return listing(context, request, "LoadBalancerTargetGroups", GROUPS, row)


def create_group(context: Any, request: Request) -> dict:
    """A group may be born with either family of attachments."""
    arns, kinds = request.get("TargetGroupARNs") or [], kinds_asked(request)
    check_existing(context, [*arns, *kinds])
    result = call_moto(context)
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    wanted = [(arn, "elbv2", GROUPS) for arn in arns] + [(arn, kind, SOURCES) for arn, kind in kinds.items()]
    attachments_of(group).extend(Attachment(arn, kind, family) for arn, kind, family in wanted)
    settle(group)
    return result


def describe_refreshes(context: Any, request: Request) -> dict:
    """The refreshes that the settings name; moto has none."""
    group = find_scaling_group(context, request["AutoScalingGroupName"])
    if group.name not in SETTINGS.instance_refresh:
        return {"InstanceRefreshes": []}
    refresh = {"InstanceRefreshId": f"refresh-{group.name}", "AutoScalingGroupName": group.name, "Status": "InProgress"}
    return {"InstanceRefreshes": [refresh]}
