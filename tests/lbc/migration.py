"""The ways from LBC to weir that docs/from-aws-load-balancer-controller.md tells of, gone with both in one account."""

from __future__ import annotations

from collections.abc import Callable

from lbc import controller
from lbc.manifests import PREFIX
from sandbox import scene
from sandbox.aws import Account
from sandbox.kube import KubeError
from sandbox.scene import Scene

LBC_FINALIZER = "service.k8s.aws/resources"
PATIENCE_SECONDS = 60.0
EXTERNAL = {PREFIX + "aws-load-balancer-type": "external", PREFIX + "aws-load-balancer-nlb-target-type": "instance"}
AS_CLUSTER_IP = {"spec": {"type": "ClusterIP"}}
AS_WEIRS = {"spec": {"type": "LoadBalancer", "loadBalancerClass": scene.LOAD_BALANCER_CLASS}}


def walk(cluster: Scene, account: Account, say: Callable[[str], None]) -> None:
    """Both controllers run; an AssertionError or TimeoutError tells where the page is wrong."""
    for way in (by_a_second_service, in_place, from_no_class):
        way(cluster, account)
        assert way.__doc__
        say(f"  {way.__doc__}")


def by_a_second_service(cluster: Scene, account: Account) -> None:
    """A second Service over the same pods: both load balancers are there until the first is deleted."""
    old = expose(cluster, "order")
    cluster.expose("order-weir", selector={"app": "order"})
    new = cluster.wait_hostname("order-weir", PATIENCE_SECONDS)
    assert hostnames(account) == {old, new}
    cluster.delete("order")
    cluster.wait_gone("order", PATIENCE_SECONDS)
    assert hostnames(account) == {new}
    end(cluster, "order-weir")


def in_place(cluster: Scene, account: Account) -> None:
    """In place: the class cannot be changed, but the type can; LBC lets go of the Service and weir takes it."""
    expose(cluster, "cart")
    expect_refusal(cluster, "cart")
    cluster.patch("cart", AS_CLUSTER_IP)
    cluster.kube.wait(lambda: LBC_FINALIZER not in finalizers(cluster, "cart"), PATIENCE_SECONDS, "LBC to let go")
    assert hostnames(account) == set() and cluster.hostname("cart") is None
    cluster.patch("cart", AS_WEIRS)
    new = cluster.wait_hostname("cart", PATIENCE_SECONDS)
    assert hostnames(account) == {new}
    end(cluster, "cart")


def from_no_class(cluster: Scene, account: Account) -> None:
    """A Service that is LBC's by annotation: LBC keeps it as ClusterIP, too, until it has weir's class."""
    service = {
        "metadata": {"name": "stock", "annotations": EXTERNAL},
        "spec": {"type": "LoadBalancer", "selector": {"app": "stock"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    cluster.kube.create(cluster.path("services"), service)
    old = cluster.wait_hostname("stock", PATIENCE_SECONDS)
    expect_refusal(cluster, "stock")
    cluster.patch("stock", AS_CLUSTER_IP)
    cluster.wait_event("stock", "FailedBuildModel")
    assert LBC_FINALIZER in finalizers(cluster, "stock") and hostnames(account) == {old}
    cluster.patch("stock", AS_WEIRS)
    new = cluster.wait_hostname("stock", PATIENCE_SECONDS)
    cluster.kube.wait(lambda: LBC_FINALIZER not in finalizers(cluster, "stock"), PATIENCE_SECONDS, "LBC to let go")
    cluster.kube.wait(lambda: cluster.hostname("stock") == new, PATIENCE_SECONDS, "the hostname to stay weir's")
    assert hostnames(account) == {new}
    end(cluster, "stock")


def expose(cluster: Scene, name: str) -> str:
    """A Service of LBC's; its hostname."""
    cluster.expose(name, loadBalancerClass=controller.LOAD_BALANCER_CLASS)
    return cluster.wait_hostname(name, PATIENCE_SECONDS)


def expect_refusal(cluster: Scene, name: str) -> None:
    """Kubernetes takes no other class while the type stays, not even where there was none."""
    try:
        cluster.patch(name, AS_WEIRS)
    except KubeError as error:
        assert "may not change once set" in error.message, error.message
    else:
        raise AssertionError(f"the class of Service {name} was changed while its type stayed")


def end(cluster: Scene, name: str) -> None:
    cluster.delete(name)
    cluster.wait_gone(name, PATIENCE_SECONDS)


def finalizers(cluster: Scene, name: str) -> list[str]:
    return list(cluster.service(name)["metadata"].get("finalizers", []))


def hostnames(account: Account) -> set[str]:
    return {row["DNSName"].lower() for row in account.elbv2.describe_load_balancers()["LoadBalancers"]}
