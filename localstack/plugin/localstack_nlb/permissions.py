"""Which IAM permissions a call asks for, kept in AUDIT; and when enforcement is on, whether its caller has them.

The map from operations to resource types and condition keys follows the service authorization reference for Elastic
Load Balancing V2, EC2 and EC2 Auto Scaling. Who calls is found out in identity.py.
"""

import re
from collections.abc import Iterator
from typing import Any

from localstack.aws.api import CommonServiceException

from localstack_nlb import accounts, identity
from localstack_nlb.policies import Facts, allowed, listed

AUDIT: list[dict[str, Any]] = []
MODE = {"enforce": False}

PREFIX = {"elbv2": "elasticloadbalancing"}
TAGGING = {"elasticloadbalancing": "AddTags", "ec2": "CreateTags"}
COVERED = {"elbv2", "ec2", "autoscaling", "acm", "iam"}
ARN_FIELDS = ("ListenerArn", "TargetGroupArn", "LoadBalancerArn", "ResourceArns")
EC2_FIELDS = {"GroupId": "security-group", "VpcId": "vpc", "SubnetId": "subnet", "InstanceId": "instance"}
EC2_KINDS = {"sg": "security-group", "i": "instance", "vpc": "vpc", "subnet": "subnet"}


def tags_of(context: Any, arn: str) -> dict[str, str]:
    if ":elasticloadbalancing:" in arn:
        return accounts.balancing(context).tagging_service.get_tag_dict_for_resource(arn)
    if ":ec2:" in arn:
        return dict(accounts.network(context).tags.get(arn.rsplit("/", 1)[-1], {}))
    if ":autoScalingGroup:" in arn:
        group = accounts.scaling(context).autoscaling_groups.get(arn.rsplit("/", 1)[-1])
        return {tag["Key"]: tag.get("Value", "") for tag in group.tags} if group else {}
    return {}


def group_arn(context: Any, name: str) -> str:
    group = accounts.scaling(context).autoscaling_groups.get(name)
    if group:
        return group.arn
    return f"arn:aws:autoscaling:{context.region}:{context.account_id}:autoScalingGroup:*:autoScalingGroupName/{name}"


def resources(context: Any, operation: str, request: dict) -> list[str]:
    """The ARNs that a policy's Resource is compared with. A create has no id yet: it ends in `/new`."""

    def arn(service: str, rest: str) -> str:
        return f"arn:aws:{service}:{context.region}:{context.account_id}:{rest}"

    if re.match(r"(Describe|List|Get)[A-Z]", operation):
        return ["*"]  # none of the reads used here supports resource-level permissions
    if operation == "CreateLoadBalancer":
        return [arn("elasticloadbalancing", f"loadbalancer/net/{request['Name']}/new")]
    if operation == "CreateTargetGroup":
        return [arn("elasticloadbalancing", f"targetgroup/{request['Name']}/new")]
    if operation == "CreateListener":
        return [request["LoadBalancerArn"]]
    if operation == "CreateSecurityGroup":
        return [arn("ec2", "security-group/new"), arn("ec2", f"vpc/{request.get('VpcId')}")]
    if operation in ("CreateTags", "DeleteTags") and "Resources" in request:
        return [arn("ec2", f"{EC2_KINDS.get(r.split('-')[0], '*')}/{r}") for r in request["Resources"]]
    if "AutoScalingGroupName" in request:
        return [group_arn(context, request["AutoScalingGroupName"])]
    for field in ARN_FIELDS:  # the most specific one names the resource
        if request.get(field):
            return listed(request[field])
    return [arn("ec2", f"{kind}/{request[field]}") for field, kind in EC2_FIELDS.items() if request.get(field)] or ["*"]


def tags_given(request: dict) -> dict[str, str]:
    given = {tag["Key"]: tag.get("Value", "") for tag in request.get("Tags") or []}
    for specification in request.get("TagSpecifications") or []:
        given.update({tag["Key"]: tag.get("Value", "") for tag in specification.get("Tags", [])})
    return given


def sources_given(request: dict) -> Facts:
    """What is attached to an Auto Scaling group or detached from it."""
    given: Facts = {}
    if sources := request.get("TrafficSources"):
        given["autoscaling:TrafficSourceIdentifiers"] = [source["Identifier"] for source in sources]
    if arns := request.get("TargetGroupARNs"):
        given["autoscaling:TargetGroupARNs"] = list(arns)
    return given


def questions(context: Any) -> Iterator[tuple[str, str, Facts]]:
    """(action, resource ARN, condition keys) for everything a call asks for; tags on create ask for tagging, too."""
    operation, request = context.operation.name, context.service_request or {}
    prefix = PREFIX.get(context.service.service_name, context.service.service_name)
    given = tags_given(request)
    base: Facts = {"aws:RequestedRegion": context.region}
    base |= {f"aws:RequestTag/{key}": value for key, value in given.items()}
    if keys := [*given, *(request.get("TagKeys") or [])]:
        base["aws:TagKeys"] = keys
    base |= sources_given(request)
    tagging = TAGGING.get(prefix)
    for resource in resources(context, operation, request):
        facts = dict(base)
        for key, value in tags_of(context, resource).items():
            facts |= {f"{holder}:ResourceTag/{key}": value for holder in ("aws", prefix)}
        yield f"{prefix}:{operation}", resource, facts
        if not (given and tagging and operation.startswith("Create")) or operation == tagging:
            continue
        if operation == "CreateListener":  # the load balancer is there already, the new listener takes the tags
            resource, facts = resource.replace(":loadbalancer/", ":listener/") + "/new", base
        if not resource.split(":")[-1].startswith("vpc/"):
            yield f"{prefix}:{tagging}", resource, facts | {f"{prefix}:CreateAction": operation}


def denied(context: Any, who: str, action: str, resource: str) -> CommonServiceException:
    """ec2 has a code of its own for this."""
    code = "UnauthorizedOperation" if context.service.service_name == "ec2" else "AccessDenied"
    return accounts.refuse(code, f"User: {who} is not authorized to perform: {action} on resource: {resource}", 403)


def check(context: Any) -> None:
    if context.service.service_name not in COVERED:
        return
    wanted, call = list(questions(context)), context.nlb_call
    origin = {"account": call.account, "client": call.client}
    AUDIT.extend(origin | {"action": action, "resource": resource, "context": facts} for action, resource, facts in wanted)
    if not MODE["enforce"]:
        return
    who = identity.caller(context)
    if who.statements is None:
        return
    for action, resource, facts in wanted:
        if not allowed(who.statements, action, resource, facts):
            raise denied(context, who.arn, action, resource)


def find_questions(account: str | None = None, client: str | None = None) -> list[dict[str, Any]]:
    return [row for row in AUDIT if account in (None, row["account"]) and client in (None, row["client"])]
