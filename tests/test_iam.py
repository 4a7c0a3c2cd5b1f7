"""Permissions: what weir needs is what iam/ grants, no more and no less; and how it gets its credentials in EKS."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from conftest import WeirFactory
from localstack_nlb.policies import allowed, listed

from sandbox.aws import REGION, Account, LocalStack
from sandbox.checks import (
    ANNOTATION,
    NOTHING,
    attached,
    balancer,
    drift_checks,
    group,
    is_served,
    left_in_aws,
    listeners,
    rules,
    serve,
    target_groups,
    target_of,
    targets,
)
from sandbox.cluster import ControlPlane
from sandbox.consent import DENIAL, Consent, actions, without
from sandbox.identity import (
    EKS_AUDIENCE,
    IAM,
    NO_KEYS,
    STS_AUDIENCE,
    Document,
    PodIdentityAgent,
    Role,
    document,
    forged,
    register_issuer,
    service_account_token,
    web_identity,
)
from sandbox.manifests import MANIFESTS, kustomize
from sandbox.process import wait_for
from sandbox.scene import Scene
from sandbox.view import lone_instances, node_of, nodes_follow

CLUSTER_TAG = "weir.dev/cluster"
REFUSED = ("AccessDenied", "UnauthorizedOperation")
#: Forty denials in a row take no minutes.
IMPATIENT = ("--retry-max-interval=300ms", "--drift-interval=1s")
#: Sessions so short that the SDK, which renews them up to ten seconds before they end, does so all the time.
SHORT_SESSION = 12


def generator() -> ModuleType:
    """`iam/permissions.py`."""
    specification = importlib.util.spec_from_file_location("weir_permissions", IAM / "permissions.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclasses look for it
    specification.loader.exec_module(module)
    return module


PERMISSIONS = generator()
README = (IAM / "README.md").read_text()
POLICY = json.loads((IAM / "policy-aws.json").read_text())
GRANTS = [(statement["Sid"], action) for statement in POLICY["Statement"] for action in listed(statement["Action"])]
PATTERNS = [
    (statement["Sid"], pattern)
    for statement in POLICY["Statement"]
    for pattern in listed(statement["Resource"])
    if statement["Resource"] != pattern
]


# --- the files


def test_the_files_are_what_the_table_says() -> None:
    for name, text in PERMISSIONS.documents().items():
        assert (IAM / name).read_text() == text, f"iam/{name} is not up to date: run `make iam`"


def test_each_call_has_a_permission_and_each_permission_a_call() -> None:
    assert PERMISSIONS.contradictions() == []


def test_partitions_differ_in_their_name_alone() -> None:
    for kind in ("policy", "trust-irsa"):
        texts = {name: (IAM / f"{kind}-{name}.json").read_text() for name in PERMISSIONS.PARTITIONS}
        for partition, text in texts.items():
            assert set(re.findall(r"arn:([a-z-]+):", text)) == {partition}
            assert text.replace(f"arn:{partition}:", "arn:aws:") == texts["aws"]


def test_a_policy_fits_into_a_managed_one() -> None:
    """6,144 characters without blanks (IAM quotas), also for the longest name that EKS takes."""
    for partition in PERMISSIONS.PARTITIONS:
        text = (IAM / f"policy-{partition}.json").read_text().replace(PERMISSIONS.CLUSTER, "x" * 100)
        assert len(re.sub(r"\s", "", text)) <= 6144


def test_the_trusted_service_account_is_that_of_the_manifests() -> None:
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"])
        for each in kustomize(MANIFESTS / "base" / "controller")
        if each["kind"] == "ServiceAccount"
    }
    assert accounts == {(PERMISSIONS.NAMESPACE, PERMISSIONS.SERVICE_ACCOUNT)}


def test_the_readmes_commands_leave_nothing_to_replace(tmp_path: Path) -> None:
    """Its `sed` lines, run in a directory beside the repository's."""
    commands = re.findall(r"^sed .* > (?:\w+)\.json$", README, re.MULTILINE)
    filled = [re.sub(r"> \w+\.json$", "", command) for command in commands]
    assert {re.search(r"iam/([a-z]+)", command).group(1) for command in filled} == {"policy", "trust"}
    words = {"CLUSTER": "demo", "ACCOUNT": "111122223333", "PROVIDER": "oidc.eks.us-east-1.amazonaws.com/id/0123"}
    (tmp_path / "iam").symlink_to(IAM)
    for command in filled:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=os.environ | words, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["Statement"]
        assert not re.search("CLUSTER_NAME|ACCOUNT_ID|OIDC_PROVIDER", done.stdout)


# --- one permission after the other


@dataclass
class Story:
    """What became of a weir that began without any permission."""

    consent: Consent
    events: list[tuple[str, str]]
    audit: list[dict[str, Any]]
    """What IAM was asked about weir's calls."""
    renewals: list[str]
    """The tokens that weir showed to STS."""
    tokens: list[str]
    """Those that were in its file, in order."""

    def denied(self, policy: Document) -> list[dict[str, Any]]:
        """Which of weir's calls this policy would not allow."""
        return [row for row in self.audit if not allows(policy, row)]


def allows(policy: Document, row: dict[str, Any]) -> bool:
    return allowed(policy["Statement"], row["action"], row["resource"], row["context"])


@pytest.fixture(scope="module")
def story(
    localstack: LocalStack, control_plane: ControlPlane, installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    """Over before the first test looks at it."""
    account = Account(localstack, "600000000001")  # those of other tests count up from 1
    account.seed()
    scene = Scene(control_plane, "test-iam", account.node_manifests())
    factory = WeirFactory(scene, account, tmp_path_factory.mktemp("iam"))
    defaults = localstack.settings()
    try:
        return live(account, scene, factory, tmp_path_factory.mktemp("token") / "token")
    finally:
        localstack.enforce_policies(False)
        localstack.settings(**defaults)
        localstack.faults([])
        factory.close()
        scene.close()


def live(account: Account, scene: Scene, factory: WeirFactory, token_file: Path) -> Story:
    """A Service is made, changed, repaired and deleted. A permission that is new in iam/ needs a moment here in which
    weir asks for it."""
    register_issuer(account)
    role = Role(account, document("trust-irsa-aws.json", account))
    tokens = [service_account_token(scene.control_plane, STS_AUDIENCE) for _ in range(2)]
    token_file.write_text(tokens[0])
    account.localstack.settings(session_seconds=SHORT_SESSION, detach_seconds=1)
    account.localstack.enforce_policies(True)
    mark = account.localstack.mark()
    foreign_balancer(account)
    scene.expose("order", ports=ports(80, 81))
    weir = factory(*IMPATIENT, environment=web_identity(role, token_file), awaited=False)
    consent = Consent(role, document("policy-aws.json", account), weir)
    consent.until(lambda: weir.get("/readyz") == 200, "weir to be ready")
    consent.until(lambda: scene.hostname("order"), "a hostname", 60)
    consent.until(lambda: is_served(account, scene.hostname("order") or ""), "it to be served")
    token_file.write_text(tokens[1])
    change(consent, account, scene)
    repair(consent, account, scene)
    follow_nodes(consent, account, scene)
    delete(consent, account, scene)
    calls = account.localstack.calls(None, "rust", mark)
    shown = [call["request"]["WebIdentityToken"] for call in calls if call["operation"] == "AssumeRoleWithWebIdentity"]
    return Story(consent, scene.events("order"), account.localstack.audit(account.id, "rust"), shown, tokens)


def ports(*numbers: int, node_port: int | None = None) -> list[dict[str, Any]]:
    rows = [{"name": f"p{number}", "port": number, "targetPort": 8080, "protocol": "TCP"} for number in numbers]
    if node_port:
        rows[0]["nodePort"] = node_port
    return rows


def foreign_balancer(account: Account, name: str = "theirs", **tags: str) -> str:
    made = account.elbv2.create_load_balancer(
        Name=name, Type="network", Scheme="internal", Subnets=account.names["subnets"], **tagged(tags)
    )
    return made["LoadBalancers"][0]["LoadBalancerArn"]


def foreign_target_group(account: Account, name: str = "theirs", **tags: str) -> str:
    made = account.elbv2.create_target_group(
        Name=name, Protocol="TCP", Port=9999, VpcId=account.names["vpc"], TargetType="instance", **tagged(tags)
    )
    return made["TargetGroups"][0]["TargetGroupArn"]


def tagged(tags: dict[str, str]) -> dict[str, Any]:
    """Tags of a create, which AWS does not take when there are none."""
    return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]} if tags else {}


def change(consent: Consent, account: Account, scene: Scene) -> None:
    """All that can be changed at once, and back."""
    arn = balancer(account, scene.hostname("order") or "")["LoadBalancerArn"]
    before = target_of(listeners(account, arn)[80])
    used = scene.service("order")["spec"]["ports"][0]["nodePort"]
    other = next(port for port in itertools.count(31000) if port != used)
    acm = account.client("acm")
    first, second = (acm.request_certificate(DomainName=name)["CertificateArn"] for name in ("a.test", "b.test"))
    allowed_from = account.ec2.create_managed_prefix_list(
        PrefixListName="offices", MaxEntries=5, AddressFamily="IPv4"
    )["PrefixList"]["PrefixListId"]
    words = {
        "subnets": ",".join(account.names["subnets"][:2]),
        "additional-resource-tags": "team=blue",
        "attributes": "load_balancing.cross_zone.enabled=true",
        "target-group-attributes": "deregistration_delay.timeout_seconds=30",
        "listener-attributes.TCP-80": "tcp.idle_timeout.seconds=400",
        "ssl-cert": f"{first},{second}",
        "ssl-ports": "443",
        "security-group-prefix-lists": allowed_from,
        "minimum-load-balancer-capacity": "CapacityUnits=300",
    }
    scene.patch(
        "order",
        {
            "metadata": {"annotations": {ANNOTATION + key: value for key, value in words.items()}},
            "spec": {
                "ports": ports(80, 443, node_port=other),
                "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": ["192.0.2.0/24"],
            },
        },
    )
    ranges = {("tcp", port, port, "192.0.2.0/24") for port in (80, 443)}
    consent.until(lambda: set(listeners(account, arn)) == {80, 443}, "a listener to come and one to go")
    consent.until(lambda: target_of(listeners(account, arn)[80]) != before, "the listener to move")
    consent.until(lambda: len(target_groups(account)) == 2, "old target groups to go")
    consent.until(lambda: rules(group(account, "frontend-group")) == ranges, "the ranges")
    consent.until(lambda: teams(account, arn) == {"blue"} and zones(account, arn) == 2, "tags and zones")
    consent.until(lambda: attributes(account, arn) == ("true", {"30"}, "400"), "attributes")
    consent.until(lambda: certificates(account, arn) == {first, second}, "certificates")
    consent.until(lambda: capacity(account, arn) == 300, "the capacity")
    kept = {"ssl-cert": first, "ssl-ports": "443"}
    scene.patch("order", {"metadata": {"annotations": {ANNOTATION + key: kept.get(key) for key in words}}})
    scene.patch("order", {"spec": {"externalTrafficPolicy": "Cluster"}})
    consent.until(lambda: teams(account, arn) == set() and zones(account, arn) == 3, "tags and zones to be reset")
    consent.until(lambda: certificates(account, arn) == {first}, "a certificate to go")
    consent.until(lambda: capacity(account, arn) == 0, "the capacity to be let go")
    checked = {"10256"}
    consent.until(lambda: {row["HealthCheckPort"] for row in target_groups(account)} == checked, "the health checks")


def attributes(account: Account, arn: str) -> tuple[str, set[str], str]:
    """Of the load balancer, its target groups and its listener 80: those that the story changes."""
    elbv2 = account.elbv2

    def value(rows: list[dict[str, str]], name: str) -> str:
        return next(row["Value"] for row in rows if row["Key"] == name)

    of_balancer = elbv2.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    of_groups = [
        elbv2.describe_target_group_attributes(TargetGroupArn=row["TargetGroupArn"])["Attributes"]
        for row in target_groups(account)
    ]
    listener = listeners(account, arn)[80]["ListenerArn"]
    of_listener = elbv2.describe_listener_attributes(ListenerArn=listener)["Attributes"]
    return (
        value(of_balancer, "load_balancing.cross_zone.enabled"),
        {value(rows, "deregistration_delay.timeout_seconds") for rows in of_groups},
        value(of_listener, "tcp.idle_timeout.seconds"),
    )


def capacity(account: Account, arn: str) -> int:
    """Capacity units reserved."""
    shown = account.elbv2.describe_capacity_reservation(LoadBalancerArn=arn)
    return shown.get("MinimumLoadBalancerCapacity", {}).get("CapacityUnits", 0)


def certificates(account: Account, arn: str) -> set[str]:
    """All of listener 443."""
    listener = listeners(account, arn)[443]["ListenerArn"]
    rows = account.elbv2.describe_listener_certificates(ListenerArn=listener)["Certificates"]
    return {row["CertificateArn"] for row in rows}


def teams(account: Account, arn: str) -> set[str]:
    """Values of a tag of the load balancer and of the Service's security group; different ones are no team."""
    [row] = account.elbv2.describe_tags(ResourceArns=[arn])["TagDescriptions"]
    return {tag["Value"] for tag in [*row["Tags"], *group(account, "frontend-group")["Tags"]] if tag["Key"] == "team"}


def zones(account: Account, arn: str) -> int:
    [row] = account.elbv2.describe_load_balancers(LoadBalancerArns=[arn])["LoadBalancers"]
    return len(row["AvailabilityZones"])


def repair(consent: Consent, account: Account, scene: Scene) -> None:
    """What others did by hand is undone. Their listeners carry no tag."""
    hostname = scene.hostname("order") or ""
    before = balancer(account, hostname)
    arn, ours = before["LoadBalancerArn"], listeners(account, before["LoadBalancerArn"])[80]
    account.elbv2.set_security_groups(LoadBalancerArn=arn, SecurityGroups=[account.names["node_security_group"]])
    for number, zone in enumerate(before["AvailabilityZones"]):
        block = f"2600:1f18:0:{number:x}::/64"
        account.ec2.associate_subnet_cidr_block(SubnetId=zone["SubnetId"], Ipv6CidrBlock=block)
    account.elbv2.set_ip_address_type(LoadBalancerArn=arn, IpAddressType="dualstack")
    account.elbv2.delete_listener(ListenerArn=ours["ListenerArn"])
    forward = [{"Type": "forward", "TargetGroupArn": foreign_target_group(account)}]
    for port in (80, 9000):
        account.elbv2.create_listener(LoadBalancerArn=arn, Protocol="TCP", Port=port, DefaultActions=forward)
    for key in ("SecurityGroups", "IpAddressType"):
        consent.until(lambda key=key: balancer(account, hostname)[key] == before[key], f"{key} to be put right")
    consent.until(lambda: set(listeners(account, arn)) == {80, 443}, "the foreign listener to go")
    consent.until(lambda: target_of(listeners(account, arn)[80]) == target_of(ours), "the listener to be put right")


def follow_nodes(consent: Consent, account: Account, scene: Scene) -> None:
    """A node in no Auto Scaling group comes and goes."""
    [extra] = lone_instances(account)
    nodes_follow(scene, account)
    arn = min(attached(account))
    consent.until(lambda: extra in targets(account, arn), "the node to be registered")
    scene.kube.delete(node_of(scene, extra))
    consent.until(lambda: extra not in targets(account, arn), "the node to be deregistered")


def delete(consent: Consent, account: Account, scene: Scene) -> None:
    """Held up by an endpoint service, by what the older calls attached, and by a network interface of somebody's."""
    arn = min(attached(account))
    mark = account.mark()
    account.autoscaling.attach_load_balancer_target_groups(AutoScalingGroupName="workers", TargetGroupARNs=[arn])
    consent.until(lambda: drift_checks(account, mark) >= 2, "weir to see it")
    carrier = account.ec2.create_network_interface(
        SubnetId=account.names["subnets"][0], Groups=[group(account, "frontend-group")["GroupId"]]
    )["NetworkInterface"]["NetworkInterfaceId"]
    account.faults({"operation": "DeleteLoadBalancer", "code": "ResourceInUse", "count": -1})
    scene.delete("order")
    consent.until_asked("ec2:DescribeVpcEndpointServiceConfigurations")
    account.faults()
    consent.until_asked("ec2:DescribeNetworkInterfaces")
    account.ec2.delete_network_interface(NetworkInterfaceId=carrier)
    consent.until(lambda: scene.kube.find(scene.path("services", "order")) is None, "the Service to go", 60)
    theirs = {"balancers": ["theirs"], "target groups": ["theirs"]}
    consent.until(lambda: left_in_aws(account) == NOTHING | theirs, "only what is theirs to be left in AWS")


def test_weir_asks_for_each_permission_by_name_and_for_no_other(story: Story) -> None:
    """With the last permission that was missing and named, the policy is whole: it holds nothing unused. One that
    somebody takes out of it fails the story with the sentence that names it."""
    assert set(story.consent.granted) == actions(POLICY)


def test_an_event_names_each_permission_that_a_service_waits_for(story: Story) -> None:
    told = {action for _, note in story.events for action in DENIAL.findall(note)}
    # By these weir finds out what others changed, on behalf of no Service. Prefix lists are read by either, and it is
    # chance who is first to be denied.
    checks = ("Listeners", "TargetHealth", "LoadBalancerAttributes", "TargetGroupAttributes", "ListenerAttributes")
    checks += ("ListenerCertificates", "CapacityReservation")
    logged = {f"elasticloadbalancing:Describe{name}" for name in checks} | {"ec2:DescribeManagedPrefixLists"}
    assert actions(POLICY) - told <= logged


def test_the_policy_allows_each_call_of_the_story(story: Story) -> None:
    assert story.denied(story.consent.policy) == []


@pytest.mark.parametrize(("sid", "action"), GRANTS, ids=[f"{sid}-{action}" for sid, action in GRANTS])
def test_without_it_a_call_of_the_story_is_denied(story: Story, sid: str, action: str) -> None:
    """Each action is needed in each statement that has it."""
    denied = story.denied(without(story.consent.policy, lambda *grant: grant == (sid, action)))
    assert {row["action"] for row in denied} == {action}


@pytest.mark.parametrize(("sid", "pattern"), PATTERNS, ids=[f"{sid}-{pattern}" for sid, pattern in PATTERNS])
def test_each_pattern_of_resources_is_needed(story: Story, sid: str, pattern: str) -> None:
    def narrowed(statement: Document) -> Document:
        if statement["Sid"] != sid:
            return statement
        return statement | {"Resource": [other for other in statement["Resource"] if other != pattern]}

    policy = story.consent.policy
    assert story.denied(policy | {"Statement": [narrowed(statement) for statement in policy["Statement"]]})


def test_none_of_its_writes_would_be_allowed_on_what_is_not_the_clusters(story: Story) -> None:
    """The same calls, on resources that belong to another cluster or to nobody known."""
    writes = [row for row in story.audit if not re.search(r":(Describe|Get)", row["action"])]
    for owner in ({CLUSTER_TAG: "other"}, {}):
        rows = [as_foreign(row, owner) for row in writes if ":vpc/" not in row["resource"]]
        assert {row["action"] for row in rows} == {action for action in actions(POLICY) if ":Describe" not in action}
        assert [row for row in rows if allows(story.consent.policy, row)] == []


def as_foreign(row: dict[str, Any], owner: dict[str, str]) -> dict[str, Any]:
    """What IAM would be asked if a resource were not the cluster's, by tag and by name."""
    kept = {key: value for key, value in row["context"].items() if not re.search(r"Tag/(weir\.dev|kubernetes\.io)/", key)}
    theirs = ["arn:aws:elasticloadbalancing:us-east-1:600000000001:targetgroup/theirs/0123456789abcdef"]
    named = {key: theirs for key in kept if key.startswith("autoscaling:T")}
    tags = {f"aws:{holder}/{key}": value for holder in ("ResourceTag", "RequestTag") for key, value in owner.items()}
    resource = row["resource"].replace("listener/net/weir-", "listener/net/theirs-")
    return row | {"resource": resource, "context": kept | named | tags}


def test_the_token_is_read_again_whenever_the_session_is_renewed(story: Story) -> None:
    first, second = story.tokens
    assert set(story.renewals) == {first, second}
    assert story.renewals == sorted(story.renewals, key=story.tokens.index), "none that was replaced is shown again"
    assert len(story.renewals) >= 3


# --- what is not the cluster's


@pytest.fixture
def role(account: Account) -> Role:
    """The controller's role for IRSA, under the policy of iam/."""
    register_issuer(account)
    return Role(account, document("trust-irsa-aws.json", account), document("policy-aws.json", account))


@pytest.fixture
def as_weir(account: Account, role: Role, control_plane: ControlPlane, installed: None) -> Callable[[str], Any]:
    """as_weir(service): a client that is the controller to AWS. Policies are enforced from now on."""
    token = service_account_token(control_plane, STS_AUDIENCE)
    session = account.sts.assume_role_with_web_identity(
        RoleArn=role.arn, RoleSessionName="test", WebIdentityToken=token
    )["Credentials"]
    account.localstack.enforce_policies(True)

    def client(service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=account.localstack.endpoint,
            region_name=REGION,
            aws_access_key_id=session["AccessKeyId"],
            aws_secret_access_key=session["SecretAccessKey"],
            aws_session_token=session["SessionToken"],
        )

    return client


def is_refused(call: Callable[..., Any], **arguments: Any) -> bool:
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] in REFUSED, error
        return True
    return False


OWNERS = {"nobody": {}, "another-cluster": {CLUSTER_TAG: "other"}, "this-cluster": {CLUSTER_TAG: "demo"}}


@pytest.mark.parametrize("owner", OWNERS)
def test_only_what_carries_the_clusters_tag_can_be_touched(account: Account, as_weir: Callable, owner: str) -> None:
    """Load balancers, target groups and security groups: changed, retagged, deleted."""
    elbv2, ec2, tags = as_weir("elbv2"), as_weir("ec2"), OWNERS[owner]
    arn, target_group = foreign_balancer(account, **tags), foreign_target_group(account, **tags)
    specification = {"TagSpecifications": [{"ResourceType": "security-group", **tagged(tags)}]} if tags else {}
    group_id = account.ec2.create_security_group(
        GroupName="theirs", Description="Theirs", VpcId=account.names["vpc"], **specification
    )["GroupId"]
    instance, team = account.names["instances"][0], [{"Key": "team", "Value": "blue"}]
    rule = [{"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}]
    attempts = [
        (elbv2.set_subnets, {"LoadBalancerArn": arn, "Subnets": account.names["subnets"][:1]}),
        (elbv2.add_tags, {"ResourceArns": [arn], "Tags": team}),
        (elbv2.remove_tags, {"ResourceArns": [target_group], "TagKeys": ["team"]}),
        (elbv2.modify_target_group, {"TargetGroupArn": target_group, "HealthCheckPort": "80"}),
        (elbv2.register_targets, {"TargetGroupArn": target_group, "Targets": [{"Id": instance}]}),
        (elbv2.delete_load_balancer, {"LoadBalancerArn": arn}),
        (elbv2.delete_target_group, {"TargetGroupArn": target_group}),
        (ec2.authorize_security_group_ingress, {"GroupId": group_id, "IpPermissions": rule}),
        (ec2.create_tags, {"Resources": [group_id], "Tags": team}),
        (ec2.delete_tags, {"Resources": [group_id], "Tags": [{"Key": "team"}]}),
        (ec2.delete_security_group, {"GroupId": group_id}),
    ]
    refused = [is_refused(call, **arguments) for call, arguments in attempts]
    assert refused == [owner != "this-cluster"] * len(attempts)


def test_the_clusters_tag_is_given_at_birth_and_never_taken(account: Account, as_weir: Callable) -> None:
    elbv2, ec2 = as_weir("elbv2"), as_weir("ec2")
    mark = [{"Key": CLUSTER_TAG, "Value": "demo"}]
    theirs, ours = foreign_balancer(account), foreign_balancer(account, "ours", **{CLUSTER_TAG: "demo"})
    assert is_refused(elbv2.add_tags, ResourceArns=[theirs], Tags=mark)
    assert is_refused(elbv2.add_tags, ResourceArns=[ours], Tags=[{"Key": CLUSTER_TAG, "Value": "other"}])
    assert is_refused(elbv2.remove_tags, ResourceArns=[ours], TagKeys=["team", CLUSTER_TAG])
    group_id = ec2.create_security_group(
        GroupName="ours",
        Description="Ours",
        VpcId=account.names["vpc"],
        TagSpecifications=[{"ResourceType": "security-group", "Tags": mark}],
    )["GroupId"]
    assert is_refused(ec2.delete_tags, Resources=[group_id], Tags=mark)
    assert is_refused(ec2.delete_tags, Resources=[group_id]), "which would delete all tags"
    assert is_refused(ec2.create_tags, Resources=account.names["subnets"], Tags=mark)
    made = {"Type": "network", "Scheme": "internal", "Subnets": account.names["subnets"]}
    assert is_refused(elbv2.create_load_balancer, Name="untagged", **made)
    assert not is_refused(elbv2.create_load_balancer, Name="tagged", Tags=mark, **made)


def test_auto_scaling_groups_of_the_cluster_take_target_groups_of_weirs_alone(
    account: Account, as_weir: Callable
) -> None:
    scaling = as_weir("autoscaling")
    theirs, ours = foreign_target_group(account), foreign_target_group(account, "weir-abcdef-order-80-ghijklmn")
    launch = {"launch_template": account.names["launch_template"], "subnets": account.names["subnets"]}
    account.workers.add_asg("elsewhere", 0, **launch)
    tag = {"Key": f"kubernetes.io/cluster/{account.cluster}", "ResourceId": "elsewhere"}
    account.autoscaling.delete_tags(Tags=[tag | {"ResourceType": "auto-scaling-group"}])

    def source(arn: str) -> list[dict[str, str]]:
        return [{"Identifier": arn, "Type": "elbv2"}]

    attach, detach = scaling.attach_traffic_sources, scaling.detach_traffic_sources
    assert is_refused(attach, AutoScalingGroupName="workers", TrafficSources=source(theirs))
    assert is_refused(attach, AutoScalingGroupName="elsewhere", TrafficSources=source(ours))
    assert not is_refused(attach, AutoScalingGroupName="workers", TrafficSources=source(ours))
    for asg in ("workers", "elsewhere"):
        account.autoscaling.attach_traffic_sources(AutoScalingGroupName=asg, TrafficSources=source(theirs))
        assert is_refused(detach, AutoScalingGroupName=asg, TrafficSources=source(theirs))
    # Left attached to a group that lost its tag, it could not be deleted without harm.
    account.autoscaling.attach_traffic_sources(AutoScalingGroupName="elsewhere", TrafficSources=source(ours))
    assert not is_refused(detach, AutoScalingGroupName="elsewhere", TrafficSources=source(ours))


# --- credentials


def test_pod_identity_is_enough_and_is_renewed(
    cluster: Scene, account: Account, weir: WeirFactory, tmp_path: Path
) -> None:
    """Under the whole policy nothing is denied; the token is read again for each new session."""
    role = Role(account, document("trust-pod-identity.json", account), document("policy-aws.json", account))
    tokens = [service_account_token(cluster.control_plane, EKS_AUDIENCE) for _ in range(2)]
    token_file = tmp_path / "token"
    token_file.write_text(tokens[0])
    account.localstack.settings(session_seconds=SHORT_SESSION)
    account.localstack.enforce_policies(True)
    with PodIdentityAgent(account, role) as agent:
        weir("--drift-interval=1s", environment=agent.environment(token_file))
        serve(cluster, account)
        token_file.write_text(tokens[1])
        wait_for(lambda: tokens[1] in agent.seen, SHORT_SESSION, "the new token to be shown")
        local = {"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.0/24"]}
        cluster.patch("order", {"spec": local})
        wait_for(lambda: target_groups(account)[0]["HealthCheckPort"] != "10256", 10, "the health check")
        cluster.delete("order")
        cluster.wait_gone("order")
    assert agent.seen == sorted(agent.seen, key=tokens.index)
    assert [call for call in account.calls() if call["code"] in REFUSED] == []


def test_a_role_that_cannot_be_had_is_told_and_awaited(
    cluster: Scene, account: Account, weir: WeirFactory, role: Role, tmp_path: Path
) -> None:
    """No token, one that has expired, one of another service account, and then a good one: the Service's Events tell
    each, and the process neither ends nor has to be started again."""
    account.localstack.enforce_policies(True)
    cluster.expose("order")
    token_file = tmp_path / "token"
    process = weir("--retry-max-interval=500ms", environment=web_identity(role, token_file), awaited=False)
    good = service_account_token(cluster.control_plane, STS_AUDIENCE)
    told(cluster, "No such file or directory")
    token_file.write_text(forged(good, exp=int(time.time()) - 1))
    told(cluster, "Token expired")
    token_file.write_text(service_account_token(cluster.control_plane, STS_AUDIENCE, "default", "default"))
    told(cluster, "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    assert (process.get("/livez"), process.get("/readyz")) == (200, 503)
    wait_for(lambda: len([line for line in process.log() if line["level"] == "ERROR"]) > 6, 10, "some more tries")
    assert len([reason for reason, _ in cluster.events("order")]) == 3, "one Event for each reason, not for each try"
    token_file.write_text(good)
    cluster.wait_hostname("order")


def told(cluster: Scene, words: str) -> None:
    """Waits for an Event about the controller's credentials with these words."""

    def notes() -> list[str]:
        return [note for reason, note in cluster.events("order") if reason == "AwsCredentialsInvalid"]

    wait_for(lambda: any(words in note for note in notes()), 15, f"an Event with the words {words!r}")
    assert all("no valid AWS credentials" in note for note in notes())
    assert words in README, "which says what it means"


def test_pod_identity_for_another_cluster_is_told(
    cluster: Scene, account: Account, weir: WeirFactory, tmp_path: Path
) -> None:
    trust = document("trust-pod-identity.json", account)
    elsewhere = json.loads(json.dumps(trust).replace(f'"{account.cluster}"', '"elsewhere"'))
    role = Role(account, elsewhere, document("policy-aws.json", account))
    account.localstack.enforce_policies(True)
    cluster.expose("order")
    token_file = tmp_path / "token"
    token_file.write_text(service_account_token(cluster.control_plane, EKS_AUDIENCE))
    with PodIdentityAgent(account, role) as agent:
        weir("--retry-max-interval=500ms", environment=agent.environment(token_file), awaited=False)
        told(cluster, "HTTP credential provider: StatusCode(4")
        role.trust(trust)
        cluster.wait_hostname("order")


def test_a_pod_without_identity_is_told(cluster: Scene, weir: WeirFactory) -> None:
    """As one that was started before its role was there."""
    cluster.expose("order")
    weir(environment=NO_KEYS, awaited=False)
    told(cluster, "no credentials found in chain")
