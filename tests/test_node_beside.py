"""weir node beside kube-proxy on one node, each with its own Services (sections A and K)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import netns, proxies
from sandbox.cluster import ControlPlane
from sandbox.proxies import SERVICE_PROXY_NAME, KubeProxy, WeirNode
from sandbox.rig import Rig, soon
from sandbox.wire import DROPPED, REFUSED

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
OURS = {"labels": {PROXY_NAME_LABEL: SERVICE_PROXY_NAME}}


@pytest.fixture(scope="module")
def shared_rig(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """kube-proxy on both nodes, and weir beside it on node-a."""
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    directory: Path = tmp_path_factory.mktemp("beside")
    with Rig(control_plane, directory, KubeProxy.kind, "beside") as rig:
        weir = WeirNode(rig.node_a, rig.proxy.kubeconfig, directory, mode="beside")
        weir.start()
        try:
            weir.wait_ready()
            yield rig
        finally:
            weir.stop()


def weir_has(rig: Rig, address: str) -> bool:
    return address in rig.node_a.namespace.run("nft", "list", "map", "ip", "weir", "inside")


def test_each_proxy_serves_its_own_services(rig: Rig) -> None:
    """P2, P56, P88: and a Service changes hands with its label."""
    ours, theirs = (rig.service([rig.a1, rig.b1], type="NodePort", **more) for more in (OURS, {}))
    for service, has in ((ours, True), (theirs, False)):
        both = (("a1", "caller"), ("b1", "caller"))
        rig.expect(rig.caller, service.cluster_ip(), 80, *both)
        seen = (("a1", "outside" if has else "node-a"), ("b1", "node-a"))
        rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), *seen)
        assert weir_has(rig, service.cluster_ip()) == has
    theirs.label(PROXY_NAME_LABEL, SERVICE_PROXY_NAME)
    soon(lambda: weir_has(rig, theirs.cluster_ip()))
    rig.expect(rig.caller, theirs.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    ours.label(PROXY_NAME_LABEL, None)
    soon(lambda: not weir_has(rig, ours.cluster_ip()))
    rig.expect(rig.caller, ours.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))


def test_kube_proxy_does_not_drop_what_we_refuse(rig: Rig) -> None:
    """P15, P16, P88: to kube-proxy our ClusterIPs are unused addresses, which it drops."""
    service = rig.service(**OURS)
    for source in (rig.caller, rig.node_a, rig.outside):
        rig.expect(source, service.cluster_ip(), 80, REFUSED)
        rig.expect(source, service.cluster_ip(), 81, REFUSED)
    service.set_endpoints([rig.b1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
    # An address that nobody has stays kube-proxy's business.
    free = "10.96.250.250"
    rig.route(free)
    rig.expect(rig.caller, free, 80, DROPPED)


def test_established_flows_live_through_a_change_of_hands(rig: Rig) -> None:
    """P74: the connection table knows them, whoever has made the entry."""
    service = rig.service([rig.b1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
    question = rig.question(rig.caller)
    with question.open(service.cluster_ip(), 80) as flow:
        assert question.on(flow).server == "b1"
        service.label(PROXY_NAME_LABEL, SERVICE_PROXY_NAME)
        soon(lambda: weir_has(rig, service.cluster_ip()))
        time.sleep(0.5)
        assert question.on(flow).server == "b1"
