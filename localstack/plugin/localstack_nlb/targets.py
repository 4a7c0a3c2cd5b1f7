"""Registered targets: an instance or address may be there once per port, and only while it runs.

moto keeps one target per id, takes unknown instances, calls every target healthy, and refuses to deregister an
unknown one ("If the specified target does not exist, the action returns successfully", API reference).
"""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from localstack.utils.patch import patch
from moto.ec2.models.instances import InstanceBackend
from moto.elbv2.models import ELBv2Backend, FakeTargetGroup

from localstack_nlb.accounts import balancing_of, quoted, refuse
from localstack_nlb.settings import SETTINGS
from localstack_nlb.target_groups import find_group

Request = Mapping[str, Any]
Target = Mapping[str, Any]


def instances_of(ec2: Any) -> dict[str, Any]:
    return {instance.id: instance for reservation in ec2.all_reservations() for instance in reservation.instances}


def check_targets(group: FakeTargetGroup, ids: list[str]) -> None:
    """Words of AWS: terraform-provider-aws#8537 (not running), aws-load-balancer-controller#1279 (do not exist)."""
    if group.target_type == "ip":
        check_addresses(ids)
    if group.target_type != "instance":
        return
    if wrong := [target for target in ids if not target.startswith("i-")]:
        raise refuse("ValidationError", f"Instance ID {quoted(wrong)} is not valid")
    known = instances_of(group.ec2_backend)
    if missing := [target for target in ids if target not in known]:
        raise refuse("InvalidTarget", f"The following targets do not exist: {quoted(missing)}")
    if down := [target for target in ids if known[target].state != "running"]:
        raise refuse(
            "InvalidTarget",
            f"The following targets are not in a running state and cannot be registered: {quoted(down)}",
        )


def check_addresses(ids: Iterable[str]) -> None:
    for target in ids:
        try:
            private = ip_address(target).is_private
        except ValueError:
            raise refuse("ValidationError", f"The IP address '{target}' is not a valid IPv4 or IPv6 address") from None
        if not private:
            raise refuse("ValidationError", f"The IP address '{target}' is not within the VPC or a private range")


def check_quota(group: FakeTargetGroup, added: Iterable[Target]) -> None:
    """TooManyTargets, for all of the call: a target in several groups of a load balancer counts in each of them."""
    groups = balancing_of(group.ec2_backend).target_groups.values()
    mates = [mate for mate in groups if set(mate.load_balancer_arns) & set(group.load_balancer_arns)]
    fresh = {key_of(group, target) for target in added} - set(group.targets)
    most = SETTINGS.targets_per_balancer
    if most and mates and sum(len(mate.targets) for mate in mates) + len(fresh) > most:
        raise refuse("TooManyTargets", f"The maximum number of targets per load balancer is {most}")


def key_of(group: FakeTargetGroup, target: Target) -> tuple[str, int]:
    return target["Id"], int(target.get("Port") or group.port)


def register_targets(context: Any, request: Request) -> dict:
    group = find_group(context, request["TargetGroupArn"])
    check_targets(group, [target["Id"] for target in request["Targets"]])
    check_quota(group, request["Targets"])
    group.register(request["Targets"])
    return {}


def deregister_targets(context: Any, request: Request) -> dict:
    """Without a port, every registration of that id goes."""
    group = find_group(context, request["TargetGroupArn"])
    group.deregister(request["Targets"])
    return {}


def describe_target_health(context: Any, request: Request) -> dict:
    group = find_group(context, request["TargetGroupArn"])
    instances = instances_of(group.ec2_backend) if group.target_type == "instance" else {}
    asked = [key_of(group, target) for target in request.get("Targets") or []] or list(group.targets)
    return {"TargetHealthDescriptions": [description_of(group, key, instances) for key in asked]}


def description_of(group: FakeTargetGroup, key: tuple[str, int], instances: Mapping[str, Any]) -> dict:
    """HealthCheckPort is a number even where the group says traffic-port."""
    port = group.health_check_port
    return {
        "Target": {"Id": key[0], "Port": key[1]},
        "HealthCheckPort": str(key[1] if port == "traffic-port" else port),
        "TargetHealth": health_of(group, key, instances),
    }


def health_of(group: FakeTargetGroup, key: tuple[str, int], instances: Mapping[str, Any]) -> dict[str, str]:
    """unused while not registered, not running, or while no listener forwards to the group; else healthy."""
    if key not in group.targets:
        return unused("Target.NotRegistered", "Target is not registered to the target group")
    instance = instances.get(key[0])
    if instance and instance.state != "running":
        return unused("Target.InvalidState", f"Target is in the {instance.state} state")
    if not group.load_balancer_arns:
        return unused("Target.NotInUse", "Target group is not configured to receive traffic from the load balancer")
    return {"State": "healthy"}


def unused(reason: str, description: str) -> dict[str, str]:
    return {"State": "unused", "Reason": reason, "Description": description}


# --- moto's own methods, so that nothing in moto sees targets kept by id alone


@patch(FakeTargetGroup.register)
def _register(_register: Callable, self: FakeTargetGroup, targets: Iterable[Target]) -> None:
    for target in targets:
        key = key_of(self, target)
        self.targets[key] = {"Id": key[0], "Port": key[1]}


@patch(FakeTargetGroup.deregister)
def _deregister(_deregister: Callable, self: FakeTargetGroup, targets: Iterable[Target]) -> None:
    for target in targets:
        for key in list(self.targets):
            if key[0] == target["Id"] and key[1] == int(target.get("Port") or key[1]):
                del self.targets[key]


@patch(ELBv2Backend.notify_terminate_instances)
def _forget_terminated(_notify: Callable, self: ELBv2Backend, instance_ids: Iterable[str]) -> None:
    for group in self.target_groups.values():
        for key in [key for key in group.targets if key[0] in instance_ids]:
            del group.targets[key]


@patch(InstanceBackend.terminate_instances)
def _terminate(terminate: Callable, self: Any, instance_ids: list[str]) -> Any:
    """A terminated instance leaves every target group, whoever terminated it; moto tells elbv2 only of API calls."""
    result = terminate(self, instance_ids)
    balancing_of(self).notify_terminate_instances(set(instance_ids))
    return result
