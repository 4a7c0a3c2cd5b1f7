"""Flows over time: conntrack's clean-up, restarts and endpoint churn under load (sections H and J of the contract)."""

from __future__ import annotations

import socket
import time

import pytest
from sandbox.fabric import FAMILIES, Family
from sandbox.rig import Rig, soon
from sandbox.services import Port, Service, draining, unready
from sandbox.wire import DROPPED, REFUSED, Load, Question

UDP = [Port("web-udp", protocol="UDP")]
FRONTENDS = ("ClusterIP", "NodePort", "externalIP")


class Talker:
    """One UDP flow from the outside client: all datagrams from one port, so conntrack keeps it one flow."""

    def __init__(self, rig: Rig, address: str, port: int) -> None:
        self._question: Question = rig.question(rig.outside, "UDP")
        self._flow: socket.socket = self._question.open(address, port, patience=0.3)

    def server(self) -> str:
        """Who answers the next datagram."""
        return self._question.on(self._flow).server

    def close(self) -> None:
        self._flow.close()


def udp_frontend(rig: Rig, kind: str, family: Family) -> tuple[Service, str, int]:
    """A UDP Service, and one of its frontends: address and port."""
    external = rig.vip(family)
    service = rig.service(ports=UDP, type="NodePort", externalIPs=[external])
    if kind == "NodePort":
        return service, rig.node_a.address(family), service.node_port("web-udp")
    return service, external if kind == "externalIP" else service.cluster_ip(family), 80


# --- Section H: conntrack


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", FRONTENDS)
def test_a_udp_flow_leaves_an_endpoint_that_went(rig: Rig, kind: str, family: Family) -> None:
    """P58, P59, P60."""
    service, address, port = udp_frontend(rig, kind, family)
    service.set_endpoints([rig.a1])
    rig.expect(rig.outside, address, port, *a1(rig), protocol="UDP")
    talker = Talker(rig, address, port)
    assert talker.server() == "a1"
    service.set_endpoints([rig.b1])
    soon(lambda: talker.server() == "b1")
    talker.close()


@pytest.mark.parametrize("kind", FRONTENDS)
def test_a_udp_flow_meets_the_first_endpoint(rig: Rig, kind: str) -> None:
    """P60: who sent before there was one is not stuck with that."""
    service, address, port = udp_frontend(rig, kind, 4)
    talker = Talker(rig, address, port)
    soon(lambda: talker.server() == REFUSED.server)
    service.set_endpoints([rig.a1])
    soon(lambda: talker.server() == "a1")
    talker.close()


@pytest.mark.parametrize("kind", FRONTENDS)
def test_a_udp_flow_ends_with_the_last_endpoint(rig: Rig, kind: str) -> None:
    """P60, and P61 for the NodePort."""
    service, address, port = udp_frontend(rig, kind, 4)
    service.set_endpoints([rig.a1])
    rig.expect(rig.outside, address, port, *a1(rig), protocol="UDP")
    talker = Talker(rig, address, port)
    assert talker.server() == "a1"
    service.set_endpoints([])
    if kind == "NodePort" and not rig.improved("NodePort flows are cleaned without endpoints"):
        rig.expect(rig.outside, address, port, REFUSED, protocol="UDP")
        assert talker.server() == "a1"
    else:
        soon(lambda: talker.server() == REFUSED.server)
    talker.close()


def test_a_udp_flow_to_an_endpoint_that_still_serves_lives_on(rig: Rig) -> None:
    """P59: draining, or not among those the policy would choose now."""
    service, address, port = udp_frontend(rig, "externalIP", 4)
    service.set_endpoints([rig.b1])
    rig.expect(rig.outside, address, port, ("b1", "node-a"), protocol="UDP")
    talker = Talker(rig, address, port)
    assert talker.server() == "b1"
    service.patch(externalTrafficPolicy="Local")
    service.set_endpoints([rig.a1, draining(rig.b1)])
    rig.expect(rig.outside, address, port, ("a1", "outside"), protocol="UDP")
    assert {talker.server() for _ in range(5)} == {"b1"}
    service.set_endpoints([rig.a1, unready(rig.b1)])
    soon(lambda: talker.server() == "a1")
    talker.close()


def test_a_tcp_connection_outlives_its_endpoint(rig: Rig) -> None:
    """P58: the server ends it, not the proxy; other flows are not touched either (P62)."""
    service = rig.service([rig.a1])
    rig.expect(rig.outside, service.cluster_ip(), 80, *a1(rig))
    question = rig.question(rig.outside)
    with question.open(service.cluster_ip(), 80) as flow:
        assert question.on(flow).server == "a1"
        service.set_endpoints([rig.b1])
        rig.expect(rig.outside, service.cluster_ip(), 80, ("b1", "node-a"))
        assert question.on(flow).server == "a1"
        service.set_endpoints([])
        rig.expect(rig.outside, service.cluster_ip(), 80, REFUSED)
        assert question.on(flow).server == "a1"


def a1(rig: Rig) -> list[tuple[str, str]]:
    return [("a1", "outside" if rig.improved("the client of a local endpoint is kept") else "node-a")]


# --- Section J: programming


def age_layout(rig: Rig) -> str:
    """Gives the table of node-a the mark of another layout. Returns the table's handle."""
    listing = rig.node_a.namespace.run("nft", "list", "chains", "ip")
    layout = next(word for word in listing.split() if word.startswith("layout-"))
    rig.node_a.namespace.run("nft", f"delete chain ip weir {layout}; add chain ip weir layout-00000000")
    return table_handle(rig)


def table_handle(rig: Rig) -> str:
    listing = rig.node_a.namespace.run("nft", "-a", "list", "table", "ip", "weir")
    return listing.partition("\n")[0].rpartition(" ")[2]


@pytest.mark.parametrize("how", ["killed", "stopped in order", "upgraded"])
def test_a_restart_under_load_loses_nothing(rig: Rig, proxy_kind: str, how: str) -> None:
    """P73, P74, P75: 200 new connections a second, and one that was there before. An upgrade finds another layout, and
    replaces the whole table in one transaction."""
    if how == "upgraded" and proxy_kind != "weir":
        pytest.skip("only weir marks its table with a layout")
    service = rig.service([rig.a1, rig.a2, rig.b1], type="NodePort")
    address, port = rig.node_a.address(4), service.node_port()
    soon(lambda: rig.question(rig.outside).ask(address, port).server in ("a1", "a2", "b1"))
    question = rig.question(rig.outside)
    with question.open(address, port) as flow:
        before = question.on(flow)
        load = Load(rig.outside, address, port, rig.directory, rate=200)
        time.sleep(1)
        rig.proxy.kill() if how == "killed" else rig.proxy.stop()
        time.sleep(0.5)
        assert question.on(flow) == before
        handle = age_layout(rig) if how == "upgraded" else None
        rig.proxy.start()
        rig.proxy.wait_ready()
        time.sleep(1)
        report = load.finish()
        assert handle is None or handle != table_handle(rig)
        assert question.on(flow) == before
    assert (report.failed, report.errors) == (0, {}), report
    assert report.sent > 300
    service.set_endpoints([rig.b1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))


def test_endpoints_that_come_and_drain_under_load_lose_nothing(rig: Rig) -> None:
    """P7, P58, P70: pods are replaced one after the other, each ending as Kubernetes ends it."""
    service = rig.service([rig.a1, rig.b1], type="NodePort", ports=[Port()])
    address, port = rig.node_a.address(4), service.node_port()
    rig.expect(rig.outside, address, port, *a1(rig), ("b1", "node-a"))
    load = Load(rig.outside, address, port, rig.directory, rate=200, path="/?delay=20ms")
    pods = [rig.a1, rig.b1]
    for number in range(6):
        node = rig.node_b if number % 2 else rig.node_a
        fresh = rig.workers.add_pod(node, f"fresh-{number}")
        old = pods.pop(0)
        service.set_endpoints([*pods, fresh, draining(old)])
        pods.append(fresh)
        time.sleep(0.4)  # a pod's preStop pause: the word needs a moment to reach the nodes
        service.set_endpoints(pods)
        if old.name.startswith("fresh"):
            rig.workers.remove_pod(old)
    report = load.finish()
    for pod in pods:
        rig.workers.remove_pod(pod)
    assert (report.failed, report.errors) == (0, {}), report
    assert len(report.answers) == 8


def test_the_whole_service_moves_under_load_by_way_of_draining_endpoints(rig: Rig) -> None:
    """P7: the last ready endpoint drains before the next is there."""
    service = rig.service([rig.a1], ports=[Port()])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    load = Load(rig.caller, service.cluster_ip(), 80, rig.directory, rate=200)
    time.sleep(0.3)
    for leaving, coming in ((rig.a1, rig.b1), (rig.b1, rig.a2), (rig.a2, rig.a1)):
        service.set_endpoints([draining(leaving)])
        time.sleep(0.3)
        service.set_endpoints([coming, draining(leaving)])
        time.sleep(0.3)
        service.set_endpoints([coming])
        time.sleep(0.3)
    report = load.finish()
    assert (report.failed, report.errors) == (0, {}), report


def test_rules_that_somebody_flushed_come_back(rig: Rig) -> None:
    """P76."""
    if not rig.improved("a lost table comes back within seconds"):
        pytest.skip("kube-proxy repairs its table at the next full sync, up to an hour later")
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.node_a.namespace.run("nft", "flush", "ruleset")
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), within=5)


def test_services_made_and_deleted_in_a_burst_leave_no_rules(rig: Rig) -> None:
    """P37, P71: everything is gone that a Service had."""
    services = [rig.service([rig.a1, rig.b1], type="NodePort") for _ in range(20)]
    rig.expect(rig.caller, services[-1].cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    addresses = [service.cluster_ip() for service in services]
    for service in services:
        service.delete()
    rig.expect(rig.caller, addresses[-1], 80, DROPPED)

    def forgotten() -> bool:
        rules = rig.node_a.namespace.run("nft", "list", "ruleset")
        return not any(f" {address} " in rules or f"{address}-" in rules for address in addresses)

    soon(forgotten)
