"""The rig for tests of a service proxy: two nodes, pods on both, a client outside, and expectations about replies.

    outside      node-a ── a1, a2 (servers), caller (asks only)
       │            │
    ═══╧════════════╧══ fabric ══╤═══
                              node-b ── b1 (server)

Each server listens on TCP and UDP 8080 and 8081. Who is meant by "outside" comes to Services through node-a.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandbox.cluster import ControlPlane
from sandbox.fabric import Family, Host, Node, Pod
from sandbox.improvements import improved
from sandbox.proxies import ServiceProxy
from sandbox.services import Endpoint, Service, Services
from sandbox.wire import DROPPED, Protocol, Question, Reply
from sandbox.workers import Workers

#: A change must show within this; a sync takes a fraction of it.
SOON = 8.0
#: With three endpoints, one of so many flows misses a given one with a probability of 6e-5; a miss costs a retry.
ENOUGH = 24


class Rig:
    """Context manager. `settings` go to the proxies: see `ServiceProxy`. `outside` has as many addresses as `clients`."""

    def __init__(
        self, control_plane: ControlPlane, directory: Path, kind: str, namespace: str, clients: int = 8, **settings: Any
    ) -> None:
        self.kind = kind
        self._clients = clients
        self.directory = directory
        self.kube = control_plane.kube
        self.workers = Workers(control_plane, directory, kind, **settings)
        self.fabric = self.workers.fabric
        self._namespace = namespace
        self._vips = itertools.count(1)
        self._routed: list[str] = []

    def __enter__(self) -> Self:
        self.workers.__enter__()
        try:
            self.outside: Host = self.fabric.add_host("outside", addresses=self._clients)
            self.node_a: Node = self.workers.add_node("node-a", "us-east-1a")
            self.node_b: Node = self.workers.add_node("node-b", "us-east-1b")
            self.a1, self.a2, self.b1 = (
                self.workers.add_pod(node, name)
                for node, name in ((self.node_a, "a1"), (self.node_a, "a2"), (self.node_b, "b1"))
            )
            self.caller: Pod = self.fabric.add_pod(self.node_a, "caller")
            self.services = Services(self.kube, self._namespace)
            self.workers.wait_ready()
        except BaseException:
            self.workers.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.services.close()
        self.workers.__exit__(kind, error, trace)

    @property
    def proxy(self) -> ServiceProxy:
        """The proxy of node-a."""
        return self.workers.proxies["node-a"]

    def improved(self, name: str) -> bool:
        """Whether the running proxy has this improvement: see `sandbox.improvements`."""
        return improved(self.kind, name)

    # --- what there is to ask

    def service(self, endpoints: Iterable[Pod | Endpoint] = (), **fields: Any) -> Service:
        """A Service for this test: see `Services.create`. Its ClusterIPs are routed from outside to node-a."""
        service = self.services.create(endpoints, **fields)
        for address in service.object["spec"].get("clusterIPs") or []:
            if address != "None":
                self.route(address)
        return service

    def vip(self, family: Family) -> str:
        """An address nobody has had yet, routed from outside to node-a."""
        number = next(self._vips)
        address = f"198.51.100.{number}" if family == 4 else f"fd00:51::{number:x}"
        self.route(address)
        return address

    def route(self, address: str, via: Node | None = None) -> None:
        """Sends the outside client's packets for an address to a node, node-a unless said, until the test ends."""
        self.outside.route(address, via or self.node_a)
        self._routed.append(address)

    def clear(self) -> None:
        """Ends the Services and routes of a test."""
        self.services.clear()
        for address in set(self._routed):
            self.outside.unroute(address)
        self._routed.clear()

    # --- asking

    def question(self, source: Host, protocol: Protocol = "TCP", address: str | None = None) -> Question:
        return Question(self.fabric, source, protocol, address)

    def expect(
        self,
        source: Host | Question,
        address: str,
        port: int,
        *want: tuple[str, str],
        protocol: Protocol = "TCP",
        within: float = SOON,
        count: int = ENOUGH,
    ) -> None:
        """Soon, `count` new flows bring just the replies in `want`, and each of them: (server, client it saw)."""
        question = source if isinstance(source, Question) else self.question(source, protocol)
        wanted = {Reply(*each) for each in want}
        count, patience = (2, 0.3) if DROPPED in wanted else (count, 1.0)
        deadline = time.monotonic() + within
        while True:
            seen: Counter[Reply] = Counter()
            for _ in range(count):
                reply = question.ask(address, port, patience)
                seen[reply] += 1
                if reply not in wanted:
                    break
            if seen.keys() == wanted:
                return
            if time.monotonic() > deadline:
                what = f"{question.protocol} from {question.source.name} to {address} port {port}"
                raise AssertionError(f"{what}: wanted {_words(wanted)}, got {_words(seen)}")
            time.sleep(0.03)

    def stays(self, source: Host, address: str, port: int, *want: tuple[str, str], seconds: float = 0.5) -> None:
        """For a while, nothing but the replies in `want` comes."""
        end = time.monotonic() + seconds
        question, wanted = self.question(source), {Reply(*each) for each in want}
        while time.monotonic() < end:
            reply = question.ask(address, port)
            assert reply in wanted, f"from {source.name} to {address} port {port}: {reply}"
            time.sleep(0.005)  # the kernel refuses no more than 1,000 times a second in all


def soon(check: Callable[[], object], within: float = SOON) -> None:
    """Calls an assertion until it holds; after `within` seconds its failure is the test's."""
    deadline = time.monotonic() + within
    while True:
        try:
            assert check() is not False
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.03)


def _words(replies: Iterable[Reply]) -> str:
    return (
        ", ".join(sorted(f"{server} (saw {client})" if client else server for server, client in replies)) or "nothing"
    )


def families_and_protocols() -> list[tuple[Family, Protocol]]:
    return list(itertools.product((4, 6), ("TCP", "UDP")))
