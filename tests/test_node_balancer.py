"""From the internet to a pod: weir's controller makes the load balancer, nodes forward; and names inside the cluster.

Pods are real ones to the control plane: its controllers make and drain their endpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import WeirFactory
from sandbox.aws import Account
from sandbox.cluster import ControlPlane
from sandbox.dns import ClusterDns
from sandbox.fabric import Node, Pod
from sandbox.nlb import LoadBalancers
from sandbox.rig import soon
from sandbox.scene import NODES, Scene
from sandbox.wire import DROPPED, REFUSED, Load, Question, Reply
from sandbox.workers import Workers

LABELS = {"app": "order"}
DRAINED = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}


class Cluster:
    """An account's three workers as nodes that forward, its load balancers, weir's controller, and a client outside."""

    def __init__(self, scene: Scene, workers: Workers, balancers: LoadBalancers) -> None:
        self.scene, self.workers, self.balancers = scene, workers, balancers
        self.nodes: list[Node] = list(workers.fabric.nodes.values())

    def run_pod(self, name: str, node: Node) -> Pod:
        return self.workers.run_pod(self.scene, node, name, LABELS)

    def expose(self, **spec: object) -> str:
        """The Service `order` on port 80, and the name of its load balancer."""
        self.scene.expose("order", **spec)
        return self.scene.wait_hostname("order")

    def replies(self, hostname: str, count: int = 24) -> set[Reply]:
        """What connections from the internet to a load balancer's name bring."""
        client = Question(self.workers.fabric, self.balancers.internet)
        return set(client.many(count, self.balancers.address(hostname), 80))

    def expect(self, hostname: str, *want: tuple[str, str]) -> None:
        def check() -> None:
            assert self.replies(hostname) == set(want)

        soon(check, within=20)

    def expect_healthy(self, hostname: str, *nodes: Node) -> None:
        def check() -> None:
            assert self.balancers.healthy(hostname) == {node.name for node in nodes}

        soon(check, within=20)


@pytest.fixture
def cluster_of_nodes(
    control_plane: ControlPlane, installed: None, account: Account, proxy_kind: str, tmp_path: Path
) -> Iterator[Cluster]:
    scene = Scene(control_plane, f"nodes-{account.id.lstrip('0')}", [])
    controller = WeirFactory(scene, account, tmp_path)
    try:
        with Workers(control_plane, tmp_path / "nodes", proxy_kind) as workers:
            for manifest in account.node_manifests():
                labels = manifest["metadata"]["labels"]
                workers.add_node(manifest["metadata"]["name"], labels["topology.kubernetes.io/zone"], manifest)
            workers.wait_ready()
            with LoadBalancers(workers, account) as balancers:
                controller()
                yield Cluster(scene, workers, balancers)
    finally:
        controller.close()
        scene.close()


def test_the_client_of_a_load_balancer_arrives_with_its_address(cluster_of_nodes: Cluster) -> None:
    """Policy Local: the nodes with a pod are healthy (P46, P48), and no others get connections."""
    cluster = cluster_of_nodes
    first, second, third = cluster.nodes
    cluster.run_pod("order-1", first)
    cluster.run_pod("order-2", second)
    hostname = cluster.expose(externalTrafficPolicy="Local")
    cluster.expect_healthy(hostname, first, second)
    cluster.expect(hostname, ("order-1", "internet"), ("order-2", "internet"))
    third_pod = cluster.run_pod("order-3", third)
    cluster.expect_healthy(hostname, first, second, third)
    cluster.expect(hostname, *((f"order-{number}", "internet") for number in (1, 2, 3)))
    cluster.workers.end_pod(cluster.scene, third_pod)
    cluster.expect_healthy(hostname, first, second)


def test_every_worker_leads_to_the_pod_until_the_service_is_deleted(cluster_of_nodes: Cluster) -> None:
    """Policy Cluster: one pod behind three healthy targets; then the balancer's name leads nowhere."""
    cluster = cluster_of_nodes
    cluster.run_pod("order-1", cluster.nodes[0])
    hostname = cluster.expose()
    cluster.expect_healthy(hostname, *cluster.nodes)
    soon(lambda: {reply.server for reply in cluster.replies(hostname)} == {"order-1"}, within=20)
    seen = {reply.client for reply in cluster.replies(hostname, 60)}
    assert seen >= {node.name for node in cluster.nodes[1:]}
    address = cluster.balancers.address(hostname)
    cluster.scene.delete("order")
    cluster.scene.wait_gone("order")
    client = Question(cluster.workers.fabric, cluster.balancers.internet)
    soon(lambda: client.ask(address, 80, patience=0.3) in (REFUSED, DROPPED), within=20)


def test_a_node_that_is_scaled_away_loses_no_connection(cluster_of_nodes: Cluster, tmp_path: Path) -> None:
    """P53: it answers 503 on /healthz, the balancer turns away from it, and it forwards as long as it is asked."""
    cluster = cluster_of_nodes
    cluster.run_pod("order-1", cluster.nodes[0])
    cluster.run_pod("order-2", cluster.nodes[1])
    hostname = cluster.expose()
    cluster.expect_healthy(hostname, *cluster.nodes)
    soon(lambda: {reply.server for reply in cluster.replies(hostname)} == {"order-1", "order-2"}, within=20)
    load = Load(cluster.balancers.internet, cluster.balancers.address(hostname), 80, tmp_path, rate=100)
    path = f"{NODES}/{cluster.nodes[2].name}"
    cluster.scene.kube.patch(path, {"spec": {"taints": [DRAINED]}})
    cluster.expect_healthy(hostname, *cluster.nodes[:2])
    soon(lambda: cluster.nodes[2].name not in {reply.client for reply in cluster.replies(hostname, 40)})
    report = load.finish()
    assert (report.failed, report.errors) == (0, {}), report


def test_a_pod_finds_a_service_by_its_name(cluster_of_nodes: Cluster) -> None:
    """The cluster's DNS is itself behind a ClusterIP that the node forwards, by UDP and by TCP."""
    cluster = cluster_of_nodes
    dns = ClusterDns(cluster.workers, cluster.nodes[2])
    try:
        client = cluster.workers.fabric.add_pod(cluster.nodes[0], "client")
        dns.resolve_in(client, cluster.scene.namespace)
        cluster.scene.expose("order", type="ClusterIP", loadBalancerClass=None)
        address = cluster.scene.service("order")["spec"]["clusterIP"]

        def look_up(name: str) -> str:
            """Empty while the name is unknown."""
            found = client.namespace.run("sh", "-c", f"getent ahostsv4 {name} || true").split()
            return found[0] if found else ""

        for name in ("order", f"order.{cluster.scene.namespace}", f"order.{cluster.scene.namespace}.svc.cluster.local"):
            soon(lambda name=name: look_up(name) == address, within=20)
        cluster.scene.delete("order")
        soon(lambda: look_up("order") == "", within=20)
    finally:
        dns.close()
