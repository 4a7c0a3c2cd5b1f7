"""Operations where moto differs from AWS in a way that the controller's tests can see: service -> operation -> handler.

Everything else goes to moto as it is. The corrections of ec2 are patches (security_groups.py), loaded from here.
"""

from collections.abc import Callable
from typing import Any

from localstack_nlb import (
    accounts,
    capacity,
    identity,
    listeners,
    load_balancers,
    network_interfaces,
    scaling_groups,
    security_groups,  # noqa: F401  patches ec2
    tags,
    target_groups,
    targets,
    traffic_sources,
)
from localstack_nlb.paging import paged
from localstack_nlb.scaling_groups import known_group_only

Handler = Callable[[Any, Any], Any]


def let_time_pass(context: Any) -> None:
    """What has happened by itself since the last call: attachments done, members come and gone, interfaces freed.

    Runs under the lock before every ec2, elbv2 and autoscaling call, so nobody can see that it did not happen earlier.
    """
    if context.service.service_name not in ("autoscaling", "ec2", "elbv2"):
        return
    for group in accounts.scaling(context).autoscaling_groups.values():
        follow_time(group)
    network_interfaces.release_due(accounts.balancing(context))


def follow_time(group: Any) -> None:
    traffic_sources.settle(group)
    scaling_groups.launch_if_due(group)
    scaling_groups.follow(group)


OVERRIDES: dict[str, dict[str, Handler]] = {
    "sts": {
        "AssumeRole": identity.assume_role,
        "AssumeRoleWithWebIdentity": identity.assume_role_with_web_identity,
    },
    "elbv2": {
        "CreateLoadBalancer": load_balancers.create_load_balancer,
        "DeleteLoadBalancer": load_balancers.delete_load_balancer,
        "DescribeAccountLimits": load_balancers.describe_account_limits,
        "DescribeLoadBalancers": load_balancers.describe_load_balancers,
        "DescribeCapacityReservation": capacity.describe_reservation,
        "ModifyLoadBalancerAttributes": load_balancers.modify_attributes,
        "ModifyCapacityReservation": capacity.modify_reservation,
        "SetIpAddressType": load_balancers.set_ip_address_type,
        "SetSecurityGroups": load_balancers.set_security_groups,
        "SetSubnets": load_balancers.set_subnets,
        "CreateTargetGroup": target_groups.create_target_group,
        "DeleteTargetGroup": target_groups.delete_target_group,
        "DescribeTargetGroups": paged("TargetGroups"),
        "ModifyTargetGroup": target_groups.modify_target_group,
        "ModifyTargetGroupAttributes": target_groups.modify_attributes,
        "RegisterTargets": targets.register_targets,
        "DeregisterTargets": targets.deregister_targets,
        "DescribeTargetHealth": targets.describe_target_health,
        "CreateListener": listeners.create_listener,
        "DeleteListener": listeners.delete_listener,
        "DescribeListeners": listeners.describe_listeners,
        "ModifyListener": listeners.modify_listener,
        "AddListenerCertificates": listeners.add_certificates,
        "RemoveListenerCertificates": listeners.remove_certificates,
        "DescribeListenerCertificates": listeners.describe_certificates,
        "DescribeListenerAttributes": listeners.describe_attributes,
        "ModifyListenerAttributes": listeners.modify_attributes,
        "DescribeTags": tags.describe_tags,
    },
    "autoscaling": {
        "AttachTrafficSources": traffic_sources.attach_sources,
        "DetachTrafficSources": traffic_sources.detach_sources,
        "DescribeTrafficSources": traffic_sources.describe_sources,
        "AttachLoadBalancerTargetGroups": traffic_sources.attach_groups,
        "DetachLoadBalancerTargetGroups": traffic_sources.detach_groups,
        "DescribeLoadBalancerTargetGroups": traffic_sources.describe_groups,
        "DescribeInstanceRefreshes": traffic_sources.describe_refreshes,
        "CreateAutoScalingGroup": traffic_sources.create_group,
        "DescribeAutoScalingGroups": scaling_groups.describe_groups,
        "DescribeScalingActivities": scaling_groups.describe_activities,
        "AttachInstances": scaling_groups.attach_instances,
        "DetachInstances": scaling_groups.detach_instances,
        "TerminateInstanceInAutoScalingGroup": scaling_groups.terminate_instance,
        "SetDesiredCapacity": known_group_only(),
        "UpdateAutoScalingGroup": known_group_only(),
        "EnterStandby": known_group_only(),
        "ExitStandby": known_group_only(),
        "SuspendProcesses": known_group_only(),
        "ResumeProcesses": known_group_only(),
    },
}
