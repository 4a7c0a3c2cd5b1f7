"""`weir gc` finds and deletes what Services that are gone left behind, and touches nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import WeirFactory

from sandbox.aws import Account
from sandbox.checks import (
    CALM,
    NOTHING,
    attached,
    balancer,
    is_served,
    left_in_aws,
    listeners,
    serve,
    tags,
    target_groups,
    target_of,
    writes,
)
from sandbox.kube import Object
from sandbox.process import wait_for
from sandbox.question import FAILED, ISOLATED, PENDING, Answer, Asker
from sandbox.question import NOTHING as OK
from sandbox.scene import Scene
from sandbox.view import lone_instances

LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/weir-controller"
Collector = Callable[..., Answer]


@pytest.fixture
def gc(cluster: Scene, account: Account, tmp_path: Path) -> Collector:
    asker = Asker(cluster.control_plane, account, tmp_path)

    def collect(*arguments: str, **variables: str) -> Answer:
        settings = [f"--cluster-name={account.cluster}", f"--namespace={cluster.namespace}"]
        return asker.ask("gc", "--output=json", *settings, *arguments, **variables)

    return collect


def drop(cluster: Scene, name: str) -> None:
    """Deletes a Service, and takes its finalizer off while weir is away."""
    cluster.delete(name)
    cluster.patch(name, {"metadata": {"finalizers": None}})
    cluster.wait_gone(name)


class Others:
    """What is somebody else's, however much it looks like weir's: one load balancer with listener, target group and
    security group under each of these marks, attached to the workers too."""

    def __init__(self, account: Account, prefix: str) -> None:
        self._account = account
        cluster, another = {"weir.dev/cluster": account.cluster}, {"weir.dev/cluster": "another"}
        owner = {"weir.dev/service": "shop/order", "weir.dev/service-uid": "gone", "weir.dev/resource": "load-balancer"}
        marks = {
            "untagged": {},
            "other-cluster": another | owner,
            "in-tree": {"kubernetes.io/service-name": "shop/order", f"kubernetes.io/cluster/{account.cluster}": "owned"},
            "lbc": {"elbv2.k8s.aws/cluster": account.cluster, "service.k8s.aws/stack": "shop/order"},
            # Whoever has the name of the cluster wrong would delete another one's.
            "no-id": cluster | owner,
            "twin": cluster | owner | {"weir.dev/cluster-uid": "another-id"},
            "ownerless": cluster | {"weir.dev/resource": "load-balancer"},
        }
        self._parts = [self._plant(f"{prefix}-{mark}", found) for mark, found in marks.items()]
        self._before = self.view()

    def _plant(self, name: str, marks: dict[str, str]) -> tuple[str, str, str]:
        elbv2, names = self._account.elbv2, self._account.names
        rows = [{"Key": key, "Value": value} for key, value in marks.items()]
        kept: dict[str, Any] = {"Tags": rows} if rows else {}
        balancer = elbv2.create_load_balancer(Name=name, Type="network", Subnets=names["subnets"][:1], **kept)
        arn = balancer["LoadBalancers"][0]["LoadBalancerArn"]
        settings = {"Protocol": "TCP", "Port": 31000, "VpcId": names["vpc"], "TargetType": "instance"}
        group = elbv2.create_target_group(Name=name, **settings, **kept)["TargetGroups"][0]["TargetGroupArn"]
        forward = [{"Type": "forward", "TargetGroupArn": group}]
        elbv2.create_listener(LoadBalancerArn=arn, Protocol="TCP", Port=80, DefaultActions=forward)
        source = {"Identifier": group, "Type": "elbv2"}
        self._account.autoscaling.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=[source])
        security = self._account.ec2.create_security_group(GroupName=name, Description="theirs", VpcId=names["vpc"])
        if rows:
            self._account.ec2.create_tags(Resources=[security["GroupId"]], Tags=rows)
        return arn, group, security["GroupId"]

    def view(self) -> list[Any]:
        elbv2, ec2, held = self._account.elbv2, self._account.ec2, attached(self._account)
        return [
            (
                elbv2.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"],
                elbv2.describe_listeners(LoadBalancerArn=balancer)["Listeners"],
                elbv2.describe_target_groups(TargetGroupArns=[group])["TargetGroups"],
                [tags(self._account, arn) for arn in (balancer, group)],
                group in held,
                ec2.describe_security_groups(GroupIds=[security])["SecurityGroups"],
            )
            for balancer, group, security in self._parts
        ]

    def assert_untouched(self) -> None:
        assert self.view() == self._before

    @property
    def named(self) -> set[str]:
        """ARNs and ids that carry the cluster's name: what a person is told of."""
        return {part for parts in self._parts[4:] for part in parts}

    def remove(self) -> None:
        for balancer, group, security in self._parts:
            self._account.elbv2.delete_load_balancer(LoadBalancerArn=balancer)
            source = {"Identifier": group, "Type": "elbv2"}
            self._account.autoscaling.detach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=[source])
            self._account.elbv2.delete_target_group(TargetGroupArn=group)
            self._account.ec2.delete_security_group(GroupId=security)


def prefix_of(account: Account) -> str:
    """What the names of everything of weir's begin with."""
    return "-".join(target_groups(account)[0]["TargetGroupName"].split("-")[:2])


def plant_ghost(account: Account, prefix: str) -> str:
    """A target group of weir's that was deleted while it was attached."""
    settings = {"Protocol": "TCP", "Port": 31000, "VpcId": account.names["vpc"], "TargetType": "instance"}
    made = account.elbv2.create_target_group(Name=f"{prefix}-ghost", **settings)["TargetGroups"][0]["TargetGroupArn"]
    source = {"Identifier": made, "Type": "elbv2"}
    account.autoscaling.attach_traffic_sources(AutoScalingGroupName="workers", TrafficSources=[source])
    account.elbv2.delete_target_group(TargetGroupArn=made)
    return str(made)


def lease(cluster: Scene) -> Object:
    return dict(cluster.kube.get(LEASES.format(cluster.namespace))["spec"])


def test_orphans_go_and_everything_else_stays(
    cluster: Scene, account: Account, weir: WeirFactory, gc: Collector
) -> None:
    """Shown first; not deleted while a controller is at work; then deleted under the Lease."""
    flags = (CALM, "--leader-elect=true", f"--namespace={cluster.namespace}")
    controller = weir(*flags)
    kept = serve(cluster, account, "kept")
    serve(cluster, account, "order")
    serve(cluster, account, "going")
    assert controller.stop() == 0
    drop(cluster, "order")
    controller = weir(*flags)
    # From then on it knows the account, and does not read it again by itself.
    wait_for(lambda: any(line.get("message") == "read the account" for line in controller.log()), 10, "the second one to lead")
    others = Others(account, prefix_of(account))
    ghost = plant_ghost(account, prefix_of(account))

    mark = account.mark()
    shown = gc()
    assert shown.code == PENDING, shown.errors
    [orphan] = shown.report["orphans"]
    assert (orphan["service"], orphan["because"]) == (f"{cluster.namespace}/order", "the Service is gone")
    steps = [step["text"].split(" weir-")[0] for step in orphan["steps"]]
    assert steps == ["delete load balancer", "detach target group", "delete target group", "delete security group"]
    assert [step["text"] for step in shown.report["shared"]] == [
        f"detach target group {ghost} from Auto Scaling group workers"
    ]
    assert set(shown.report["kept"]) == others.named
    refused = gc("--delete")
    assert refused.code == FAILED and "a controller is at work (" in refused.errors, refused.errors
    assert writes(account, mark) == []

    assert controller.stop() == 0
    cluster.delete("going")
    account.faults({"operation": "DetachTrafficSources", "code": "AccessDenied", "status": 403, "count": -1})
    denied = gc("--delete")
    assert denied.code == FAILED and "DetachTrafficSources" in denied.report["left"], denied.text
    assert denied.report["orphans"][0]["left"].startswith("waiting for Auto Scaling group workers to let go of ")
    account.faults()
    transitions = lease(cluster)["leaseTransitions"]
    deleted = gc("--delete")
    assert deleted.code == OK, (deleted.text, deleted.errors)
    assert "left" not in deleted.report["orphans"][0]
    after = lease(cluster)
    assert (after["holderIdentity"], after["leaseTransitions"]) == ("", transitions + 1)
    others.assert_untouched()
    wait_for(lambda: ghost not in attached(account), 10, "the ghost to go")
    assert is_served(account, kept)
    names = [row["TargetGroupName"] for row in target_groups(account)]
    assert not [name for name in names if "-order-" in name] and [name for name in names if "-going-" in name]

    again = gc("--delete")
    assert (again.code, again.report["orphans"], again.report["shared"]) == (OK, [], [])
    [note] = again.report["notes"]
    assert f"Service {cluster.namespace}/going is being deleted and waits for weir" in note

    # The last ones take along what all share.
    others.remove()
    drop(cluster, "kept")
    cluster.patch("going", {"metadata": {"finalizers": None}})
    protected = next(row for row in account.elbv2.describe_load_balancers()["LoadBalancers"] if "-kept-" in row["DNSName"])
    arn = protected["LoadBalancerArn"]
    protect(account, arn)
    hindered = gc("--delete")
    assert hindered.code == FAILED
    left = {orphan["service"].rpartition("/")[2]: orphan.get("left") for orphan in hindered.report["orphans"]}
    assert left["going"] is None and "eletion protection" in left["kept"], left
    protect(account, arn, protects=False)
    assert gc("--delete").code == OK
    assert left_in_aws(account) == NOTHING
    assert gc().code == OK


def protect(account: Account, arn: str, protects: bool = True) -> None:
    protection = {"Key": "deletion_protection.enabled", "Value": str(protects).lower()}
    account.elbv2.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=[protection])


def reader(cluster: Scene, *rules: tuple[str, str]) -> str:
    """A kubeconfig of somebody who may read these resources, by API group, and no others."""
    role = {"rules": [{"apiGroups": [group], "resources": [name], "verbs": ["get", "list"]} for group, name in rules]}
    roles, named = "/apis/rbac.authorization.k8s.io/v1", {"metadata": {"name": cluster.namespace}}
    cluster.kube.create(f"{roles}/clusterroles", named | role)
    cluster.kube.create(cluster.path("serviceaccounts"), {"metadata": {"name": "reader"}})
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster.namespace},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": cluster.namespace}],
    }
    cluster.kube.create(f"{roles}/clusterrolebindings", named | binding)
    token = cluster.kube.service_account_token(cluster.namespace, "reader")
    return str(cluster.control_plane.write_kubeconfig(f"reader-{cluster.namespace}", token))


def test_in_doubt_nothing_is_deleted(cluster: Scene, account: Account, weir: WeirFactory, gc: Collector) -> None:
    """Services that cannot be listed, a wrong name, nothing that answers, a cluster that still runs without any Auto
    Scaling group; what is protected keeps all that it serves with; and a throttled account is only slower."""
    controller = weir(CALM)
    serve(cluster, account, "order")
    hostname = serve(cluster, account, "kept")
    arn = balancer(account, hostname)["LoadBalancerArn"]
    assert controller.stop() == 0
    drop(cluster, "order")
    mark = account.mark()
    blind = reader(cluster, ("", "nodes"), ("", "namespaces"))
    dead = str(cluster.control_plane.write_kubeconfig("dead", cluster.control_plane.token, "https://127.0.0.1:9"))
    for arguments, variables, words in (
        ([], {"KUBECONFIG": blind}, "cannot list Services"),
        ([], {"KUBECONFIG": dead}, "cannot read the namespace kube-system"),
        ([], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot read the account"),
        (["--all"], {}, "Auto Scaling group workers has instances"),
    ):
        asked = gc("--delete", *arguments, **variables)
        assert asked.code == FAILED and words in asked.errors, (arguments, variables, asked)
    assert writes(account, mark) == []

    # A cluster whose nodes are in no Auto Scaling group, as Karpenter's are.
    account.workers.scale("workers", 0)
    [lone] = lone_instances(account)
    alive = gc("--all", "--delete")
    assert alive.code == FAILED and f"carry its tag and run ({lone})" in alive.errors, alive.errors
    account.workers.scale("workers", 3)
    assert writes(account, mark) == []

    # Everything is to go but for the force of protection, which leaves the rest as it is.
    protect(account, arn)
    account.faults({"operation": "DeleteTargetGroup", "code": "Throttling", "count": 2})
    before = [row for row in target_groups(account) if "-kept-" in row["TargetGroupName"]]
    forced = gc("--all", "--delete", "--force", "--timeout=20s")
    account.faults()
    assert forced.code == FAILED
    left = {orphan["service"].rpartition("/")[2]: orphan.get("left") for orphan in forced.report["orphans"]}
    assert left["order"] is None and "eletion protection" in left["kept"], left
    assert [row for row in target_groups(account)] == before
    assert {row["TargetGroupArn"] for row in before} <= attached(account)
    assert target_of(listeners(account, arn)[80]) == before[0]["TargetGroupArn"]
    assert len(left_in_aws(account)["groups"]) == 2 and left_in_aws(account)["node rules"]
    protect(account, arn, protects=False)


def test_what_a_cluster_left_that_is_gone(
    cluster: Scene, account: Account, weir: WeirFactory, gc: Collector
) -> None:
    """Without any Kubernetes; not of two clusters at once, and not while instances run, unless that is said."""
    controller = weir(CALM)
    for name in ("order", "cart"):
        serve(cluster, account, name)
    uid = tags(account, target_groups(account)[0]["TargetGroupArn"])["weir.dev/cluster-uid"]
    assert controller.stop() == 0
    others = Others(account, prefix_of(account))
    ghost = plant_ghost(account, prefix_of(account))
    gone = {"KUBECONFIG": ISOLATED["KUBECONFIG"]}

    mark = account.mark()
    assert "there is --all" in gc(**gone).errors
    two = gc("--all", **gone)
    assert two.code == FAILED and uid in two.errors and "another-id" in two.errors, two.errors
    shown = gc("--all", f"--cluster-uid={uid}", **gone)
    assert shown.code == PENDING, shown.errors
    assert len(shown.report["orphans"]) == 2 and set(shown.report["kept"]) == others.named
    running = gc("--all", f"--cluster-uid={uid}", "--delete", **gone)
    assert running.code == FAILED and "Auto Scaling group workers has instances" in running.errors, running.errors
    assert writes(account, mark) == []

    deleted = gc("--all", f"--cluster-uid={uid}", "--delete", "--force", **gone)
    assert deleted.code == OK, (deleted.text, deleted.errors)
    others.assert_untouched()
    assert ghost not in attached(account)
    others.remove()
    # The shared group stayed for the sake of what said of itself that it is the cluster's.
    assert left_in_aws(account)["balancers"] == left_in_aws(account)["target groups"] == []
    assert gc("--all", "--delete", "--force", **gone).code == OK
    assert left_in_aws(account) == NOTHING
