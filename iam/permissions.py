#!/usr/bin/env python3
"""What the controller may do in AWS and why: the one source of the policies, the trust policies and permissions.md.

    make iam        writes all of them anew

A call that is new in src/aws gets a row in PERMISSIONS: its action, what it is for, and the scopes in which it is
allowed. A scope is one statement of the policy. Which resource types and condition keys an action knows is told by the
service authorization reference (https://docs.aws.amazon.com/service-authorization/latest/reference/): Elastic Load
Balancing V2, Amazon EC2, Amazon EC2 Auto Scaling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CALLS = HERE.parent / "src" / "aws"

PARTITIONS = ("aws", "aws-cn", "aws-us-gov")

#: What whoever installs the policies replaces, in all places.
CLUSTER = "CLUSTER_NAME"
ACCOUNT = "ACCOUNT_ID"
PROVIDER = "OIDC_PROVIDER"

#: In manifests/.
NAMESPACE, SERVICE_ACCOUNT = "weir-system", "weir-controller"
#: The same in every partition, China included (eksctl#1910).
AUDIENCE = "sts.amazonaws.com"

#: src/model/ownership.rs, CLUSTER_TAG.
OWNER = "weir.dev/cluster"
#: By EKS and by every tool that makes nodes for it, on Auto Scaling groups and on security groups of nodes.
NODES = f"kubernetes.io/cluster/{CLUSTER}"

ANYTHING = ("*",)
BALANCER = "arn:{partition}:elasticloadbalancing:*:*:loadbalancer/net/*/*"
TARGET_GROUP = "arn:{partition}:elasticloadbalancing:*:*:targetgroup/*/*"
SECURITY_GROUP = "arn:{partition}:ec2:*:*:security-group/*"
VPC = "arn:{partition}:ec2:*:*:vpc/*"
SCALING_GROUP = "arn:{partition}:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/*"
#: src/model/name.rs: the names of all target groups, and of all load balancers that no annotation names.
NAMED_BALANCERS_LISTENER = "arn:{partition}:elasticloadbalancing:*:*:listener/net/weir-*/*/*"
NAMED_TARGET_GROUP = "arn:{partition}:elasticloadbalancing:*:*:targetgroup/weir-*/*"

OWNED = {f"aws:ResourceTag/{OWNER}": CLUSTER}
BORN_OWNED = {f"aws:RequestTag/{OWNER}": CLUSTER}


@dataclass(frozen=True, eq=False)
class Scope:
    """One statement: where actions are allowed. `words` complete "allowed on"."""

    sid: str
    words: str
    resources: tuple[str, ...]
    condition: dict[str, dict[str, Any]] = field(default_factory=dict)


READ = Scope("Read", "everything: these actions know no narrower permission", ANYTHING)
CREATE = Scope(
    "CreateOwn",
    "what is born with the cluster's tag",
    (BALANCER, TARGET_GROUP, SECURITY_GROUP),
    {"StringEquals": BORN_OWNED},
)
CREATE_IN_VPC = Scope("CreateInVpc", "any VPC, which is asked for beside the new security group", (VPC,))
LISTEN = Scope(
    "Listen",
    "load balancers with the cluster's tag, for a listener that is born with it",
    (BALANCER,),
    {"StringEquals": BORN_OWNED | OWNED},
)
TAG_NEW = Scope(
    "TagNew",
    "what is being created, with the cluster's tag among the tags",
    ANYTHING,
    {
        "StringEquals": BORN_OWNED
        | {"elasticloadbalancing:CreateAction": ["CreateLoadBalancer", "CreateListener", "CreateTargetGroup"]}
    },
)
TAG_NEW_GROUP = Scope(
    "TagNewSecurityGroup",
    "a security group that is being created, with the cluster's tag among the tags",
    ANYTHING,
    {"StringEquals": BORN_OWNED | {"ec2:CreateAction": "CreateSecurityGroup"}},
)
TAG_OWN = Scope(
    "TagOwn",
    "what carries the cluster's tag, but for that tag itself",
    ANYTHING,
    {
        "StringEquals": OWNED,
        "ForAllValues:StringNotEquals": {"aws:TagKeys": OWNER},
        # DeleteTags without keys deletes all tags.
        "Null": {"aws:TagKeys": "false"},
    },
)
CHANGE_OWN = Scope(
    "ChangeOwn",
    "what carries the cluster's tag",
    ANYTHING,
    {"StringEquals": OWNED},
)
HAND_MADE = Scope(
    # Of a listener, IAM knows its own tags and the name of its load balancer, but not the load balancer's tags.
    "HandMadeListeners",
    "listeners without any cluster's tag, on load balancers that weir named",
    (NAMED_BALANCERS_LISTENER,),
    {"Null": {f"aws:ResourceTag/{OWNER}": "true"}},
)
NODE_GROUPS = Scope(
    "AdmitToNodes",
    "security groups tagged `kubernetes.io/cluster/<cluster>`",
    (SECURITY_GROUP,),
    {"Null": {f"aws:ResourceTag/{NODES}": "false"}},
)
ATTACH = Scope(
    "Attach",
    "Auto Scaling groups tagged `kubernetes.io/cluster/<cluster>`, for target groups that weir named",
    (SCALING_GROUP,),
    {
        "ForAllValues:StringLike": {"autoscaling:TrafficSourceIdentifiers": NAMED_TARGET_GROUP},
        "Null": {"autoscaling:TrafficSourceIdentifiers": "false", f"aws:ResourceTag/{NODES}": "false"},
    },
)
DETACH = Scope(
    # Also one without that tag: a target group that is deleted while attached keeps it from launching anything.
    "Detach",
    "any Auto Scaling group, for target groups that weir named",
    (SCALING_GROUP,),
    {
        "ForAllValues:StringLike": {"autoscaling:TrafficSourceIdentifiers": NAMED_TARGET_GROUP},
        "Null": {"autoscaling:TrafficSourceIdentifiers": "false"},
    },
)
DETACH_OLDER = Scope(
    "DetachByOlderCall",
    DETACH.words,
    (SCALING_GROUP,),
    {
        "ForAllValues:ArnLike": {"autoscaling:TargetGroupARNs": NAMED_TARGET_GROUP},
        "Null": {"autoscaling:TargetGroupARNs": "false"},
    },
)


@dataclass(frozen=True)
class Permission:
    """An action, what weir needs it for, and where it is allowed. A tag given at creation is a permission of its own,
    asked for by the call that creates: `tags` names those calls' actions."""

    action: str
    purpose: str
    scopes: tuple[Scope, ...] = (READ,)
    tags: tuple[str, ...] = ()


def elb(name: str, purpose: str, *scopes: Scope, tags: tuple[str, ...] = ()) -> Permission:
    tagged = tuple(f"elasticloadbalancing:{each}" for each in tags)
    return Permission(f"elasticloadbalancing:{name}", purpose, scopes or (READ,), tagged)


def ec2(name: str, purpose: str, *scopes: Scope, tags: tuple[str, ...] = ()) -> Permission:
    return Permission(f"ec2:{name}", purpose, scopes or (READ,), tuple(f"ec2:{each}" for each in tags))


def asg(name: str, purpose: str, *scopes: Scope) -> Permission:
    return Permission(f"autoscaling:{name}", purpose, scopes or (READ,))


PERMISSIONS = (
    elb("DescribeLoadBalancers", "to find the cluster's load balancers, and to see a new one become active"),
    elb("DescribeListeners", "to find listeners that were changed, deleted or added by others"),
    elb("DescribeTargetGroups", "to find the cluster's target groups"),
    elb("DescribeTargetHealth", "to see which instances are registered"),
    elb("DescribeLoadBalancerAttributes", "to find attributes that others changed, and those set before a restart"),
    elb("DescribeTargetGroupAttributes", "the same, of target groups"),
    elb("DescribeListenerAttributes", "the same, of listeners"),
    elb("DescribeListenerCertificates", "the same, of certificates beside a listener's default one"),
    elb("DescribeCapacityReservation", "the same, of reserved capacity"),
    elb("DescribeTags", "to know what is the cluster's own"),
    elb("CreateLoadBalancer", "a Service's load balancer", CREATE),
    elb("CreateTargetGroup", "a target group for each port of a Service", CREATE),
    elb("CreateListener", "a listener for each port of a Service", LISTEN),
    elb(
        "AddTags",
        "the tags that prove ownership, and those that a Service asks for",
        TAG_NEW,
        TAG_OWN,
        HAND_MADE,
        tags=("CreateLoadBalancer", "CreateTargetGroup", "CreateListener"),
    ),
    elb("RemoveTags", "tags that a Service no longer asks for", TAG_OWN),
    elb("ModifyCapacityReservation", "capacity that a Service reserves", CHANGE_OWN),
    elb("SetSecurityGroups", "to put a load balancer's security groups right", CHANGE_OWN),
    elb("SetIpAddressType", "an IPv4 load balancer that is to be dualstack, or the reverse", CHANGE_OWN),
    elb("SetSubnets", "zones that a Service adds or leaves", CHANGE_OWN),
    elb("ModifyLoadBalancerAttributes", "attributes that a Service asks for", CHANGE_OWN),
    elb("ModifyTargetGroupAttributes", "attributes that a Service asks for", CHANGE_OWN),
    elb("ModifyListenerAttributes", "attributes that a Service asks for", CHANGE_OWN),
    elb("AddListenerCertificates", "certificates of a listener that has several", CHANGE_OWN),
    elb("RemoveListenerCertificates", "certificates that a Service no longer names", CHANGE_OWN),
    elb("ModifyTargetGroup", "the health check, as after a change of externalTrafficPolicy", CHANGE_OWN),
    elb("ModifyListener", "to point a listener to another target group", CHANGE_OWN, HAND_MADE),
    elb("RegisterTargets", "nodes that no Auto Scaling group registers", CHANGE_OWN),
    elb("DeregisterTargets", "nodes that left and that no Auto Scaling group takes out", CHANGE_OWN),
    elb("DeleteListener", "ports that a Service no longer has, and listeners that others added", CHANGE_OWN, HAND_MADE),
    elb("DeleteTargetGroup", "target groups that no listener needs", CHANGE_OWN),
    elb("DeleteLoadBalancer", "the load balancer of a Service that is gone", CHANGE_OWN),
    ec2("DescribeInstances", "the VPC and the security groups of the nodes"),
    ec2("DescribeSubnets", "to choose subnets for a load balancer"),
    ec2("DescribeRouteTables", "to tell public subnets from private ones"),
    ec2("DescribeSecurityGroups", "to find the cluster's security groups, and rules that name them"),
    ec2("DescribeManagedPrefixLists", "the address family and the size of prefix lists that a Service names"),
    ec2("DescribeNetworkInterfaces", "to name what keeps a security group from being deleted"),
    ec2("DescribeVpcEndpointServiceConfigurations", "to name what keeps a load balancer from being deleted"),
    ec2("CreateSecurityGroup", "a Service's source ranges; what all load balancers carry", CREATE, CREATE_IN_VPC),
    ec2(
        "CreateTags",
        "the tags that prove ownership, and those that a Service asks for",
        TAG_NEW_GROUP,
        TAG_OWN,
        tags=("CreateSecurityGroup",),
    ),
    ec2("DeleteTags", "tags that a Service no longer asks for", TAG_OWN),
    ec2(
        "AuthorizeSecurityGroupIngress",
        "source ranges, and to admit the load balancers to the nodes",
        CHANGE_OWN,
        NODE_GROUPS,
    ),
    ec2("RevokeSecurityGroupIngress", "rules that are no longer wanted", CHANGE_OWN, NODE_GROUPS),
    ec2("DeleteSecurityGroup", "security groups that no load balancer carries", CHANGE_OWN),
    asg("DescribeAutoScalingGroups", "the groups of the nodes, and what is attached to them"),
    asg("DescribeAutoScalingInstances", "the group of a node whose labels do not tell it"),
    asg("DescribeTrafficSources", "to see attachments and detachments done"),
    asg("DescribeLoadBalancerTargetGroups", "the same, of what others attached by the older calls"),
    asg("AttachTrafficSources", "target groups whose nodes Auto Scaling registers", ATTACH),
    asg("DetachTrafficSources", "target groups that are to be deleted", DETACH),
    asg("DetachLoadBalancerTargetGroups", "the same, where others attached them by the older calls", DETACH_OLDER),
)


#: In src/aws: calls of `weir status` and `weir doctor` alone, which people run as whom they like.
INQUIRY = "inquiry.rs"

#: What these ask for that the controller does not need.
EXTRA = {
    "autoscaling:DescribeInstanceRefreshes": "Auto Scaling groups that replace their instances just now",
    "elasticloadbalancing:DescribeAccountLimits": "quotas that are nearly used up",
    "sts:GetCallerIdentity": "whose credentials these are; everybody may ask that",
}


# --- documents


def policy(partition: str) -> dict[str, Any]:
    """The controller's permissions in one partition: a statement for each scope."""
    statements = []
    for scope in scopes():
        statement: dict[str, Any] = {
            "Sid": scope.sid,
            "Effect": "Allow",
            "Action": one_or_all(sorted(each.action for each in PERMISSIONS if scope in each.scopes)),
            "Resource": one_or_all(scope.resources),
        }
        if scope.condition:
            statement["Condition"] = scope.condition
        statements.append(statement)
    return in_partition(partition, {"Version": "2012-10-17", "Statement": statements})


def one_or_all(values: Sequence[str]) -> str | list[str]:
    """A list of one without its brackets: a policy's characters are counted."""
    return list(values) if len(values) > 1 else values[0]


def scopes() -> list[Scope]:
    """Those in use, in the order in which the table meets them."""
    return list(dict.fromkeys(scope for permission in PERMISSIONS for scope in permission.scopes))


def trust_web_identity(partition: str) -> dict[str, Any]:
    """Who may become the role by IRSA: the controller's service account in one cluster."""
    subject = f"system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"
    statement = {
        "Effect": "Allow",
        "Principal": {"Federated": f"arn:{partition}:iam::{ACCOUNT}:oidc-provider/{PROVIDER}"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {f"{PROVIDER}:sub": subject, f"{PROVIDER}:aud": AUDIENCE}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def trust_pod_identity() -> dict[str, Any]:
    """Who may become the role by EKS Pod Identity: the same, told by the tags of the session. No ARN in it, and the
    service has one name in every partition."""
    told = {"eks-cluster-name": CLUSTER, "kubernetes-namespace": NAMESPACE, "kubernetes-service-account": SERVICE_ACCOUNT}
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "pods.eks.amazonaws.com"},
        "Action": ["sts:AssumeRole", "sts:TagSession"],
        "Condition": {"StringEquals": {f"aws:RequestTag/{key}": value for key, value in told.items()}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def in_partition(partition: str, document: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(document).replace("{partition}", partition))


# --- the calls in the code


@dataclass(frozen=True)
class Call:
    action: str
    file: str
    function: str


def calls() -> list[Call]:
    """Every AWS call of the controller: the literals in `call!(…)`."""
    return [call for path in sorted(CALLS.glob("*.rs")) if path.name != INQUIRY for call in calls_of(path)]


def inquiries() -> list[Call]:
    """Every AWS call that only the commands for people make."""
    return list(calls_of(CALLS / INQUIRY))


def calls_of(path: Path) -> Iterator[Call]:
    function = ""
    for found in re.finditer(r'\bfn (\w+)|\bcall!\(\s*self\.\w+,\s*"(\w+:\w+)"', path.read_text()):
        if found.group(1):
            function = found.group(1)
        else:
            yield Call(found.group(2), path.name, function)


def contradictions() -> list[str]:
    """Calls without a permission, and permissions without a call, in sentences."""
    made = {call.action for call in calls()}
    known = {permission.action for permission in PERMISSIONS}
    missing = [
        f"src/aws/{call.file} calls {call.action} in {call.function}(): it needs a row in iam/permissions.py"
        for call in calls()
        if call.action not in known
    ]
    unused = [
        f"iam/permissions.py has a row for {permission.action}, which nothing in src/aws calls"
        for permission in PERMISSIONS
        if permission.action not in made
    ]
    asked = {call.action for call in inquiries()}
    unexplained = [f"src/aws/{INQUIRY} calls {action}, which no table knows" for action in asked - known - EXTRA.keys()]
    unasked = [f"iam/permissions.py explains {action}, which src/aws/{INQUIRY} does not call" for action in EXTRA.keys() - asked]
    return missing + unused + unexplained + unasked


# --- the table for people


def table() -> str:
    rows = [
        f"| `{permission.action}` | {callers(permission)} | {permission.purpose} | {allowed_on(permission)} |"
        for permission in sorted(PERMISSIONS, key=lambda permission: permission.action)
    ]
    return "\n".join(
        [
            "# Permissions of the controller",
            "",
            "Written by `make iam` from [permissions.py](permissions.py) and the calls in [src/aws](../src/aws); a test",
            "keeps all three alike. *The cluster's tag* is `weir.dev/cluster` with the cluster's name.",
            "",
            "| Permission | Asked for by | For | Allowed on |",
            "|---|---|---|---|",
            *rows,
            "",
            "# What `weir doctor` asks for besides",
            "",
            "It uses the permissions above, with dry runs in place of writes. These are no part of the policies; without",
            "them less is looked at.",
            "",
            "| Permission | For |",
            "|---|---|",
            *(f"| `{action}` | {purpose} |" for action, purpose in sorted(EXTRA.items())),
            "",
        ]
    )


def callers(permission: Permission) -> str:
    """The functions whose calls ask for it."""
    direct = {f"`{call.function}`" for call in calls() if call.action == permission.action}
    tagging = {f"`{call.function}`, for its tags" for call in calls() if call.action in permission.tags}
    return "; ".join([*sorted(direct), *sorted(tagging)])


def allowed_on(permission: Permission) -> str:
    return "; ".join(scope.words for scope in permission.scopes)


def documents() -> dict[str, str]:
    """Every generated file: its name and its text."""
    made = {f"policy-{partition}.json": policy(partition) for partition in PARTITIONS}
    made |= {f"trust-irsa-{partition}.json": trust_web_identity(partition) for partition in PARTITIONS}
    made["trust-pod-identity.json"] = trust_pod_identity()
    return {name: json.dumps(document, indent=2) + "\n" for name, document in made.items()} | {"permissions.md": table()}


if __name__ == "__main__":
    for name, text in documents().items():
        (HERE / name).write_text(text)
    for sentence in contradictions():
        raise SystemExit(sentence)
