"""Where a Service's traffic goes and whose address arrives with it: sections A to F of the contract.

Every test runs with each service proxy on real nodes; P-numbers are those of the contract of the node agent.
"""

from __future__ import annotations

import socket
import time

import pytest
from sandbox.fabric import FAMILIES, Addresses, Host
from sandbox.kube import Object
from sandbox.rig import Rig, families_and_protocols, soon
from sandbox.services import Endpoint, Port, Service, draining, unready
from sandbox.wire import DROPPED, PROTOCOLS, REFUSED, Server, chi_square_exceeds

#: Chi-square of 2 degrees of freedom (three endpoints) that chance exceeds once in a thousand.
RARE = 13.8

IPPROTO_SCTP = 132
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
LOCAL = {"externalTrafficPolicy": "Local"}

KEPT = "the client of a local endpoint is kept"


# --- Section C: who answers, and whose address it sees


def external(rig: Rig, kind: str, **spec: object) -> tuple[Service, Addresses, int]:
    """A Service on a1 and b1 with an external frontend of a kind: its addresses and port."""
    vips: Addresses = {family: rig.vip(family) for family in FAMILIES}
    if kind == "externalIP":
        return rig.service([rig.a1, rig.b1], externalIPs=list(vips.values()), **spec), vips, 80
    if kind == "NodePort":
        service = rig.service([rig.a1, rig.b1], type="NodePort", **spec)
        return service, rig.node_a.addresses, 0
    service = rig.service([rig.a1, rig.b1], type="LoadBalancer", **spec)
    service.set_ingress(*({"ip": vip} for vip in vips.values()))
    return service, vips, 80


EXTERNALS = ("NodePort", "LB VIP", "externalIP")


def seen(rig: Rig, source: Host, kind: str, policy: str) -> list[tuple[str, str]]:
    """The matrix: (server, client it sees) for an endpoint on node-a and one on node-b, asked by way of node-a."""
    name = source.name
    if source is rig.node_a:  # its own address either way
        return [("a1", "node-a")] if (kind, policy) == ("ClusterIP", "Local") else [("a1", "node-a"), ("b1", "node-a")]
    if kind == "ClusterIP" and source is rig.caller:
        return [("a1", name)] if policy == "Local" else [("a1", name), ("b1", name)]
    if policy == "Local" and kind != "ClusterIP":
        return [("a1", name), ("b1", name)] if source is rig.caller else [("a1", name)]
    local = ("a1", name if rig.improved(KEPT) else "node-a")
    return [local] if policy == "Local" else [local, ("b1", "node-a")]


def test_sctp(rig: Rig) -> None:
    """P1: the third protocol, to a local and to a remote endpoint."""
    try:
        listeners = [pod.namespace.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP) for pod in (rig.a1, rig.b1)]
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP sockets: {error.strerror}")
    for pod, listener in zip((rig.a1, rig.b1), listeners, strict=True):
        with listener:
            listener.bind((pod.address(4), 8080))
            listener.listen()
            service = rig.service([pod], type="NodePort", ports=[Port(protocol="SCTP")])
            with rig.outside.namespace.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP) as client:
                client.settimeout(5)
                soon(lambda: client.connect((rig.node_a.address(4), service.node_port())))  # noqa: B023
                client.sendall(b"hello")
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(16) == b"hello"


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize("source", ["caller", "node_a", "outside"])
def test_cluster_ip(rig: Rig, source: str, policy: str) -> None:
    """P7, P11, P18, P68 and the ClusterIP rows of section C."""
    service = rig.service([rig.a1, rig.b1], internalTrafficPolicy=policy)
    host = getattr(rig, source)
    for family, protocol in families_and_protocols():
        rig.expect(host, service.cluster_ip(family), 80, *seen(rig, host, "ClusterIP", policy), protocol=protocol)


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize("kind", EXTERNALS)
@pytest.mark.parametrize("source", ["caller", "node_a", "outside"])
def test_external_frontends(rig: Rig, source: str, kind: str, policy: str) -> None:
    """P7, P18, P29, P30, P34, P68 and the external rows of section C."""
    service, addresses, port = external(rig, kind, externalTrafficPolicy=policy)
    host = getattr(rig, source)
    want = seen(rig, host, kind, policy)
    for family, protocol in families_and_protocols():
        node_port = port or service.node_port("web" if protocol == "TCP" else "web-udp")
        rig.expect(host, addresses[family], node_port, *want, protocol=protocol)


def test_each_traffic_policy_minds_its_own_frontends(rig: Rig) -> None:
    """P17: external Local leaves the ClusterIP alone, internal Local the NodePort."""
    both = [("a1", "caller"), ("b1", "caller")]
    service = rig.service([rig.a1, rig.b1], type="NodePort", **LOCAL)
    rig.expect(rig.caller, service.cluster_ip(), 80, *both)
    service = rig.service([rig.a1, rig.b1], type="NodePort", internalTrafficPolicy="Local")
    want = seen(rig, rig.outside, "NodePort", "Cluster")
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), *want)


def test_a_node_port_works_on_a_node_without_the_pod(rig: Rig) -> None:
    """Section C, policy Cluster: the tutorial's NodePort through either node."""
    service = rig.service([rig.b1], type="NodePort")
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), ("b1", "node-a"))
    kept = "outside" if rig.improved(KEPT) else "node-b"
    rig.expect(rig.outside, rig.node_b.address(4), service.node_port(), ("b1", kept))


# --- Section A: what counts


@pytest.mark.parametrize("value", ["other", ""])
def test_the_label_of_another_proxy_takes_a_service_out(rig: Rig, value: str) -> None:
    """P2: at creation and at run time, whatever its value."""
    service = rig.service([rig.a1], labels={PROXY_NAME: value}, type="NodePort")
    rig.stays(rig.outside, rig.node_a.address(4), service.node_port(), REFUSED)
    service.label(PROXY_NAME, None)
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    service.label(PROXY_NAME, value)
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), REFUSED)


def test_slices_marked_headless_or_without_a_service_do_not_count(rig: Rig) -> None:
    """P3."""
    service = rig.service([rig.a1])
    service.put_slice("headless", [rig.a2], labels={"service.kubernetes.io/headless": ""})
    service.put_slice("nobodys", [rig.b1], labels={"kubernetes.io/service-name": None})
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.stays(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))


def test_a_service_without_a_cluster_ip_has_no_frontends(rig: Rig) -> None:
    """P1: headless, even with an external address written into it."""
    vip = rig.vip(4)
    rig.service([rig.a1], clusterIP="None", externalIPs=[vip])
    rig.stays(rig.outside, vip, 80, DROPPED)


def test_a_slice_of_names_is_ignored(rig: Rig) -> None:
    """P4: addressType FQDN."""
    service = rig.service([rig.a1])
    service.put_slice("names", [], names=["example.com"])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.stays(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))


def test_slices_of_a_service_are_merged_each_with_its_own_port_numbers(rig: Rig) -> None:
    """P4, P5: a named target port may be another number in each slice."""
    service = rig.service([rig.a1])
    service.put_slice("second", [rig.b1], ports=[Port("web", target=8081), Port("web-udp", 80, 8081, "UDP")])
    for protocol in PROTOCOLS:
        rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"), protocol=protocol)


def test_a_slice_port_belongs_to_a_service_port_by_name_and_protocol(rig: Rig) -> None:
    """P5: the right number under another name or protocol, or without a number, is nothing."""
    service = rig.service(ports=[Port()])
    service.put_slice("name", [rig.a1], ports=[Port("other")])
    service.put_slice("protocol", [rig.a1], ports=[Port("web", protocol="UDP")])
    service.put_slice("number", [rig.a1], ports=[Port(target=None)])
    rig.expect(rig.caller, service.cluster_ip(), 80, REFUSED)
    rig.stays(rig.caller, service.cluster_ip(), 80, REFUSED)


def test_an_absent_condition_has_its_default(rig: Rig) -> None:
    """P6: ready unless said otherwise."""
    service = rig.service([Endpoint(rig.a1, ready=None)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))


def test_draining_endpoints_serve_when_none_is_ready(rig: Rig) -> None:
    """P7, P8, policy Cluster."""
    service = rig.service([unready(rig.a2), draining(rig.b1)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
    service.set_endpoints([rig.a1, draining(rig.b1)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    service.set_endpoints([unready(rig.a1), Endpoint(rig.b1, ready=False, serving=False, terminating=True)])
    rig.expect(rig.caller, service.cluster_ip(), 80, REFUSED)


def test_the_fallback_to_draining_endpoints_is_decided_for_local_ones_alone(rig: Rig) -> None:
    """P7, policy Local: a ready endpoint elsewhere does not keep a draining one here from serving."""
    service = rig.service([draining(rig.a1), rig.b1], type="NodePort", internalTrafficPolicy="Local", **LOCAL)
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), ("a1", "outside"))
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    service.set_endpoints([draining(rig.a1), rig.a2, rig.b1])
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), ("a2", "outside"))


def test_a_service_changes_its_type(rig: Rig) -> None:
    """P9: ExternalName and back, without a restart."""
    service = rig.service([rig.a1], families=(4,), type="NodePort")
    node_port, address = service.node_port(), service.cluster_ip()
    rig.expect(rig.outside, rig.node_a.address(4), node_port, *seen(rig, rig.outside, "NodePort", "Cluster")[:1])
    become_external = {"type": "ExternalName", "externalName": "example.com", "clusterIP": "", "clusterIPs": None}
    service.patch(**become_external, ipFamilies=None, ipFamilyPolicy=None)
    rig.expect(rig.outside, rig.node_a.address(4), node_port, REFUSED)
    rig.expect(rig.caller, address, 80, DROPPED)
    service.patch(type="ClusterIP", externalName=None, clusterIP=address)
    rig.expect(rig.caller, address, 80, ("a1", "caller"))


# --- Section B: ClusterIP


def test_flows_are_spread_evenly(rig: Rig) -> None:
    """P12."""
    service = rig.service([rig.a1, rig.a2, rig.b1])
    rig.expect(rig.caller, service.cluster_ip(), 80, *((name, "caller") for name in ("a1", "a2", "b1")))
    counts = rig.question(rig.caller).many(1000, service.cluster_ip(), 80)
    assert len(counts) == 3 and not chi_square_exceeds(list(counts.values()), RARE), counts


def test_a_flow_stays_with_its_endpoint(rig: Rig) -> None:
    """P13: the choice is made once a connection."""
    service = rig.service([rig.a1, rig.b1])
    for family, protocol in families_and_protocols():
        address = service.cluster_ip(family)
        rig.expect(rig.caller, address, 80, ("a1", "caller"), ("b1", "caller"), protocol=protocol)
        question = rig.question(rig.caller, protocol)
        with question.open(address, 80) as flow:
            assert len({question.on(flow) for _ in range(30)}) == 1


@pytest.mark.parametrize("kind", ["ClusterIP", *EXTERNALS])
def test_a_pod_reaches_itself(rig: Rig, kind: str) -> None:
    """P14: by every frontend; it sees a node's address, not its own."""
    if kind == "ClusterIP":
        service = rig.service([rig.a1])
        addresses: Addresses = {family: service.cluster_ip(family) for family in FAMILIES}
        port = 80
    else:
        service, addresses, port = external(rig, kind)
        service.set_endpoints([rig.a1])
    for family, protocol in families_and_protocols():
        number = port or service.node_port("web" if protocol == "TCP" else "web-udp")
        rig.expect(rig.a1, addresses[family], number, ("a1", "node-a"), protocol=protocol)


def test_only_the_pod_that_meets_itself_is_masked(rig: Rig) -> None:
    """P14: the same pod reaches another endpoint under its own address."""
    service = rig.service([rig.a1, rig.a2])
    rig.expect(rig.a1, service.cluster_ip(), 80, ("a1", "node-a"), ("a2", "a1"))


@pytest.mark.parametrize("source", ["caller", "node_a", "outside"])
def test_an_unknown_port_of_a_cluster_ip_is_refused(rig: Rig, source: str) -> None:
    """P15, P33, and P11: a port of one protocol is none of the other."""
    service = rig.service([rig.a1], ports=[Port()])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    host = getattr(rig, source)
    for family, protocol in families_and_protocols():
        rig.expect(host, service.cluster_ip(family), 81, REFUSED, protocol=protocol)
        if protocol == "UDP":
            rig.expect(host, service.cluster_ip(family), 80, REFUSED, protocol=protocol)


@pytest.mark.parametrize("source", ["caller", "node_a", "outside"])
def test_an_address_of_the_service_range_that_nobody_holds_is_silent(rig: Rig, source: str) -> None:
    """P16."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    for family in FAMILIES:
        address = service.cluster_ip(family)
        rig.expect(rig.caller, address, 80, ("a1", "caller"))
    held = [service.cluster_ip(family) for family in FAMILIES]
    service.delete()
    for address in held:
        rig.expect(getattr(rig, source), address, 80, DROPPED)


# --- Section D: external frontends


def test_node_ports_answer_on_the_primary_address_only(rig: Rig) -> None:
    """P24, P26, P28."""
    service = rig.service([rig.a1], type="NodePort")
    want = seen(rig, rig.outside, "NodePort", "Cluster")[:1]
    second: Addresses = {4: "172.30.0.250", 6: "fd00:30::250"}
    for address in second.values():
        rig.node_a.add_address(address)
    try:
        for family in FAMILIES:
            rig.expect(rig.outside, rig.node_a.address(family), service.node_port(), *want)
            rig.expect(rig.outside, second[family], service.node_port(), REFUSED)
    finally:
        for address in second.values():
            rig.node_a.remove_address(address)
    rig.expect(rig.node_a, "127.0.0.1", service.node_port(), REFUSED)
    rig.expect(rig.node_a, "::1", service.node_port(), REFUSED)
    # From a pod of the other node, and from one of this node by the other node's address.
    rig.expect(rig.b1, rig.node_a.address(4), service.node_port(), ("a1", "b1" if rig.improved(KEPT) else "node-a"))
    rig.expect(rig.caller, rig.node_b.address(4), service.node_port(), ("a1", "node-b"))


def test_the_rules_win_over_a_socket_on_the_same_port(rig: Rig) -> None:
    """P27."""
    service = rig.service([rig.b1], type="NodePort")
    server = Server(rig.node_a, rig.directory, name="socket", tcp=(service.node_port(),), udp=())
    try:
        rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), ("b1", "node-a"))
    finally:
        server.kill()


@pytest.mark.parametrize("mode", [None, "VIP"])
def test_an_address_of_a_load_balancer_is_served_here(rig: Rig, mode: str | None) -> None:
    """P30: ipMode nil or VIP."""
    service = rig.service([rig.b1], type="LoadBalancer")
    for family in FAMILIES:
        vip = rig.vip(family)
        service.set_ingress({"ip": vip} | ({"ipMode": mode} if mode else {}))
        for source, client in ((rig.caller, "node-a"), (rig.node_a, "node-a"), (rig.outside, "node-a")):
            rig.expect(source, vip, 80, ("b1", client))


def test_packets_for_a_load_balancer_that_is_a_proxy_go_there(rig: Rig) -> None:
    """P30: ipMode Proxy, and a hostname."""
    service = rig.service([rig.a1], type="LoadBalancer")
    vip = rig.vip(4)
    rig.fabric.switch.add_address(vip, "br0")
    balancer = Server(rig.fabric.switch, rig.directory, name="balancer", tcp=(80,), udp=())
    try:
        service.set_ingress({"ip": vip})
        rig.expect(rig.caller, vip, 80, ("a1", "caller" if rig.improved(KEPT) else "node-a"))
        service.set_ingress({"ip": vip, "ipMode": "Proxy"}, {"hostname": "balancer.example.com"})
        rig.expect(rig.caller, vip, 80, ("balancer", "caller"))
        rig.expect(rig.node_a, vip, 80, ("balancer", "node-a"))
    finally:
        balancer.kill()
        rig.fabric.switch.remove_address(vip, "br0")


@pytest.mark.parametrize("kind", EXTERNALS)
def test_no_local_endpoint_is_silence_and_none_at_all_a_refusal(rig: Rig, kind: str) -> None:
    """P31, P32, P33, P34: inside sources are not held to policy Local."""
    service, addresses, port = external(rig, kind, **LOCAL)
    service.set_endpoints([rig.b1])
    for family, protocol in families_and_protocols():
        number = port or service.node_port("web" if protocol == "TCP" else "web-udp")
        rig.expect(rig.outside, addresses[family], number, DROPPED, protocol=protocol)
        rig.expect(rig.caller, addresses[family], number, ("b1", "caller"), protocol=protocol)
        rig.expect(rig.node_a, addresses[family], number, ("b1", "node-a"), protocol=protocol)
    service.set_endpoints([unready(rig.b1)])
    for family, protocol in families_and_protocols():
        number = port or service.node_port("web" if protocol == "TCP" else "web-udp")
        for source in (rig.outside, rig.caller, rig.node_a):
            rig.expect(source, addresses[family], number, REFUSED, protocol=protocol)
    service.set_endpoints([rig.a1])
    number = port or service.node_port()
    rig.expect(rig.outside, addresses[4], number, ("a1", "outside"))


@pytest.mark.parametrize("source", ["caller", "node_a", "outside"])
def test_the_same_split_for_the_internal_policy(rig: Rig, source: str) -> None:
    """P31, P32 for a ClusterIP."""
    service = rig.service([rig.b1], internalTrafficPolicy="Local")
    host = getattr(rig, source)
    for family, protocol in families_and_protocols():
        rig.expect(host, service.cluster_ip(family), 80, DROPPED, protocol=protocol)
    service.set_endpoints([])
    for family, protocol in families_and_protocols():
        rig.expect(host, service.cluster_ip(family), 80, REFUSED, protocol=protocol)


def test_source_ranges_guard_the_balancers_addresses_and_nothing_else(rig: Rig) -> None:
    """P35."""
    allowed, refused = rig.outside.extra[0], rig.outside.extra[1]
    external_ip: Addresses = {family: rig.vip(family) for family in FAMILIES}
    vips: Addresses = {family: rig.vip(family) for family in FAMILIES}
    ranges = [f" {allowed[4]}/32 ", f"{allowed[6]}/128"]
    service = rig.service(
        [rig.a1], type="LoadBalancer", externalIPs=list(external_ip.values()), loadBalancerSourceRanges=ranges, **LOCAL
    )
    service.set_ingress(*({"ip": vip} for vip in vips.values()))
    for family, protocol in families_and_protocols():
        inside = rig.question(rig.outside, protocol, allowed[family])
        without = rig.question(rig.outside, protocol, refused[family])
        rig.expect(inside, vips[family], 80, ("a1", "outside"))
        rig.expect(without, vips[family], 80, DROPPED)
        rig.expect(rig.caller, vips[family], 80, DROPPED, protocol=protocol)  # pods are not exempt
        rig.expect(without, external_ip[family], 80, ("a1", "outside"))
        node_port = service.node_port("web" if protocol == "TCP" else "web-udp")
        rig.expect(without, rig.node_a.address(family), node_port, ("a1", "outside"))
        rig.expect(rig.caller, service.cluster_ip(family), 80, ("a1", "caller"), protocol=protocol)


def test_a_range_of_everything_guards_nothing(rig: Rig) -> None:
    """P35: a /0 in the family; ranges of the other family alone do not close this one."""
    vips: Addresses = {family: rig.vip(family) for family in FAMILIES}
    service = rig.service(
        [rig.a1], type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24", "0.0.0.0/0"], **LOCAL
    )
    service.set_ingress(*({"ip": vip} for vip in vips.values()))
    for family in FAMILIES:
        rig.expect(rig.outside, vips[family], 80, ("a1", "outside"))


def test_a_node_that_holds_the_balancers_address_reaches_it(rig: Rig) -> None:
    """P36: a range contains the node's address, so packets from the balancer's address itself pass as well."""
    vip = rig.vip(4)
    service = rig.service(
        [rig.a1], type="LoadBalancer", loadBalancerSourceRanges=[f"{rig.node_a.address(4)}/32"], **LOCAL
    )
    service.set_ingress({"ip": vip})
    rig.node_a.add_address(vip, "lo")
    try:
        # To an address of its own a host speaks from that address; weir need not replace it on the way to a pod here.
        rig.expect(rig.node_a, vip, 80, ("a1", vip))
    finally:
        rig.node_a.remove_address(vip, "lo")


def test_changes_to_a_live_service(rig: Rig) -> None:
    """P37: NodePort, external address, status; each old frontend ends as the new one begins."""
    one, two = rig.vip(4), rig.vip(4)
    service = rig.service([rig.a1], type="LoadBalancer", externalIPs=[one], ports=[Port()], **LOCAL)
    reply = ("a1", "outside")
    old = service.node_port()
    rig.expect(rig.outside, rig.node_a.address(4), old, reply)
    rig.expect(rig.outside, one, 80, reply)
    rig.kube.patch(service.path, [{"op": "remove", "path": "/spec/ports/0/nodePort"}], "json")
    new = changed_node_port(service, old)
    rig.expect(rig.outside, rig.node_a.address(4), new, reply)
    rig.expect(rig.outside, rig.node_a.address(4), old, REFUSED)
    service.patch(externalIPs=[two])
    rig.expect(rig.outside, two, 80, reply)
    rig.expect(rig.outside, one, 80, DROPPED)
    service.set_ingress({"ip": one})
    rig.expect(rig.outside, one, 80, reply)
    service.set_ingress()
    rig.expect(rig.outside, one, 80, DROPPED)
    port = {"name": "renamed", "port": 8, "targetPort": 8080, "protocol": "UDP"}
    service.patch(ports=[port])
    service.put_slice("renamed", [rig.a1], ports=[Port("renamed", 8, 8080, "UDP")])
    rig.expect(
        rig.outside, service.cluster_ip(), 8, *seen(rig, rig.outside, "ClusterIP", "Cluster")[:1], protocol="UDP"
    )
    rig.expect(rig.outside, service.cluster_ip(), 80, REFUSED)


def changed_node_port(service: Service, old: int) -> int:
    """The NodePort, made another than `old` if the API server allocated the same one again."""
    new = service.node_port()
    if new == old:
        taken: Object = service.object["spec"]["ports"][0]
        new = old + 1 if old < 32767 else old - 1
        service.patch(ports=[{**taken, "nodePort": new}])
    return new


# --- Section E: session affinity


def pinned(seconds: int) -> dict[str, object]:
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}


def servers(rig: Rig, source: Host, address: str, port: int, count: int = 20) -> set[str]:
    return {reply.server for reply in rig.question(source).many(count, address, port)}


def reach(rig: Rig, source: Host, address: str, port: int, count: int) -> None:
    """Waits until so many pods answer, and nothing else does."""

    def check() -> bool:
        found = servers(rig, source, address, port)
        return len(found) == count and found <= {"a1", "a2", "b1"}

    soon(check)


def test_affinity_pins_a_client_whatever_the_frontend(rig: Rig) -> None:
    """P38, P40: turned on and off on a live Service."""
    service = rig.service([rig.a1, rig.a2, rig.b1], type="NodePort", **pinned(600))
    for family in FAMILIES:
        address = service.cluster_ip(family)
        reach(rig, rig.outside, address, 80, 1)
        by_cluster_ip = servers(rig, rig.outside, address, 80)
        assert servers(rig, rig.outside, rig.node_a.address(family), service.node_port()) == by_cluster_ip
    clients = [rig.question(rig.outside, address=extra[4]) for extra in rig.outside.extra]
    chosen = [{reply.server for reply in client.many(5, service.cluster_ip(), 80)} for client in clients]
    assert all(len(each) == 1 for each in chosen)
    service.patch(sessionAffinity="None", sessionAffinityConfig=None)
    reach(rig, rig.outside, service.cluster_ip(), 80, 3)
    service.patch(**pinned(600))
    reach(rig, rig.outside, service.cluster_ip(), 80, 1)


def test_affinity_ends_after_idle_seconds_and_each_connection_begins_them_again(rig: Rig) -> None:
    """P39."""
    service = rig.service([rig.a1, rig.a2, rig.b1], **pinned(1))
    address = service.cluster_ip()
    reach(rig, rig.caller, address, 80, 1)
    first = servers(rig, rig.caller, address, 80, 1)
    for _ in range(4):  # longer than the timeout, never idle for so long
        time.sleep(0.5)
        assert servers(rig, rig.caller, address, 80, 1) == first
    later = set()
    for _ in range(7):  # one in 2,187 that chance picks the same each time
        time.sleep(1.5)
        later |= servers(rig, rig.caller, address, 80, 1)
        if later - first:
            return
    raise AssertionError("the client is pinned for ever")


def test_affinity_is_left_when_the_pinned_endpoint_goes(rig: Rig) -> None:
    """P41."""
    service = rig.service([rig.a1, rig.b1], **pinned(600))
    address = service.cluster_ip()
    reach(rig, rig.caller, address, 80, 1)
    [first] = servers(rig, rig.caller, address, 80)
    rest = rig.b1 if first == "a1" else rig.a1
    service.set_endpoints([rest])
    rig.expect(rig.caller, address, 80, (rest.name, "caller"))


def test_affinity_picks_among_what_the_policy_allows(rig: Rig) -> None:
    """P41: by way of the NodePort, local endpoints only."""
    service = rig.service([rig.a1, rig.b1], type="NodePort", **LOCAL, **pinned(600))
    for extra in rig.outside.extra:
        client = rig.question(rig.outside, address=extra[4])
        rig.expect(client, rig.node_a.address(4), service.node_port(), ("a1", "outside"), count=3)


# --- Section F: topology


def test_endpoints_hinted_for_the_zone_are_preferred(rig: Rig) -> None:
    """P42, P43."""
    a, b = ["us-east-1a"], ["us-east-1b"]
    service = rig.service([Endpoint(rig.a1, zones=a), Endpoint(rig.b1, zones=b)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    service.set_endpoints([Endpoint(rig.a1, zones=a), rig.b1])  # not every one has a hint
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    service.set_endpoints([Endpoint(rig.a1, zones=b), Endpoint(rig.b1, zones=b)])  # none is for us
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    service.set_endpoints([Endpoint(rig.a1, zones=b), Endpoint(rig.b1, zones=[*a, *b])])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))


def test_hints_for_nodes_come_before_hints_for_zones(rig: Rig) -> None:
    """P43."""
    a = ["us-east-1a"]
    service = rig.service(
        [Endpoint(rig.a1, zones=a, nodes=["node-b"]), Endpoint(rig.a2, zones=a, nodes=["node-a"]), rig.b1]
    )
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("a2", "caller"), ("b1", "caller"))
    service.set_endpoints(
        [Endpoint(rig.a1, zones=a, nodes=["node-b"]), Endpoint(rig.a2, zones=["x"], nodes=["node-a"])]
    )
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a2", "caller"))


def test_topology_is_for_policy_cluster_and_ready_endpoints(rig: Rig) -> None:
    """P44: policy Local and the draining fallback ignore it; unready endpoints need no hint."""
    a, b = ["us-east-1a"], ["us-east-1b"]
    service = rig.service([Endpoint(rig.a1, zones=b), Endpoint(rig.b1, zones=a)], type="NodePort", **LOCAL)
    rig.expect(rig.outside, rig.node_a.address(4), service.node_port(), ("a1", "outside"))
    rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
    service.set_endpoints([Endpoint(rig.a1, zones=a), unready(rig.a2), Endpoint(rig.b1, zones=b)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    fallback = Endpoint(rig.a1, ready=False, serving=True, terminating=True, zones=b)
    service.set_endpoints([fallback, draining(rig.b1)])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))


def test_a_node_moves_to_another_zone(rig: Rig) -> None:
    """P45."""
    service = rig.service([Endpoint(rig.a1, zones=["us-east-1a"]), Endpoint(rig.b1, zones=["us-east-1b"])])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    label = {"metadata": {"labels": {"topology.kubernetes.io/zone": "us-east-1b"}}}
    rig.kube.patch("/api/v1/nodes/node-a", label)
    try:
        rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
    finally:
        label["metadata"]["labels"]["topology.kubernetes.io/zone"] = "us-east-1a"
        rig.kube.patch("/api/v1/nodes/node-a", label)
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
