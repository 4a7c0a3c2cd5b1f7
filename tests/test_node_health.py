"""What a node's health endpoints say: section G of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sandbox.fabric import FAMILIES
from sandbox.process import LOOPBACK
from sandbox.proxies import HEALTHZ_PORT
from sandbox.rig import Rig, soon
from sandbox.services import PORTS, Port, Service, draining
from sandbox.wire import Answer, Server, get

NODE = "/api/v1/nodes/node-a"
LOCAL_BALANCER: dict[str, Any] = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}


def health(rig: Rig, service: Service, path: str = "/", method: str = "GET") -> Answer | None:
    return get(rig.outside, rig.node_a.address(4), service.health_port, path, method)


def expect_local(rig: Rig, service: Service, count: int) -> Answer:
    """Soon the Service's port says that there are so many local endpoints."""

    def check() -> None:
        answer = health(rig, service)
        assert answer is not None
        assert answer.body["localEndpoints"] == count

    soon(check)
    answer = health(rig, service)
    assert answer is not None
    return answer


# --- the port of a Service with policy Local


def test_a_service_tells_its_local_endpoints(rig: Rig) -> None:
    """P46, P47, P48: status, body and headers; a pod with two ports counts once."""
    service = rig.service([rig.a1, rig.a2, rig.b1], **LOCAL_BALANCER)
    answer = expect_local(rig, service, 2)
    assert answer.status == 200
    named = {"namespace": rig.services.namespace, "name": service.name}
    assert answer.body == {"service": named, "localEndpoints": 2, "serviceProxyHealthy": True}
    assert list(answer.body) == ["service", "localEndpoints", "serviceProxyHealthy"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == "2"


def test_without_a_local_endpoint_it_is_unavailable(rig: Rig) -> None:
    """P48: draining endpoints do not count, though they serve."""
    service = rig.service([rig.b1, draining(rig.a1)], **LOCAL_BALANCER)
    answer = expect_local(rig, service, 0)
    assert (answer.status, answer.headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
    service.set_endpoints([rig.a1])
    assert expect_local(rig, service, 1).status == 200


def test_every_path_and_method_is_answered(rig: Rig) -> None:
    """P46."""
    service = rig.service([rig.a1], **LOCAL_BALANCER)
    expect_local(rig, service, 1)
    for method, path in (("GET", "/healthz"), ("POST", "/"), ("HEAD", "/any/where?x=1"), ("PUT", "/")):
        answer = health(rig, service, path, method)
        assert answer is not None and answer.status == 200, (method, path)


def test_the_port_goes_with_the_policy_and_the_service(rig: Rig) -> None:
    """P46, P50: it listens on NodePort addresses, and no longer than it is wanted."""
    service = rig.service([rig.a1], **LOCAL_BALANCER)
    expect_local(rig, service, 1)
    port = service.health_port
    for family in FAMILIES:
        soon(lambda family=family: get(rig.outside, rig.node_a.address(family), port) is not None)
    assert get(rig.node_a, LOOPBACK, port) is None
    service.patch(externalTrafficPolicy="Cluster")
    soon(lambda: get(rig.outside, rig.node_a.address(4), port) is None)
    service.patch(externalTrafficPolicy="Local")
    port = service.health_port
    expect_local(rig, service, 1)
    service.delete()
    soon(lambda: get(rig.outside, rig.node_a.address(4), port) is None)


def test_a_port_in_use_is_told_and_tried_again(rig: Rig) -> None:
    """P50: a Warning Event; traffic is not affected; a later sync takes the port."""
    placeholder = rig.service([rig.a1], **LOCAL_BALANCER)
    port = placeholder.health_port
    expect_local(rig, placeholder, 1)
    placeholder.delete()
    soon(lambda: get(rig.outside, rig.node_a.address(4), port) is None)
    squatter = Server(rig.node_a, rig.directory, name="squatter", tcp=(port,), udp=())
    try:
        service = rig.service([rig.a1], healthCheckNodePort=port, **LOCAL_BALANCER)
        rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
        soon(lambda: "FailedToStartServiceHealthcheck" in reasons(rig, service))
    finally:
        squatter.kill()
    service.set_endpoints([rig.a1, rig.a2])
    if rig.kind == "kube-proxy":  # there it takes a change of the Service itself
        service.patch(sessionAffinity="ClientIP")
    expect_local(rig, service, 2)


def reasons(rig: Rig, service: Service) -> set[str]:
    events = rig.kube.list(f"/apis/events.k8s.io/v1/namespaces/{rig.services.namespace}/events")
    return {event["reason"] for event in events if event["regarding"].get("name") == service.name}


def test_a_service_that_hides_its_endpoints_from_other_protocols(rig: Rig) -> None:
    """P48: distinct addresses over all ports."""
    service = rig.service(ports=PORTS, **LOCAL_BALANCER)
    service.put_slice("tcp", [rig.a1], ports=[Port()])
    service.put_slice("udp", [rig.a1, rig.a2], ports=[Port("web-udp", protocol="UDP")])
    expect_local(rig, service, 2)


# --- the node's own


def node_health(rig: Rig, path: str = "/healthz") -> Answer:
    answer = get(rig.outside, rig.node_a.address(4), HEALTHZ_PORT, path)
    assert answer is not None
    return answer


def expect_eligible(rig: Rig, eligible: bool) -> None:
    soon(lambda: node_health(rig).status == (200 if eligible else 503))


@pytest.fixture
def node(rig: Rig) -> Iterator[str]:
    """node-a's path; its taints and finalizers are taken back."""
    yield NODE
    rig.kube.patch(NODE, {"spec": {"taints": None, "unschedulable": None}})


def test_a_healthy_node_says_so(rig: Rig) -> None:
    """P51: body and headers of /healthz."""
    expect_eligible(rig, True)
    answer = node_health(rig)
    assert answer.body.keys() >= {"lastUpdated", "currentTime", "nodeEligible", "healthy", "status"}
    assert (answer.body["nodeEligible"], answer.body["healthy"]) == (True, True)
    for family in ("IPv4", "IPv6"):
        assert answer.body["status"][family]["healthy"] is True
        assert answer.body["status"][family]["lastUpdated"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    updated, now = (datetime.fromisoformat(answer.body[name]) for name in ("lastUpdated", "currentTime"))
    assert abs(now - updated) < timedelta(seconds=1)


def test_a_node_that_is_scaled_away_is_not_eligible(rig: Rig, node: str) -> None:
    """P53, P54, P49: /healthz says no; /livez, and the ports of Services, do not mind."""
    service = rig.service([rig.a1], **LOCAL_BALANCER)
    expect_local(rig, service, 1)
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
    rig.kube.patch(node, {"spec": {"taints": [taint]}})
    expect_eligible(rig, False)
    answer = node_health(rig)
    assert (answer.body["nodeEligible"], answer.body["healthy"]) == (False, True)
    assert node_health(rig, "/livez").status == 200
    assert "nodeEligible" not in node_health(rig, "/livez").body
    assert expect_local(rig, service, 1).status == 200
    rig.kube.patch(node, {"spec": {"taints": None}})
    expect_eligible(rig, True)


def test_a_cordoned_node_stays_eligible(rig: Rig, node: str) -> None:
    """P53: unschedulable alone changes nothing."""
    rig.kube.patch(node, {"spec": {"unschedulable": True}})
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    assert node_health(rig).status == 200


def test_a_node_stays_as_it_was_while_the_api_server_is_out_of_reach(rig: Rig) -> None:
    """P55: health, and every rule."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    relay = rig.workers.relay(rig.node_a)
    relay.pause()
    try:
        rig.stays(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), seconds=2)
        assert node_health(rig).status == 200
        service.set_endpoints([rig.a2])
    finally:
        relay.resume()
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a2", "caller"), within=30)
