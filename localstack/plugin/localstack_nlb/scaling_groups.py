"""Auto Scaling groups: targets that follow the members, zones, and the trap of a deleted target group.

Auto Scaling registers an instance when it joins and deregisters it when it leaves; in between it does not look, so an
instance that somebody deregistered stays out. moto re-registers all members now and then and forgets to deregister.
`follow` restores that, from the difference to the members seen last; it runs before every call that could tell.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from localstack.services.moto import call_moto
from localstack.utils.patch import patch
from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup

from localstack_nlb.accounts import balancing_of, network, refuse, scaling
from localstack_nlb.targets import instances_of

Request = Mapping[str, Any]


def find_scaling_group(context: Any, name: str) -> FakeAutoScalingGroup:
    group = scaling(context).autoscaling_groups.get(name)
    if group is None:
        raise refuse("ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return group


def known_group_only(handler: Callable | None = None) -> Callable:
    """ValidationError for an unknown group, where moto fails with a KeyError (HTTP 500)."""

    def run(context: Any, request: Request) -> Any:
        find_scaling_group(context, request["AutoScalingGroupName"])
        return handler(context, request) if handler else call_moto(context)

    return run


# --- targets follow members


def attachments_of(group: FakeAutoScalingGroup) -> list[Any]:
    """traffic_sources.Attachment, both families."""
    return group.__dict__.setdefault("attachments", [])


def members_of(group: FakeAutoScalingGroup) -> set[str]:
    """Instances in Standby are out of traffic."""
    return {state.instance.id for state in group.active_instances()}


def register(group: FakeAutoScalingGroup, arn: str, instances: set[str]) -> None:
    if target_group := balancing_of(group.autoscaling_backend).target_groups.get(arn):
        target_group.register([{"Id": instance, "Port": target_group.port} for instance in sorted(instances)])


def deregister(group: FakeAutoScalingGroup, arn: str, instances: set[str]) -> None:
    if target_group := balancing_of(group.autoscaling_backend).target_groups.get(arn):
        target_group.deregister([{"Id": instance, "Port": target_group.port} for instance in instances])


def follow(group: FakeAutoScalingGroup) -> None:
    """With the process AddToLoadBalancer suspended, who joins is not registered, nor later ("Suspend and resume
    processes", Auto Scaling guide)."""
    members, seen = members_of(group), group.__dict__.get("members_seen", set())
    suspended = any(process["ProcessName"] == "AddToLoadBalancer" for process in group.suspended_processes)
    for attachment in attachments_of(group):
        if attachment.state != "Added":
            continue
        deregister(group, attachment.identifier, seen - members)
        if not suspended:
            register(group, attachment.identifier, members - seen)
    group.members_seen = members


# --- launching


def ghosts_of(group: FakeAutoScalingGroup) -> list[str]:
    """Attached target groups that exist no more."""
    existing = balancing_of(group.autoscaling_backend).target_groups
    return [attachment.identifier for attachment in attachments_of(group) if attachment.identifier not in existing]


def note_failed_launch(group: FakeAutoScalingGroup) -> None:
    at = datetime.now(UTC)
    reason = "One or more target groups not found. Validating load balancer configuration failed."
    activity = {
        "ActivityId": str(uuid4()),
        "AutoScalingGroupName": group.name,
        "Description": f"Launching a new EC2 instance.  Status Reason: {reason}",
        "Cause": f"At {at:%Y-%m-%dT%H:%M:%SZ} an instance was started in response to a difference between desired and "
        "actual capacity.",
        "StartTime": at,
        "EndTime": at,
        "StatusCode": "Failed",
        "StatusMessage": reason,
        "Progress": 100,
    }
    group.__dict__.setdefault("failed_launches", []).insert(0, activity)
    group.launch_due = True


def launch_if_due(group: FakeAutoScalingGroup) -> None:
    """Auto Scaling keeps trying: once no ghost is left, the missing instances come."""
    if getattr(group, "launch_due", False) and not ghosts_of(group):
        group.launch_due = False
        group.set_desired_capacity(group.desired_capacity)


def shares(group: FakeAutoScalingGroup, count: int) -> Iterator[tuple[str, str | None, int]]:
    """(zone, subnet, how many): each instance goes where the fewest are."""
    ec2 = group.ec2_backend
    subnets = group.vpc_zone_identifier.split(",") if group.vpc_zone_identifier else []
    places = [(ec2.get_subnet(subnet).availability_zone, subnet) for subnet in subnets]
    places = places or [(zone, None) for zone in group.availability_zones]
    filled = Counter(state.availability_zone for state in group.instance_states)
    given: Counter = Counter()
    for _ in range(count):
        place = min(places, key=lambda place: (filled[place[0]], given[place]))
        filled[place[0]] += 1
        given[place] += 1
    for (zone, subnet), number in given.items():
        yield zone, subnet, number


@patch(FakeAutoScalingGroup.replace_autoscaling_group_instances)
def _launch(launch: Callable, self: FakeAutoScalingGroup, count_needed: int, propagated_tags: dict[str, str]) -> None:
    """Spread over the zones (moto: all in the first subnet). With a ghost attached nothing is launched: the desired
    capacity stays, a failed activity says why (zalando-incubator/kube-ingress-aws-controller#126, #197)."""
    if ghosts_of(self):
        return note_failed_launch(self)
    whole = self.availability_zones, self.vpc_zone_identifier
    for zone, subnet, number in list(shares(self, count_needed)):
        self.availability_zones, self.vpc_zone_identifier = [zone], subnet
        try:
            launch(self, number, propagated_tags)
        finally:
            self.availability_zones, self.vpc_zone_identifier = whole


@patch(FakeAutoScalingGroup.set_desired_capacity)
def _scale(scale: Callable, self: FakeAutoScalingGroup, new_capacity: int | None) -> None:
    """moto terminates from the front of the list: put there, one after another, a member of the fullest zone."""
    left, leaving = list(self.instance_states), []
    while left:
        fullest = Counter(state.availability_zone for state in left).most_common(1)[0][0]
        leaving.append(next(state for state in left if state.availability_zone == fullest))
        left.remove(leaving[-1])
    self.instance_states = leaving
    scale(self, new_capacity)


@patch(AutoScalingBackend.update_attached_target_groups)
def _leave_targets_alone(_update: Callable, _self: AutoScalingBackend, _group_name: str) -> None:
    """moto registers all members here; `follow` registers those who joined."""


# --- operations


def describe_groups(context: Any, request: Request) -> dict:
    """TrafficSources lists what AttachTrafficSources attached; moto leaves it out."""
    result = call_moto(context)
    groups = scaling(context).autoscaling_groups
    for row in result["AutoScalingGroups"]:
        row["TrafficSources"] = [
            {"Identifier": attachment.identifier, "Type": attachment.kind}
            for attachment in attachments_of(groups[row["AutoScalingGroupName"]])
            if attachment.family == "traffic sources"
        ]
    return result


def describe_activities(context: Any, request: Request) -> dict:
    """Failed launches, newest first; moto lists no activity at all."""
    groups = scaling(context).autoscaling_groups.values()
    if name := request.get("AutoScalingGroupName"):
        groups = [find_scaling_group(context, name)]
    return {"Activities": [activity for group in groups for activity in getattr(group, "failed_launches", [])]}


def attach_instances(context: Any, request: Request) -> dict:
    """Instances must run and belong to no group. moto leaves an instance's former group in its records."""
    group, known = find_scaling_group(context, request["AutoScalingGroupName"]), instances_of(network(context))
    for instance_id in request.get("InstanceIds") or []:
        instance = known.get(instance_id)
        if instance is None or instance.state != "running":
            raise refuse("ValidationError", f"Invalid Instance ID(s): [{instance_id}] specified. It must be running")
        if owner := owner_of(context, instance_id):
            raise refuse("ValidationError", f"Instance {instance_id} is already part of AutoScalingGroup:{owner.name}")
    if len(group.instance_states) + len(request.get("InstanceIds") or []) > group.max_size:
        raise refuse(
            "ValidationError", f"AutoScalingGroup '{group.name}' has max-size={group.max_size}: too many instances"
        )
    for instance_id in request.get("InstanceIds") or []:
        known[instance_id].autoscaling_group = group
    return call_moto(context)


def detach_instances(context: Any, request: Request) -> dict:
    group, asked = find_scaling_group(context, request["AutoScalingGroupName"]), request.get("InstanceIds") or []
    members = {state.instance.id: state.instance for state in group.instance_states}
    if strangers := [instance for instance in asked if instance not in members]:
        raise refuse("ValidationError", f"The instance {strangers[0]} is not part of Auto Scaling group {group.name}.")
    result = call_moto(context)
    for instance_id in asked:
        del members[instance_id].autoscaling_group
    return result


def terminate_instance(context: Any, request: Request) -> dict:
    if owner_of(context, request["InstanceId"]) is None:
        raise refuse(
            "ValidationError",
            f"Instance Id not found - No managed instance found for instance ID: {request['InstanceId']}",
        )
    return call_moto(context)


def owner_of(context: Any, instance_id: str) -> FakeAutoScalingGroup | None:
    for group in scaling(context).autoscaling_groups.values():
        if any(state.instance.id == instance_id for state in group.instance_states):
            return group
    return None
