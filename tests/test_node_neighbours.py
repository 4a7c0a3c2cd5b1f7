"""weir node among others in the same kernel: kube-proxy, the VPC CNI's rules, hostPorts, firewalls (sections I and K)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sandbox import netns, proxies
from sandbox.fabric import Host
from sandbox.rig import Rig, soon
from sandbox.wire import DROPPED, get

#: What the VPC CNI writes since v1.23: flows of pods to addresses outside the VPC are marked in the connection table,
#: and leave by the primary interface with its address.
CNI_RULES = """
table ip aws-cni {
	chain nat-prerouting {
		type nat hook prerouting priority -90; policy accept;
		iifname "eni*" ip daddr != 10.244.0.0/16 ct mark set ct mark | 0x80
	}
	chain aws-snat {
		type nat hook postrouting priority 100; policy accept;
		ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 counter masquerade
	}
	chain mangle {
		type filter hook prerouting priority -150; policy accept;
		iifname "eth0" fib daddr type local ct mark set ct mark | 0x80
	}
}
"""


@pytest.fixture(scope="module")
def proxy_kind() -> str:
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    return "weir"


@contextmanager
def rules(host: Host, *tables: str, text: str) -> Iterator[None]:
    """Somebody else's tables, for as long as the block lasts."""
    host.namespace.run("nft", "-f", "-", stdin=text)
    try:
        yield
    finally:
        for table in tables:
            host.namespace.run("nft", f"delete table {table}")


def table(name: str, place: str, rule: str) -> str:
    """A table with one base chain of one rule."""
    return f"table ip {name} {{\n chain only {{\n type {place}; policy accept;\n {rule}\n }}\n}}\n"


def conntrack(host: Host, address: str, port: int, protocol: str = "tcp") -> str:
    return host.namespace.run("conntrack", "-L", "-p", protocol, "--orig-dst", address, "--orig-port-dst", str(port))


def test_only_tables_of_our_name_are_made(rig: Rig) -> None:
    """P81."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    tables = rig.node_a.namespace.run("nft", "list", "tables").splitlines()
    assert tables == ["table ip weir", "table ip6 weir"]


def test_a_pods_flow_to_a_service_is_none_of_the_cnis(rig: Rig) -> None:
    """P82, P83, P85: once we have translated it, no other nat chain sees it, so it is not marked as leaving the VPC."""
    service = rig.service([rig.b1])
    with rules(rig.node_a, "ip aws-cni", text=CNI_RULES):
        rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
        flows = conntrack(rig.node_a, service.cluster_ip(), 80)
        assert "mark=0 " in flows and "mark=128" not in flows, flows
        # A flow that is not ours is marked, so the rules above do work.
        rig.question(rig.caller, "UDP").ask(rig.outside.address(4), 80, 0.2)
        assert "mark=128" in conntrack(rig.node_a, rig.outside.address(4), 80, "udp")


def test_the_cnis_mark_of_node_port_flows_stays(rig: Rig) -> None:
    """P84: it brings the answers back by the interface on which the question came."""
    service = rig.service([rig.a1], type="NodePort", externalTrafficPolicy="Local")
    address, port = rig.node_a.address(4), service.node_port()
    with rules(rig.node_a, "ip aws-cni", text=CNI_RULES):
        rig.expect(rig.outside, address, port, ("a1", "outside"))
        flows = conntrack(rig.node_a, address, port)
        assert flows.count("mark=128") == flows.count("tcp "), flows


def test_a_node_port_goes_before_a_host_port_of_the_same_number(rig: Rig) -> None:
    """P90."""
    service = rig.service([rig.a1], type="NodePort", externalTrafficPolicy="Local")
    address, port = rig.node_a.address(4), service.node_port()
    rig.expect(rig.outside, address, port, ("a1", "outside"))
    host_port = f"tcp dport {port} dnat to {rig.a2.address(4)}:8080"
    with rules(rig.node_a, "ip portmap", text=table("portmap", "nat hook prerouting priority -100", host_port)):
        rig.expect(rig.outside, address, port, ("a1", "outside"))


def test_a_firewall_sees_endpoints_and_has_the_last_word(rig: Rig) -> None:
    """P86, P87: at filter priority the destination is the pod's, and a drop there is not overruled."""
    service = rig.service([rig.a1], type="NodePort", externalTrafficPolicy="Local")
    address, port = rig.node_a.address(4), service.node_port()
    rig.expect(rig.outside, address, port, ("a1", "outside"))
    drop = f"ip daddr {rig.a1.address(4)} tcp dport 8080 drop"
    with rules(rig.node_a, "ip firewall", text=table("firewall", "filter hook forward priority 0", drop)):
        rig.expect(rig.outside, address, port, DROPPED)
    rig.expect(rig.outside, address, port, ("a1", "outside"))


def test_names_of_any_legal_length(rig: Rig) -> None:
    """P79: no name gets into the kernel."""
    name = "n" * 63
    namespace = rig.services.namespace
    spec = {"ports": [{"name": "p" * 15, "port": 80, "targetPort": 8080}], "sessionAffinity": "ClientIP"}
    rig.kube.create(f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": name}, "spec": spec})
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    try:
        body = {
            "metadata": {"name": "s" * 253, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "p" * 15, "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [rig.a1.address(4)], "nodeName": rig.node_a.name}],
        }
        rig.kube.create(slices, body)
        address = rig.kube.get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]
        rig.expect(rig.caller, address, 80, ("a1", "caller"))
        assert "nnnn" not in rig.node_a.namespace.run("nft", "list", "table", "ip", "weir")
    finally:
        rig.kube.delete(f"{slices}/{'s' * 253}")
        rig.kube.delete(f"/api/v1/namespaces/{namespace}/services/{name}")


def test_nothing_is_programmed_before_everything_was_listed(rig: Rig) -> None:
    """P10: while the API server does not answer, the rules that are there stay."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.proxy.stop()
    relay = rig.workers.relay(rig.node_a)
    relay.pause()
    try:
        rig.proxy.start()
        soon(lambda: get(rig.node_a, "127.0.0.1", rig.proxy.healthz_port, "/livez") is not None)
        rig.stays(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), seconds=2)
        # The rules of before forward, so load balancers may go on (P52).
        health = get(rig.node_a, "127.0.0.1", rig.proxy.healthz_port, "/healthz")
        assert health and health.status == 200
    finally:
        relay.resume()
    rig.proxy.wait_ready()
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))


def test_kube_proxys_rules_are_told_of_and_left(rig: Rig) -> None:
    """P89: replacing it while its rules are there."""
    kube_proxy = "table ip kube-proxy {\n chain services {\n }\n}\ntable ip nat {\n chain KUBE-SERVICES {\n }\n}\n"
    with rules(rig.node_a, "ip kube-proxy", "ip nat", text=kube_proxy):
        rig.proxy.restart()
        log = rig.proxy.log.read_text()
        assert "table ip kube-proxy" in log and "chain KUBE-SERVICES of table ip nat" in log
        assert "table ip kube-proxy" in rig.node_a.namespace.run("nft", "list", "tables")


def test_without_ipv6_the_other_family_runs_alone(rig: Rig) -> None:
    """P67, P69: on node-b, which loses its IPv6 addresses by this for the rest of the module."""
    service = rig.service([rig.b1])
    rig.node_b.namespace.sysctl(ipv6__conf__all__disable_ipv6=1)
    proxy = rig.workers.proxies["node-b"]
    proxy.restart()
    rig.expect(rig.node_b, service.cluster_ip(), 80, ("b1", "node-b"))
    health = get(rig.node_b, "127.0.0.1", proxy.healthz_port, "/healthz")
    assert health and list(health.body["status"]) == ["IPv4"]
