"""Target groups of network load balancers: health-check defaults and ranges, attributes, deletion."""

from collections.abc import Mapping
from typing import Any

from localstack.services.moto import call_moto, call_moto_with_request
from moto.elbv2.exceptions import TargetGroupNotFoundError
from moto.elbv2.models import FakeTargetGroup

from localstack_nlb.accounts import balancing, quoted, refuse
from localstack_nlb.tags import check_tags

Request = Mapping[str, Any]

NETWORK = {"TCP", "UDP", "TCP_UDP", "TLS"}
HTTP = {"HTTP", "HTTPS"}
RANGES = {
    "HealthCheckIntervalSeconds": (5, 300),
    "HealthCheckTimeoutSeconds": (2, 120),
    "HealthyThresholdCount": (2, 10),
    "UnhealthyThresholdCount": (2, 10),
}
HTTP_CHECK = {"HealthCheckPath": "/", "HealthCheckTimeoutSeconds": 6, "Matcher": {"HttpCode": "200-399"}}

NLB_ATTRIBUTES = {
    "deregistration_delay.connection_termination.enabled": "false",
    "preserve_client_ip.enabled": "true",
    "proxy_protocol_v2.enabled": "false",
    "target_group_health.dns_failover.minimum_healthy_targets.count": "1",
    "target_group_health.dns_failover.minimum_healthy_targets.percentage": "off",
    "target_group_health.unhealthy_state_routing.minimum_healthy_targets.count": "1",
    "target_group_health.unhealthy_state_routing.minimum_healthy_targets.percentage": "off",
    "target_health_state.unhealthy.connection_termination.enabled": "true",
    "target_health_state.unhealthy.draining_interval_seconds": "0",
}
MINIMUM = "target_group_health.{}.minimum_healthy_targets.{}"
DRAINING = "target_health_state.unhealthy.draining_interval_seconds"
TERMINATION = "target_health_state.unhealthy.connection_termination.enabled"
NUMBERS = {
    "deregistration_delay.timeout_seconds": (0, 3600),
    DRAINING: (0, 360_000),
    MINIMUM.format("dns_failover", "count"): (1, 1000),
    MINIMUM.format("dns_failover", "percentage"): (1, 100),
    MINIMUM.format("unhealthy_state_routing", "count"): (1, 1000),
    MINIMUM.format("unhealthy_state_routing", "percentage"): (1, 100),
}
MAY_BE_OFF = NUMBERS.keys() - {
    "deregistration_delay.timeout_seconds",
    DRAINING,
    MINIMUM.format("unhealthy_state_routing", "count"),
}
CROSS_ZONE = ("true", "false", "use_load_balancer_configuration")
APPLICATION_ONLY = ("load_balancing.algorithm.type", "slow_start.duration_seconds", "waf.fail_open.enabled")


def find_group(context: Any, arn: str) -> FakeTargetGroup:
    group = balancing(context).target_groups.get(arn)
    if group is None:
        raise TargetGroupNotFoundError()
    return group


def check_health_check(request: Request, group: FakeTargetGroup | None = None) -> None:
    """Ranges as in the API reference; checks are TCP, HTTP or HTTPS. moto takes any number and UDP checks, and path or
    matcher for a TCP check. `group` is the one that the request changes."""
    for field, (low, high) in RANGES.items():
        value = request.get(field)
        if value is not None and not low <= int(value) <= high:
            raise refuse("ValidationError", f"{field} must be between {low} and {high}, not {value}")
    asked = request.get("HealthCheckProtocol")
    if asked and asked not in {"TCP", *HTTP}:
        raise refuse("ValidationError", f"Health check protocol '{asked}' is not supported")
    port = request.get("HealthCheckPort")
    if port and port != "traffic-port" and not (port.isdigit() and 1 <= int(port) <= 65535):
        raise refuse("ValidationError", f"Health check port '{port}' must be traffic-port or between 1 and 65535")
    if (request.get("Protocol") or (group and group.protocol)) not in NETWORK:
        return
    path, codes = request.get("HealthCheckPath"), (request.get("Matcher") or {}).get("HttpCode")
    if (asked or (group.health_check_protocol if group else "TCP")) == "TCP":
        if path or codes:
            raise refuse("InvalidConfigurationRequest", "A TCP health check has neither path nor matcher")
        return
    if path and not path.startswith("/"):
        raise refuse("ValidationError", f"Health check path '{path}' must begin with a '/' character")
    numbers = [number for part in (codes or "200").split(",") for number in part.split("-")]
    if not all(number.isdigit() and 200 <= int(number) <= 599 for number in numbers):
        raise refuse("ValidationError", f"Health check matcher HTTP code '{codes}' must be within '200-599'")


def check_timing(interval: int, timeout: int) -> None:
    if timeout > interval:
        raise refuse(
            "ValidationError",
            f"Health check timeout '{timeout}' must be smaller than or equal to the interval '{interval}'",
        )


def create_target_group(context: Any, request: Request) -> dict:
    """A group with an HTTP check has path `/`, matcher 200-399 and timeout 6 unless told. The same request again
    answers the existing group; moto says DuplicateTargetGroupName, as AWS does only when settings differ."""
    backend = balancing(context)
    check_tags(request.get("Tags"))
    check_health_check(request)
    for known in backend.target_groups.values():
        if known.name == request["Name"] and getattr(known, "settings", None) == dict(request):
            return {"TargetGroups": [known.created | {"LoadBalancerArns": list(known.load_balancer_arns)}]}
    asked = dict(request)
    if request.get("Protocol") in NETWORK and request.get("HealthCheckProtocol") in HTTP:
        asked = HTTP_CHECK | asked
        interval = int(asked.get("HealthCheckIntervalSeconds") or 30)
        if "HealthCheckTimeoutSeconds" not in request:
            asked["HealthCheckTimeoutSeconds"] = min(6, interval)
    result = call_moto(context) if asked == request else call_moto_with_request(context, asked)
    shown = result["TargetGroups"][0]
    group = backend.target_groups[shown["TargetGroupArn"]]
    if group.protocol in NETWORK:
        set_network_attributes(group)
    group.settings, group.created = dict(request), shown
    return result


def set_network_attributes(group: FakeTargetGroup) -> None:
    """The attribute table of ModifyTargetGroupAttributes; moto lists those of application load balancers."""
    for key in APPLICATION_ONLY:
        group.attributes.pop(key, None)
    group.attributes.update(NLB_ATTRIBUTES)
    if group.protocol in ("UDP", "TCP_UDP"):
        group.attributes["deregistration_delay.connection_termination.enabled"] = "true"
        group.attributes["target_health_state.unhealthy.connection_termination.enabled"] = "false"
    elif group.target_type == "ip":
        group.attributes["preserve_client_ip.enabled"] = "false"


def modify_target_group(context: Any, request: Request) -> dict:
    """The matcher of a network group with an HTTP check changes (moto: only if the group itself is HTTP); a check that
    becomes HTTP gets the defaults, one that becomes TCP loses path and matcher."""
    group = find_group(context, request["TargetGroupArn"])
    check_health_check(request, group)
    check_timing(
        int(request.get("HealthCheckIntervalSeconds") or group.health_check_interval_seconds),
        int(request.get("HealthCheckTimeoutSeconds") or group.health_check_timeout_seconds),
    )
    before = group.health_check_protocol
    result = call_moto(context)
    shown = result["TargetGroups"][0]
    group.settings = None
    if group.protocol not in NETWORK:
        return result
    if group.health_check_protocol == "TCP":
        group.health_check_path = None
        group.__dict__.pop("matcher", None)
        shown.pop("HealthCheckPath", None)
        shown.pop("Matcher", None)
        return result
    if before == "TCP":
        group.health_check_path = request.get("HealthCheckPath") or HTTP_CHECK["HealthCheckPath"]
        group.matcher = dict(HTTP_CHECK["Matcher"])
    if codes := (request.get("Matcher") or {}).get("HttpCode"):
        group.matcher = {"HttpCode": codes}
    shown |= {"HealthCheckPath": group.health_check_path, "Matcher": group.matcher}
    return result


def modify_attributes(context: Any, request: Request) -> dict:
    """Unknown keys and bad values are refused, 3600 seconds are allowed, all attributes are answered; UDP and TCP_UDP
    groups cannot turn client IP preservation off."""
    group = find_group(context, request["TargetGroupArn"])
    wanted = {attribute["Key"]: attribute.get("Value", "") for attribute in request["Attributes"]}
    if group.protocol not in NETWORK:
        return call_moto(context)
    for key, value in wanted.items():
        check_attribute(group, key, value)
    after = group.attributes | wanted
    if after[TERMINATION] == "true" and str(after[DRAINING]) != "0":
        raise refuse("InvalidConfigurationRequest", f"'{DRAINING}' needs '{TERMINATION}' to be false")
    group.attributes.update(wanted)
    return {"Attributes": [{"Key": key, "Value": str(value)} for key, value in group.attributes.items()]}


def check_attribute(group: FakeTargetGroup, key: str, value: str) -> None:
    if key not in group.attributes:
        raise refuse("ValidationError", f"Target group attribute key '{key}' is not recognized")
    if key in NUMBERS:
        low, high = NUMBERS[key]
        if not (value.isdigit() and low <= int(value) <= high) and not (value == "off" and key in MAY_BE_OFF):
            raise refuse("ValidationError", f"'{key}' value '{value}' must be between '{low}-{high}' inclusive")
    elif key == "load_balancing.cross_zone.enabled":
        if value not in CROSS_ZONE:
            raise refuse("ValidationError", f"Target group attribute '{key}' must be one of {quoted(CROSS_ZONE)}")
    elif key == "stickiness.type":
        if value != "source_ip":
            raise refuse("InvalidConfigurationRequest", f"Stickiness type '{value}' is not one of {group.protocol}")
    elif value not in ("true", "false"):
        raise refuse("ValidationError", f"Target group attribute '{key}' must be true or false, not '{value}'")
    if (key, value) == ("preserve_client_ip.enabled", "false") and group.protocol in ("UDP", "TCP_UDP"):
        raise refuse("InvalidConfigurationRequest", f"Client IP preservation cannot be disabled for {group.protocol}")
    if (key, value) == (TERMINATION, "true") and group.protocol in ("UDP", "TCP_UDP"):
        raise refuse("InvalidConfigurationRequest", f"'{key}' cannot be enabled for {group.protocol}")
    if (key, value) == ("stickiness.enabled", "true") and group.protocol == "TLS":
        raise refuse("InvalidConfigurationRequest", "Stickiness is not supported for TLS target groups")


def delete_target_group(context: Any, request: Request) -> dict:
    """An unknown group is no error: the API reference lists ResourceInUse alone. One that is still attached to an Auto
    Scaling group goes all the same, and its ARN stays in that group as a ghost (see scaling_groups.py)."""
    backend, arn = balancing(context), request["TargetGroupArn"]
    if arn not in backend.target_groups:
        return {}
    result = call_moto(context)
    backend.tagging_service.delete_all_tags_for_resource(arn)
    return result
