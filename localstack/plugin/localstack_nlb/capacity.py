"""Capacity reservations of load balancers. moto has one answer for all of them; here they are provisioned at once."""

from collections.abc import Mapping
from typing import Any

from moto.elbv2.models import FakeLoadBalancer

from localstack_nlb.accounts import refuse
from localstack_nlb.load_balancers import find_balancer

Request = Mapping[str, Any]


def modify_reservation(context: Any, request: Request) -> dict:
    """ "You must include at least one MinimumLoadBalancerCapacity or ResetCapacityReservation" (API reference)."""
    balancer = find_balancer(context, request["LoadBalancerArn"])
    balancer.activate()
    if balancer.state != "active":
        raise refuse("InvalidConfigurationRequest", f"Load balancer '{balancer.arn}' is not active")
    wanted, resets = request.get("MinimumLoadBalancerCapacity"), request.get("ResetCapacityReservation")
    if not wanted and not resets:
        raise refuse("ValidationError", "Specify a minimum load balancer capacity or a reset of the reservation")
    balancer.capacity = {} if resets else dict(wanted)
    return shown(balancer)


def describe_reservation(context: Any, request: Request) -> dict:
    return shown(find_balancer(context, request["LoadBalancerArn"]))


def shown(balancer: FakeLoadBalancer) -> dict:
    if not (reserved := getattr(balancer, "capacity", {})):
        return {"CapacityReservationState": []}
    zones = [zone.zone_name for zone in balancer.availability_zones]
    share = reserved["CapacityUnits"] / len(zones)
    states = [
        {"AvailabilityZone": zone, "State": {"Code": "provisioned"}, "EffectiveCapacityUnits": share} for zone in zones
    ]
    return {"MinimumLoadBalancerCapacity": reserved, "CapacityReservationState": states}
