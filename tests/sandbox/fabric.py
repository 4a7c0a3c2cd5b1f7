"""A network of namespaces: worker nodes with pods, and clients outside, on one switch.

    outside            node-a ── eni-a1 ── pod a1        addresses      IPv4            IPv6
       │                  │  └── eni-a2 ── pod a2        fabric         172.30.0.0/24   fd00:30::/64
    ═══╧══════════════════╧═══════ fabric ═══ node-b …   pods of node n 10.244.n.0/24   fd00:244:n::/64

Nodes look like those of the VPC CNI: each pod has a single address, its node's end of the cable is called `eni*`, and
its neighbour for everything else is a link-local address that the node answers for. Hosts on the fabric know the way to
each pod, as a VPC does, so nothing between them translates addresses; only a node's service proxy does.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from types import TracebackType
from typing import Literal, Self

from sandbox.netns import Namespace, connect

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)
Addresses = dict[Family, str]

_SWITCH: Addresses = {4: "172.30.0.1", 6: "fd00:30::1"}
_PREFIX: dict[Family, int] = {4: 24, 6: 64}
_SINGLE: dict[Family, int] = {4: 32, 6: 128}
#: The pods' only neighbour, as in the VPC CNI.
_GATEWAY: Addresses = {4: "169.254.1.1", 6: "fe80::1"}

#: For every namespace. Answers of refusal are never rationed: a test may cause hundreds per second. Addresses are
#: unique by construction, so nobody waits to find out. And nobody is redirected: before an address is served, a node
#: would tell the client to go past it, and the client would remember that.
_SETTINGS = {
    "ipv4__ip_forward": 0,
    "ipv4__conf__all__accept_redirects": 0,
    "ipv4__conf__default__accept_redirects": 0,
    "ipv4__conf__all__send_redirects": 0,
    "ipv4__conf__default__send_redirects": 0,
    "ipv6__conf__all__accept_redirects": 0,
    "ipv6__conf__default__accept_redirects": 0,
    "ipv4__icmp_ratelimit": 0,
    "ipv6__icmp__ratelimit": 0,
    "ipv6__conf__all__accept_dad": 0,
    "ipv6__conf__default__accept_dad": 0,
    "ipv6__conf__all__disable_ipv6": 0,
    "ipv6__conf__default__accept_ra": 0,
    "ipv4__conf__all__rp_filter": 0,
    "ipv4__conf__default__rp_filter": 0,
}
_FORWARDING = {"ipv4__ip_forward": 1, "ipv6__conf__all__forwarding": 1, "ipv6__conf__default__forwarding": 1}


def family_of(address: str) -> Family:
    return 6 if ":" in address else 4


class Host:
    """A namespace with an address in each family. `extra` holds addresses it has besides."""

    def __init__(self, namespace: Namespace, addresses: Addresses) -> None:
        self.namespace = namespace
        self.name = namespace.title
        self.addresses = addresses
        self.extra: list[Addresses] = []

    def address(self, family: Family) -> str:
        return self.addresses[family]

    def add_address(self, address: str, interface: str = "eth0") -> None:
        """One more address, which `Fabric.owner` does not know. Packets leave with it only if asked to."""
        family = family_of(address)
        only_on_request = " nodad preferred_lft 0" if family == 6 else ""
        self.namespace.ip(f"address add {address}/{_SINGLE[family]} dev {interface}{only_on_request}")

    def remove_address(self, address: str, interface: str = "eth0") -> None:
        family = family_of(address)
        self.namespace.ip(f"address delete {address}/{_SINGLE[family]} dev {interface}")

    def route(self, address: str, via: Host) -> None:
        """Sends packets for one address, or one range, to another host of the fabric."""
        family = family_of(address)
        self.namespace.ip(f"route replace {address} via {via.address(family)}")

    def unroute(self, address: str) -> None:
        self.namespace.ip(f"route delete {address}")

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Pod(Host):
    """A namespace behind a node."""

    def __init__(self, namespace: Namespace, addresses: Addresses, node: Node) -> None:
        super().__init__(namespace, addresses)
        self.node = node

    @property
    def interface(self) -> str:
        """The node's end of its cable: `eni` and 11 characters of a hash, as the VPC CNI names it."""
        return f"eni{hashlib.sha256(self.name.encode()).hexdigest()[:11]}"


class Node(Host):
    """A namespace that forwards for its pods. `number` is the part of its pods' addresses that tells its own."""

    def __init__(self, namespace: Namespace, addresses: Addresses, number: int, zone: str) -> None:
        super().__init__(namespace, addresses)
        self.number = number
        self.zone = zone
        self.pods: dict[str, Pod] = {}
        self._last = 0

    @property
    def pod_ranges(self) -> Addresses:
        return {4: f"10.244.{self.number}.0/24", 6: f"fd00:244:{self.number}::/64"}

    def next_pod_addresses(self) -> Addresses:
        """Never one that a pod had before: conntrack may remember it."""
        self._last += 1
        return {4: f"10.244.{self.number}.{self._last}", 6: f"fd00:244:{self.number}::{self._last:x}"}


class Fabric:
    """Context manager: namespaces are made inside it, and none is left after it."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self._owners: dict[str, str] = {}
        self._last = 9
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._switch = self._namespace("fabric")
            self._switch.ip(
                "link add br0 type bridge mcast_snooping 0",
                "link set br0 up",
                *(self._add_to("br0", family, _SWITCH[family], _PREFIX[family]) for family in FAMILIES),
                # Silence, not "no route": IPv6 says that even where nothing is forwarded.
                "route add blackhole default",
                "route add blackhole ::/0",
            )
        except BaseException:
            self._open.close()
            raise
        self.switch = Host(self._switch, _SWITCH)
        """What routes lead to by default. It forwards nothing: whoever is reached here was not translated."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add_host(self, name: str, addresses: int = 1) -> Host:
        """A host outside the cluster. With more than one address, a test chooses which a connection comes from."""
        host = Host(self._namespace(name), self._next_addresses())
        self._plug_in(host)
        for _ in range(addresses - 1):
            more = self._next_addresses()
            for address in more.values():
                host.add_address(address)
            host.extra.append(more)
            self._owners |= dict.fromkeys(more.values(), name)
        return host

    def add_client_behind(self, router: Host, name: str, addresses: Addresses, gateway: Addresses) -> Host:
        """A host that reaches the fabric through another, which must forward; nodes need a route to it."""
        host = Host(self._namespace(name), addresses)
        connect(router.namespace, f"to-{name}"[:15], host.namespace, "eth0")
        router.namespace.ip(
            *(self._add_to(f"to-{name}"[:15], family, gateway[family], _PREFIX[family]) for family in FAMILIES)
        )
        host.namespace.ip(
            *(self._add_to("eth0", family, host.address(family), _PREFIX[family]) for family in FAMILIES),
            *(f"route add default via {gateway[family]}" for family in FAMILIES),
        )
        self._owners |= dict.fromkeys(addresses.values(), name)
        return host

    def spare_address(self, family: Family) -> str:
        """An address of the fabric that nobody has had."""
        return self._next_addresses()[family]

    def add_node(self, name: str, zone: str = "us-east-1a", addresses: Addresses | None = None) -> Node:
        """A worker node; `addresses` if they are decided elsewhere, from 172.30.0.0/24 and fd00:30::/64."""
        namespace = self._namespace(name)
        namespace.sysctl(**_FORWARDING)
        node = Node(namespace, addresses or self._next_addresses(), len(self.nodes) + 1, zone)
        self._plug_in(node)
        self.nodes[name] = node
        for host in [self.switch, *self.hosts.values()]:
            self._show_way(host, node)
        return node

    def add_pod(self, node: Node, name: str) -> Pod:
        """A pod's namespace: nothing runs in it yet."""
        pod = Pod(self._namespace(name), node.next_pod_addresses(), node)
        connect(node.namespace, pod.interface, pod.namespace, "eth0")
        mac = node.namespace.mac(pod.interface)
        node.namespace.ip(
            f"address add {_GATEWAY[6]}/64 dev {pod.interface} nodad",
            *(f"route add {pod.address(f)}/{_SINGLE[f]} dev {pod.interface}" for f in FAMILIES),
        )
        pod.namespace.ip(
            *(self._add_to("eth0", family, pod.address(family), _SINGLE[family]) for family in FAMILIES),
            # A permanent neighbour, as the VPC CNI writes it, so nobody has to answer for an address nobody has.
            f"route add {_GATEWAY[4]} dev eth0",
            *(f"neighbour add {_GATEWAY[family]} lladdr {mac} dev eth0" for family in FAMILIES),
            *(f"route add default via {_GATEWAY[family]} dev eth0" for family in FAMILIES),
        )
        node.pods[name] = self.pods[name] = pod
        self._owners |= dict.fromkeys(pod.addresses.values(), name)
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """As if its machine were cut off: what ran in it is killed."""
        del pod.node.pods[pod.name], self.pods[pod.name]
        pod.namespace.close()

    def owner(self, address: str) -> str:
        """The name of the host, node or pod with this address, or the address itself."""
        return self._owners.get(address, address)

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self._open.callback(namespace.close)
        namespace.sysctl(**_SETTINGS)
        return namespace

    def _plug_in(self, host: Host) -> None:
        port = f"port{len(self.hosts)}"
        connect(self._switch, port, host.namespace, "eth0")
        self._switch.ip(f"link set {port} master br0")
        host.namespace.ip(
            *(self._add_to("eth0", family, host.address(family), _PREFIX[family]) for family in FAMILIES),
            *(f"route add default via {_SWITCH[family]}" for family in FAMILIES),
        )
        for node in self.nodes.values():
            self._show_way(host, node)
        self.hosts[host.name] = host
        self._owners |= dict.fromkeys(host.addresses.values(), host.name)

    def _show_way(self, host: Host, node: Node) -> None:
        if host is not node:
            for range_ in node.pod_ranges.values():
                host.route(range_, via=node)

    def _next_addresses(self) -> Addresses:
        self._last += 1
        return {4: f"172.30.0.{self._last}", 6: f"fd00:30::{self._last:x}"}

    @staticmethod
    def _add_to(interface: str, family: Family, address: str, prefix: int) -> str:
        nodad = " nodad" if family == 6 else ""
        return f"address add {address}/{prefix} dev {interface}{nodad}"
