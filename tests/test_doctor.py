"""`weir doctor` on broken set-ups: whatever else follows from it, the first finding is the right cause, by name."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import WeirFactory

from sandbox import netns, proxies
from sandbox.aws import Account, LocalStack
from sandbox.checks import serve
from sandbox.cluster import ControlPlane
from sandbox.doctor import Diagnosis, environment, node, read, run
from sandbox.identity import (
    NO_KEYS,
    STS_AUDIENCE,
    Role,
    document,
    register_issuer,
    service_account_token,
    web_identity,
)
from sandbox.kube import KubeError
from sandbox.manifests import install
from sandbox.process import free_port, wait_for
from sandbox.proxies import HEALTHZ_PORT
from sandbox.scene import NODES, Scene
from sandbox.workers import Workers

NAMESPACE = "weir-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
DAEMON_SETS = "/apis/apps/v1/namespaces/{}/daemonsets"
OURS = "kubernetes.io/cluster/demo"

Doctor = Callable[..., Diagnosis]


@pytest.fixture
def leader(installed: None, control_plane: ControlPlane) -> Iterator[None]:
    """A Lease as a controller at work keeps it."""
    hold_lease(control_plane)
    yield
    control_plane.kube.delete(f"{LEASE}/weir-controller")


def hold_lease(control_plane: ControlPlane, holder: str = "weir-1", seconds_ago: int = 0) -> None:
    renewed = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - seconds_ago))
    spec = {"holderIdentity": holder, "renewTime": renewed, "acquireTime": renewed, "leaseDurationSeconds": 15}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "weir-controller"}, "spec": spec}
    control_plane.kube.apply(f"{LEASE}/weir-controller", lease)


@pytest.fixture
def doctor(leader: None, cluster: Scene, account: Account) -> Doctor:
    """Examines the test's cluster and account. Variables replace those of its environment; `None` takes one away."""
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)

    def examine(*flags: str, **variables: str | None) -> Diagnosis:
        chosen = {name: value for name, value in {**settled, **variables}.items() if value is not None}
        named = {flag.partition("=")[0] for flag in flags}
        defaults = {"--cluster-name": account.cluster, "--patience": "1s", "--output": "json"}
        given = [f"{name}={value}" for name, value in defaults.items() if name not in named]
        return read(run("doctor", *given, *flags, **chosen))

    return examine


@pytest.fixture
def plant(control_plane: ControlPlane) -> Iterator[Callable[[str, dict[str, Any]], str]]:
    """Creates an object in a collection, until the test ends; its path."""
    planted: list[str] = []

    def create(collection: str, body: dict[str, Any]) -> str:
        made = control_plane.kube.create(collection, body)
        planted.append(f"{collection}/{made['metadata']['name']}")
        return planted[-1]

    yield create
    # Our own policy lets nobody delete the controller's Deployment just so.
    namespace, confirmed = f"/api/v1/namespaces/{NAMESPACE}", "weir.dev/uninstall"
    control_plane.kube.patch(namespace, {"metadata": {"annotations": {confirmed: "confirmed"}}})
    for path in planted:
        wait_for(lambda path=path: is_deleted(control_plane, path), 10, f"{path} to be deleted")
    control_plane.kube.patch(namespace, {"metadata": {"annotations": {confirmed: None}}})


def is_deleted(control_plane: ControlPlane, path: str) -> bool:
    try:
        control_plane.kube.delete(path)
    except KubeError as error:
        assert error.status == 422, error  # the policy has not seen the annotation yet
        return False
    return True


def workload(name: str, *args: str, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Deployment or DaemonSet of one container."""
    labels = {"app": name, **(labels or {})}
    pod = {"serviceAccountName": name, "containers": [{"name": "main", "image": "none", "args": list(args)}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    selector = {"matchLabels": {"app": name}}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"selector": selector, "template": template, **spec}}


def pending(cluster: Scene, name: str, **spec: Any) -> None:
    """A Service that waits for longer than the doctor's patience."""
    cluster.expose(name, **spec)
    time.sleep(1.1)


# --- nothing is wrong


def test_a_healthy_cluster_has_no_finding(
    installed: None, cluster: Scene, account: Account, weir: WeirFactory
) -> None:
    """With a controller at work, and in words as well."""
    weir("--leader-elect=true")
    serve(cluster, account)
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)
    told = read(run("doctor", "--cluster-name=demo", "--output=json", **settled))
    assert told.findings == [] and told.skipped == {} and told.code == 0
    done = run("doctor", "--cluster-name=demo", **settled)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"0 errors, 0 warnings, 0 notes; {len(told.fine)} checks found nothing.\n"
    assert not [call for call in account.calls() if call["request"].get("DryRun") and call["code"] != "DryRunOperation"]


def test_the_controllers_own_rights_are_enough_for_most(doctor: Doctor, control_plane: ControlPlane) -> None:
    """In its pod the doctor is the controller's ServiceAccount: what that may not read is not looked at, and said so."""
    token = control_plane.kube.service_account_token(NAMESPACE, "weir-controller")
    told = doctor(KUBECONFIG=str(control_plane.write_kubeconfig("controller", token)))
    assert told.findings == []
    assert {"rbac-missing", "node-provider-id", "leader-stale", "subnet-none", "asg-ghost"} <= set(told.fine)
    assert "may not read" in told.skipped["lbc-same-class"]


# --- the API server, identity and permissions


def test_no_api_server(doctor: Doctor, control_plane: ControlPlane) -> None:
    server = f"https://127.0.0.1:{free_port()}"
    told = doctor(KUBECONFIG=str(control_plane.write_kubeconfig("nowhere", control_plane.token, server)))
    told.first("kubernetes-unreachable", server.removeprefix("https://"))
    assert told.skipped["service-waiting"] == "the API server cannot be asked"


def test_an_unknown_token(doctor: Doctor, control_plane: ControlPlane) -> None:
    told = doctor(KUBECONFIG=str(control_plane.write_kubeconfig("stranger", "not-a-token")))
    told.first("kubernetes-unauthorized", "401")


def test_no_credentials(doctor: Doctor) -> None:
    told = doctor(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    told.first("credentials-missing")
    assert told.ids == ["credentials-missing"]
    assert told.skipped["subnet-none"] == "there are no usable AWS credentials"


@pytest.mark.parametrize(
    ("code", "check"),
    [
        ("ExpiredToken", "credentials-expired"),
        ("InvalidClientTokenId", "credentials-invalid"),
        ("RequestTimeTooSkewed", "clock-skew"),
    ],
)
def test_credentials_that_aws_does_not_take(doctor: Doctor, account: Account, code: str, check: str) -> None:
    account.faults({"count": -1, "code": code, "status": 403})
    told = doctor()
    told.first(check, code)
    assert told.ids == [check]


def test_a_token_file_that_is_not_there(doctor: Doctor, tmp_path: Path) -> None:
    """IRSA, half set up."""
    told = doctor(
        AWS_ACCESS_KEY_ID=None,
        AWS_SECRET_ACCESS_KEY=None,
        AWS_ROLE_ARN="arn:aws:iam::000000000001:role/weir",
        AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
    )
    told.first("credentials-invalid", f"AWS_WEB_IDENTITY_TOKEN_FILE={tmp_path / 'token'}")


def test_no_answer_from_aws(doctor: Doctor) -> None:
    told = doctor(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    told.first("aws-unreachable", "sts:GetCallerIdentity", "us-east-1")
    assert told.ids == ["aws-unreachable"]


def test_another_region(doctor: Doctor) -> None:
    told = doctor(AWS_REGION="eu-west-1")
    told.first("region-wrong", "eu-west-1", "us-east-1")
    assert told.findings[1]["followsFrom"] == ["region-wrong"]


def test_another_account(doctor: Doctor, account: Account) -> None:
    told = doctor(AWS_ACCESS_KEY_ID="999999999999")
    told.first("account-wrong", "999999999999", account.names["instances"][0])


@pytest.fixture
def allowed(account: Account, localstack: LocalStack) -> Iterator[Callable[..., str]]:
    """`allowed(denied actions)`: the access key of a user who may do everything but these."""

    def key(*denied: str) -> str:
        statements = [
            {"Effect": "Allow", "Action": "*", "Resource": "*"},
            *({"Effect": "Deny", "Action": action, "Resource": "*"} for action in denied),
        ]
        account.iam.create_user(UserName="weir")
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        account.iam.put_user_policy(UserName="weir", PolicyName="weir", PolicyDocument=policy)
        made: str = account.iam.create_access_key(UserName="weir")["AccessKey"]["AccessKeyId"]
        localstack.enforce_policies(True)
        return made

    yield key
    localstack.enforce_policies(False)


@pytest.mark.parametrize(
    "action",
    [
        "ec2:DescribeSubnets",
        "elasticloadbalancing:DescribeTargetHealth",
        "autoscaling:DescribeTrafficSources",
        "ec2:CreateSecurityGroup",
        "ec2:AuthorizeSecurityGroupIngress",
    ],
)
def test_a_permission_that_is_missing(doctor: Doctor, allowed: Callable[..., str], action: str) -> None:
    """Reads by themselves, writes to EC2 by dry runs, though nothing needs them now."""
    told = doctor(AWS_ACCESS_KEY_ID=allowed(action))
    told.first("permission-denied", action, "user/weir")
    assert told.ids.count("permission-denied") == 1


def test_the_shipped_policy_is_enough(
    doctor: Doctor, account: Account, control_plane: ControlPlane, localstack: LocalStack, tmp_path: Path
) -> None:
    """As the controller's role by IRSA, with dry runs of its writes; what only the doctor would like to know is left out."""
    register_issuer(account)
    role = Role(account, document("trust-irsa-aws.json", account), document("policy-aws.json", account))
    token = tmp_path / "token"
    token.write_text(service_account_token(control_plane, STS_AUDIENCE))
    localstack.enforce_policies(True)
    told = doctor(**web_identity(role, token))
    assert told.findings == []
    assert told.skipped == {
        "asg-refresh": "AWS denies autoscaling:DescribeInstanceRefreshes",
        "quota": "AWS denies elasticloadbalancing:DescribeAccountLimits",
    }


def test_every_permission_that_can_be_asked_for_is(
    doctor: Doctor, account: Account, cluster: Scene, weir: WeirFactory, localstack: LocalStack
) -> None:
    """All reads of the policy, and all writes to EC2."""
    controller = weir()
    serve(cluster, account)
    controller.stop()
    before = len(localstack.audit(account.id, "rust"))
    assert doctor().findings == []
    asked = {row["action"] for row in localstack.audit(account.id, "rust")[before:]}
    policy = document("policy-aws.json", account)["Statement"]
    actions = {action for statement in policy for action in listed(statement["Action"])}
    wanted = {action for action in actions if action.startswith("ec2:") or ":Describe" in action}
    assert len(wanted) > 20 and wanted <= asked, wanted - asked


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_credentials_that_only_the_controller_lacks(doctor: Doctor, cluster: Scene, weir: WeirFactory) -> None:
    """Whoever runs the doctor has good ones."""
    weir(environment=NO_KEYS, awaited=False)
    cluster.expose("order")
    cluster.wait_event("order", "AwsCredentialsInvalid")
    doctor("--patience=1h").first("credentials-invalid", "the controller has no valid ones", f"{cluster.namespace}/order")


def test_a_permission_that_only_the_controller_has_met(
    doctor: Doctor, cluster: Scene, weir: WeirFactory, allowed: Callable[..., str], localstack: LocalStack
) -> None:
    """There is no dry run of it: the controller's Event tells. What follows from it comes after it."""
    action = "elasticloadbalancing:CreateLoadBalancer"
    weir(key=allowed(action))
    cluster.expose("order")
    cluster.wait_event("order", "AwsAccessDenied")
    localstack.enforce_policies(False)
    time.sleep(1.1)
    told = doctor()
    told.first("permission-denied", action, f"{cluster.namespace}/order")
    assert told.findings[-1]["id"] == "service-waiting"
    assert "permission-denied" in told.findings[-1]["followsFrom"]


def test_rights_in_the_cluster(doctor: Doctor, control_plane: ControlPlane) -> None:
    """All that the roles of the manifests grant is asked for, and nothing else."""
    group = "/apis/rbac.authorization.k8s.io/v1"
    for binding in ("clusterrolebindings", f"namespaces/{NAMESPACE}/rolebindings"):
        control_plane.kube.patch(f"{group}/{binding}/weir-controller", {"subjects": []})
    try:
        wait_for(lambda: "rbac-missing" in doctor().ids, 10, "the rights to be gone")
        told = doctor()
    finally:
        install(control_plane)
    first = told.first("rbac-missing", "patch services/status", f"get, update leases.coordination.k8s.io weir-controller in {NAMESPACE}")
    missing = first["finding"].removeprefix("its ServiceAccount may not ").split("; ")
    roles = [
        control_plane.kube.get(f"{group}/clusterroles/weir-controller"),
        control_plane.kube.get(f"{group}/namespaces/{NAMESPACE}/roles/weir-controller"),
    ]
    granted = [f"{', '.join(rule['verbs'])} {words_of(rule, role)}" for role in roles for rule in role["rules"]]
    assert sorted(missing) == sorted(granted)
    wait_for(lambda: not doctor().findings, 10, "the rights to be back")


def words_of(rule: dict[str, Any], role: dict[str, Any]) -> str:
    [group], [resource] = rule["apiGroups"], rule["resources"]
    resource, _, part = resource.partition("/")
    name = f" {rule['resourceNames'][0]}" if "resourceNames" in rule else ""
    place = f" in {role['metadata']['namespace']}" if "namespace" in role["metadata"] else ""
    return f"{resource}{group and '.'}{group}{part and '/'}{part}{name}{place}"


# --- the controller


def test_flags_of_the_controller(doctor: Doctor, plant: Callable[..., str]) -> None:
    """The Deployment's own, read as the process would read them."""
    plant(
        DEPLOYMENTS.format(NAMESPACE),
        workload("weir-controller", "controller", "--cluster-name=demo", "--claim-clasless", replicas=0),
    )
    told = doctor()
    told.first("controller-flags", f"{NAMESPACE}/weir-controller", "--claim-clasless")
    assert told.findings[1]["id"] == "controller-down"


def test_a_controller_that_is_scaled_to_nothing(doctor: Doctor, plant: Callable[..., str], control_plane: ControlPlane) -> None:
    """The name of the cluster comes from the Deployment where nobody says it."""
    args = ["controller", "--cluster-name=demo"]
    plant(DEPLOYMENTS.format(NAMESPACE), workload("weir-controller", *args, replicas=0))
    hold_lease(control_plane, holder="")
    settled = doctor("--cluster-name=demo")
    settled.first("controller-down", "0 of 0")
    assert [(finding["id"], finding["followsFrom"]) for finding in settled.findings[1:]] == [
        ("leader-none", ["controller-down"])
    ]
    other = doctor("--cluster-name=other")
    assert other.ids[:2] == ["controller-down", "cluster-name-other"]


def test_a_leader_that_is_gone(doctor: Doctor, control_plane: ControlPlane) -> None:
    hold_lease(control_plane, "weir-7", seconds_ago=600)
    told = doctor()
    told.first("leader-stale", "weir-7", f"{NAMESPACE}/weir-controller")
    control_plane.kube.delete(f"{LEASE}/weir-controller")
    doctor().first("leader-none", f"{NAMESPACE}/weir-controller")


# --- the network


def test_another_name_of_the_cluster(doctor: Doctor) -> None:
    told = doctor("--cluster-name=other")
    told.first("cluster-name-other", "kubernetes.io/cluster/other", "demo")
    assert {"subnet-other-cluster", "subnet-none", "asg-untagged"} <= set(told.ids)


def test_what_a_former_name_left_behind(doctor: Doctor, account: Account, control_plane: ControlPlane) -> None:
    """R32: told, not taken for another cluster's."""
    uid = control_plane.kube.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
    tags = {"weir.dev/cluster": "former", "weir.dev/cluster-uid": uid, "weir.dev/service": "shop/order"}
    account.elbv2.create_load_balancer(
        Name="left", Type="network", Subnets=account.names["subnets"], Tags=as_tags(tags)
    )
    doctor().first("cluster-renamed", "former", "left", severity="warning")


def as_tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def test_nodes_without_instances(doctor: Doctor, cluster: Scene) -> None:
    for row in cluster.kube.list(NODES):
        cluster.kube.delete(f"{NODES}/{row['metadata']['name']}")
        odd = {**row, "metadata": {"name": row["metadata"]["name"]}, "spec": {}}
        cluster.kube.create(NODES, odd)
    told = doctor()
    told.first("node-provider-id", "spec.providerID", "and 2 more Nodes")
    assert "vpc-unknown" in told.ids


def test_no_node_at_all(doctor: Doctor, cluster: Scene) -> None:
    for row in cluster.kube.list(NODES):
        cluster.kube.delete(f"{NODES}/{row['metadata']['name']}")
    doctor().first("node-none", "has no node")


def test_subnets_of_another_cluster(doctor: Doctor, account: Account, cluster: Scene) -> None:
    subnets = account.names["subnets"]
    account.ec2.delete_tags(Resources=subnets, Tags=[{"Key": OURS}])
    account.ec2.create_tags(Resources=subnets, Tags=[{"Key": "kubernetes.io/cluster/other", "Value": "owned"}])
    pending(cluster, "order")
    told = doctor()
    told.first("subnet-other-cluster", *subnets)
    assert told.ids == ["subnet-other-cluster", "subnet-none", "service-waiting"]
    assert told.findings[2]["followsFrom"] == ["subnet-other-cluster", "subnet-none"]


def test_a_zone_without_a_subnet(doctor: Doctor, account: Account) -> None:
    """R39: its nodes would get no traffic."""
    subnet, zone = account.names["subnets"][1], account.names["zones"][1]
    account.ec2.delete_tags(Resources=[subnet], Tags=[{"Key": "kubernetes.io/role/elb"}])
    told = doctor()
    told.first("subnet-role", f"{subnet} ({zone})", "kubernetes.io/role/elb", severity="warning")
    assert len(told.findings) == 1


def test_two_security_groups_on_the_nodes(doctor: Doctor, account: Account) -> None:
    """R30."""
    node_group = account.names["node_security_group"]
    more = account.ec2.create_security_group(GroupName="more", Description="more", VpcId=account.names["vpc"])["GroupId"]
    account.ec2.create_tags(Resources=[more], Tags=[{"Key": OURS, "Value": "owned"}])
    for instance in account.names["instances"]:
        account.ec2.modify_instance_attribute(InstanceId=instance, Groups=[node_group, more])
    doctor().first("node-group-ambiguous", node_group, more, severity="warning")


def test_a_security_group_without_room(doctor: Doctor, account: Account) -> None:
    group = account.names["node_security_group"]
    ranges = [{"CidrIp": f"10.{number}.0.0/16"} for number in range(58)]
    rule = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": ranges}
    account.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    doctor().first("security-group-full", group, "58 inbound rules")


def test_rules_that_somebody_took_away(doctor: Doctor, account: Account, cluster: Scene, weir: WeirFactory) -> None:
    controller = weir()
    serve(cluster, account)
    controller.stop()
    group = account.names["node_security_group"]
    [found] = account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    account.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=found["IpPermissions"])
    doctor().first("node-group-closed", group, "tcp 30000-32767", str(HEALTHZ_PORT))


# --- Auto Scaling groups and quotas


def target_groups(account: Account, count: int) -> list[str]:
    """ARNs of new target groups that are attached to the workers' Auto Scaling group."""
    made = []
    for number in range(count):
        asked = {"Protocol": "TCP", "Port": 1000 + number, "VpcId": account.names["vpc"], "TargetType": "instance"}
        made.append(account.elbv2.create_target_group(Name=f"theirs-{number}", **asked)["TargetGroups"][0]["TargetGroupArn"])
    for start in range(0, count, 10):
        sources = [{"Identifier": arn, "Type": "elbv2"} for arn in made[start : start + 10]]
        account.autoscaling.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=sources)
    return made


def test_a_ghost(doctor: Doctor, account: Account) -> None:
    """A target group that was deleted while attached: nothing is launched any more."""
    [arn] = target_groups(account, 1)
    account.elbv2.delete_target_group(TargetGroupArn=arn)
    first = doctor().first("asg-ghost", "workers", arn)
    assert f"detach-traffic-sources --auto-scaling-group-name workers --traffic-sources Identifier={arn}" in first["remedy"]


def test_no_slot(doctor: Doctor, account: Account) -> None:
    target_groups(account, 50)
    doctor().first("asg-full", "workers", "50 of 50 target groups, 50 of them not weir's", severity="warning")


def test_health_by_elb(doctor: Doctor, account: Account) -> None:
    account.autoscaling.update_auto_scaling_group(AutoScalingGroupName="workers", HealthCheckType="ELB")
    doctor().first("asg-elb-health", "workers", severity="warning")


def test_additions_suspended(doctor: Doctor, account: Account) -> None:
    account.autoscaling.suspend_processes(AutoScalingGroupName="workers", ScalingProcesses=["AddToLoadBalancer"])
    doctor().first("asg-add-suspended", "workers", "AddToLoadBalancer", severity="warning")


def test_an_instance_refresh(doctor: Doctor, account: Account) -> None:
    account.localstack.settings(instance_refresh=["workers"])
    doctor().first("asg-refresh", "workers", severity="note")


def test_a_quota_that_is_used_up(doctor: Doctor, account: Account, cluster: Scene) -> None:
    account.elbv2.create_load_balancer(Name="theirs", Type="network", Subnets=account.names["subnets"])
    account.localstack.settings(account_limits={"network-load-balancers": 1})
    pending(cluster, "order")
    told = doctor()
    told.first("quota", "1 of 1", "network-load-balancers")
    assert told.findings[1]["followsFrom"] == ["quota"]


# --- who claims Services


def test_nothing_gives_services_their_class(doctor: Doctor, cluster: Scene, control_plane: ControlPlane) -> None:
    """The policy's absence is the cause, the Service without a class what follows from it."""
    group = "/apis/admissionregistration.k8s.io/v1"
    control_plane.kube.delete(f"{group}/mutatingadmissionpolicybindings/weir-class")
    try:

        def is_gone() -> bool:
            service = {"metadata": {"name": "probe"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
            made = control_plane.kube.create("/api/v1/namespaces/default/services", service, dryRun="All")
            return "loadBalancerClass" not in made["spec"]

        wait_for(is_gone, 15, "the policy to be out of force")
        pending(cluster, "order", loadBalancerClass=None)
        told = doctor()
    finally:
        install(control_plane)
    told.first("class-policy-missing", "MutatingAdmissionPolicyBinding weir-class")
    assert told.findings[1]["id"] == "service-unclaimed" and f"{cluster.namespace}/order" in told.findings[1]["finding"]


def test_a_class_with_a_slip(doctor: Doctor, cluster: Scene) -> None:
    pending(cluster, "order", loadBalancerClass="weir.dev/nbl")
    doctor().first("service-class-unknown", f"{cluster.namespace}/order", "weir.dev/nbl", severity="warning")


def test_two_controllers_for_one_class(doctor: Doctor, plant: Callable[..., str]) -> None:
    labels = {"app.kubernetes.io/name": "aws-load-balancer-controller"}
    flags = ["--cluster-name=demo", "--load-balancer-class=weir.dev/nlb"]
    plant(DEPLOYMENTS.format("default"), workload("lbc", *flags, labels=labels, replicas=0))
    doctor().first("lbc-same-class", "default/lbc", "weir.dev/nlb")


def test_a_webhook_that_nobody_answers(doctor: Doctor, plant: Callable[..., str]) -> None:
    """R47. This one asks about nothing, so that the other tests can go on."""
    webhook = {
        "name": "mservice.elbv2.k8s.aws",
        "clientConfig": {"service": {"name": "none", "namespace": "default"}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "objectSelector": {"matchLabels": {"nobody": "has-this"}},
    }
    body = {"metadata": {"name": "aws-load-balancer-webhook"}, "webhooks": [webhook]}
    plant("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", body)
    told = doctor()
    told.first("lbc-webhook-dead", "aws-load-balancer-webhook")
    assert told.findings[1]["id"] == "lbc-webhook"


def test_a_service_with_two_masters(doctor: Doctor, cluster: Scene) -> None:
    cluster.expose("order")
    finalizers = {"metadata": {"finalizers": ["service.k8s.aws/resources"]}}
    cluster.patch("order", finalizers)
    doctor("--patience=1h").first("service-claimed-twice", f"{cluster.namespace}/order", "service.k8s.aws/resources")


def test_kube_proxy_where_weir_replaces_it(doctor: Doctor, plant: Callable[..., str], control_plane: ControlPlane) -> None:
    path = plant(DAEMON_SETS.format("kube-system"), workload("kube-proxy", "--config=x"))
    status = {"currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3}
    control_plane.kube.patch(f"{path}/status", {"status": status})
    plant(DAEMON_SETS.format(NAMESPACE), workload("weir-node", "node", "--node-name=$(NODE_NAME)"))
    doctor().first("kube-proxy-beside-replace", "kube-system/kube-proxy", "--mode=replace")


# --- Services


def test_a_service_with_a_mistake(doctor: Doctor, cluster: Scene) -> None:
    """Found without a controller; what it waits for follows."""
    key = "service.beta.kubernetes.io/aws-load-balancer-subnets"
    pending(cluster, "order", annotations={key: "subnet-xyz"})
    told = doctor()
    told.first("service-refused", f"{cluster.namespace}/order", key, "subnet-xyz")
    assert [(finding["id"], finding["followsFrom"]) for finding in told.findings[1:]] == [
        ("service-waiting", ["service-refused"])
    ]


def test_a_mistake_that_was_corrected_is_no_finding(
    doctor: Doctor, cluster: Scene, account: Account, weir: WeirFactory
) -> None:
    """The controller says that it is over: its word about the mistake is no longer the last."""
    weir()
    account.elbv2.create_load_balancer(Name="taken", Type="network", Subnets=account.names["subnets"])
    serve(cluster, account)
    key = "service.beta.kubernetes.io/aws-load-balancer-name"
    cluster.patch("order", {"metadata": {"annotations": {key: "taken"}}})
    cluster.wait_event("order", "InvalidConfiguration")
    doctor().first("service-refused", f"{cluster.namespace}/order", "taken")
    cluster.patch("order", {"metadata": {"annotations": {key: None}}})
    cluster.wait_event("order", "Recovered")
    assert doctor().findings == []


def test_a_service_that_cannot_go(doctor: Doctor, cluster: Scene) -> None:
    cluster.expose("order")
    cluster.patch("order", {"metadata": {"finalizers": ["weir.dev/load-balancer"]}})
    cluster.delete("order")
    time.sleep(1.1)
    doctor().first("service-deleting", f"{cluster.namespace}/order")


# --- one node


@pytest.fixture(scope="module")
def workers(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """A node with weir on it."""
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    with Workers(control_plane, tmp_path_factory.mktemp("doctor"), "weir") as workers:
        workers.add_node("node-d")
        workers.wait_ready()
        yield workers


@pytest.fixture
def on_node(workers: Workers) -> Callable[..., Diagnosis]:
    """Examines that node. Its conntrack settings are the host's, and nobody's here to change."""
    prefix = workers.fabric.nodes["node-d"].namespace.prefix

    def examine(*flags: str, **variables: str) -> Diagnosis:
        return node(prefix, "--keep-sysctls", *flags, **variables)

    return examine


@pytest.fixture
def nft(workers: Workers) -> Callable[[str], str]:
    """Runs a script on that node."""
    return lambda script: workers.fabric.nodes["node-d"].namespace.run("nft", "-f", "-", stdin=script)


def test_a_healthy_node_has_no_finding(on_node: Callable[..., Diagnosis]) -> None:
    told = on_node()
    assert told.findings == [] and told.skipped == {} and told.code == 0


def test_no_nft_on_a_node(on_node: Callable[..., Diagnosis], tmp_path: Path) -> None:
    prefix_only = str(tmp_path)
    (tmp_path / "ip").symlink_to(Path("/usr/sbin/ip").resolve())
    on_node(PATH=prefix_only).first("nft-missing", "nft cannot be run")
    script = tmp_path / "nft"
    script.write_text("#!/bin/sh\necho 'nftables v0.9.3 (Topsy)'\n")
    script.chmod(0o755)
    on_node(PATH=prefix_only).first("nft-old", "0.9.3")


def test_rules_of_kube_proxy_on_a_node(on_node: Callable[..., Diagnosis], nft: Callable[[str], str]) -> None:
    nft("add table ip kube-proxy\nadd table ip6 nat\nadd chain ip6 nat KUBE-SERVICES\n")
    try:
        told = on_node()
        assert on_node("--mode=beside").findings == []
    finally:
        nft("delete table ip kube-proxy\ndelete table ip6 nat\n")
    told.first("kube-proxy-rules", "table ip kube-proxy", "chain KUBE-SERVICES of table ip6 nat")


def test_a_table_that_somebody_owns(workers: Workers, on_node: Callable[..., Diagnosis], nft: Callable[[str], str]) -> None:
    """P78: weir cannot change it, and in time says so at its health port; the cause is the owner."""
    prefix = workers.fabric.nodes["node-d"].namespace.prefix
    nft("delete table ip weir\n")
    owner = subprocess.Popen([*prefix, "nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert owner.stdin

        def is_owned() -> bool:
            # weir may have made the table anew in between.
            owner.stdin.write("delete table ip weir\nadd table ip weir { flags owner; }\n")
            owner.stdin.flush()
            return on_node().ids[:1] == ["table-owned"]

        wait_for(is_owned, 10, "the table to be owned", pause=0.3)
        on_node().first("table-owned", "table ip weir", str(owner.pid))
    finally:
        owner.terminate()
        owner.wait()
    wait_for(lambda: not on_node().findings, 30, "weir to have its table again", pause=0.5)


def test_a_mark_that_routing_looks_at(workers: Workers, on_node: Callable[..., Diagnosis]) -> None:
    namespace = workers.fabric.nodes["node-d"].namespace
    namespace.ip("rule add fwmark 0x80/0x80 lookup main", "rule add fwmark 0x1000/0x1000 lookup 100")
    try:
        on_node().first("mark-taken", "0x1000/0x1000")
        assert on_node("--masquerade-mark=0x2000").findings == []
    finally:
        namespace.ip("rule delete fwmark 0x80/0x80", "rule delete fwmark 0x1000/0x1000")


@pytest.mark.parametrize(
    ("check", "setting", "bad", "good", "severity"),
    [
        ("ip-forward-off", "ipv4__ip_forward", 0, 1, "error"),
        ("rp-filter-strict", "ipv4__conf__eth0__rp_filter", 1, 0, "warning"),
    ],
)
def test_settings_of_a_node(
    workers: Workers,
    on_node: Callable[..., Diagnosis],
    check: str,
    setting: str,
    bad: int,
    good: int,
    severity: str,
) -> None:
    namespace = workers.fabric.nodes["node-d"].namespace
    namespace.sysctl(**{setting: bad})
    try:
        on_node().first(check, setting.rpartition("__")[2], severity=severity)
    finally:
        namespace.sysctl(**{setting: good})


def test_a_firewall_on_a_node(on_node: Callable[..., Diagnosis], nft: Callable[[str], str]) -> None:
    nft(
        "table inet guard {\n"
        " chain forward { type filter hook forward priority 0; policy drop; ct state established accept; }\n"
        " chain input { type filter hook input priority 0; policy accept; }\n"
        "}\n"
    )
    try:
        told = on_node()
    finally:
        nft("delete table inet guard\n")
    told.first("firewall-drops", "chain forward of table inet guard", "1 rules", severity="warning")
    assert len(told.findings) == 1


def test_no_weir_on_a_node(workers: Workers) -> None:
    """Nobody answers, and there are no rules; with another program at the health port, that is why."""
    host = workers.fabric.add_host("bare")
    host.namespace.sysctl(ipv4__ip_forward=1)
    told = node(host.namespace.prefix, "--keep-sysctls")
    told.first("table-missing", "table ip weir", "table ip6 weir")
    assert told.ids[1] == "agent-silent"
    server = host.namespace.start(
        "stranger", ["python3", "-m", "http.server", str(HEALTHZ_PORT)], workers.directory / "stranger.log", {"PATH": "/usr/bin"}
    )
    try:
        wait_for(lambda: "health-port-taken" in node(host.namespace.prefix).ids, 10, "the stranger to listen")
        node(host.namespace.prefix, "--keep-sysctls").first("health-port-taken", "404", "SimpleHTTP")
    finally:
        server.terminate()
