#!/usr/bin/env python3
"""What forwarding costs: weir node beside kube-proxy (nftables and iptables) and the direct way, in one run.

    make bench-data                                 all of it
    benches/data_plane.py --rounds 1 --seconds 10   a first look

One client host, two nodes, pods on both, all in network namespaces of this machine. Through a NodePort of node-a to a pod
on node-b (remote) and to one on node-a (local), directly to the same pods, and to the remote pod by way of node-a with no
address translated ("routed": what the detour alone costs, and so the most that any proxy on node-a can reach):

    new       new connections a second of one busy client, 32 at a time, closed by the server
    equal     64 client addresses that use the same source port at the same moment, 150 times: how many connections
              failed, or took more than 200 ms
    kept      requests a second on 32 connections that stay open
    restart   200 new connections a second while the proxy is killed and started again: how many failed

Rounds of all ways take turns, since the machine's speed changes over time; medians are shown.

Runs as root and needs wrk. The release binary is measured if `cargo build --release` has made one, else the debug binary.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sandbox.cluster import ControlPlane  # noqa: E402
from sandbox.fabric import Host  # noqa: E402
from sandbox.rig import Rig  # noqa: E402
from sandbox.wire import Load  # noqa: E402

#: Proxy by its name in the tables: kind and settings.
PROXIES = {
    "weir": ("weir", {}),
    "kube-proxy nftables": ("kube-proxy", {"mode": "nftables"}),
    "kube-proxy iptables": ("kube-proxy", {"mode": "iptables"}),
}
DIRECT = "direct"
ROUTED = "routed"
CLIENTS = 64
ROUNDS = 150


def release() -> str:
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return next((str(path) for kind in ("release", "debug") if (path := target / kind / "weir").exists()), "")


def wrk(source: Host, address: str, port: int, seconds: int, *flags: str) -> float:
    """Requests a second."""
    command = [*source.namespace.prefix, "wrk", "-t1", "-c32", f"-d{seconds}s", *flags, f"http://{address}:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(re.findall(r"Requests/sec:\s+([0-9.]+)", done.stdout)[0])


def equal_ports(rig: Rig, address: str, port: int, base: int) -> dict[str, float]:
    sources = ",".join(each[4] for each in rig.outside.extra[:CLIENTS])
    load = Load(
        rig.outside, address, port, rig.directory, clients=CLIENTS, sources=sources, source_port=base,
        rounds=ROUNDS, timeout="5s", seconds="60s",
    )  # fmt: skip
    report = load.wait(90)
    return {"of": report.sent, "failed": report.failed, "over 200 ms": report.slow, "p99 ms": report.p99_ms}


class Ways:
    """The ways to a pod: directly, and through the NodePort of each proxy, each with a rig of its own."""

    def __init__(self, rigs: dict[str, Rig]) -> None:
        self.rigs = rigs
        self.ends: dict[tuple[str, str], tuple[Rig, str, int]] = {}
        for name, rig in rigs.items():
            for place, pod in (("remote", rig.b1), ("local", rig.a1)):
                service = rig.service([pod], type="NodePort")
                node = rig.node_a.address(4)
                rig.expect(rig.outside, node, service.node_port(), self._reply(rig, name, place))
                self.ends[name, place] = (rig, node, service.node_port())
                if name == "weir":
                    self.ends[DIRECT, place] = (rig, pod.address(4), 8081)
                    if place == "remote":
                        self.ends[ROUTED, place] = (rig, pod.address(4), 8081)

    @contextmanager
    def detour(self, name: str) -> Iterator[None]:
        """For the routed way, packets to and from the remote pod pass node-a, as translated ones do."""
        if name != ROUTED:
            yield
            return
        rig = self.ends[ROUTED, "remote"][0]
        ends = (rig.outside, rig.b1.address(4)), (rig.node_b, rig.outside.address(4))
        for host, address in ends:
            host.route(address, rig.node_a)
        try:
            yield
        finally:
            for host, address in ends:
                host.unroute(address)

    @staticmethod
    def _reply(rig: Rig, name: str, place: str) -> tuple[str, str]:
        keeps = name == "weir" and place == "local"
        return ("b1" if place == "remote" else "a1", "outside" if keeps else "node-a")


def traffic(options: argparse.Namespace, directory: Path) -> None:
    with ExitStack() as stack:
        made = {name: open_rig(stack, directory / f"rig-{number}", name) for number, name in enumerate(options.proxies)}
        ways = Ways(made)
        results: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        slow: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
        base = 20000
        for round in range(options.rounds):
            for (name, place), (rig, address, port) in ways.ends.items():
                with ways.detour(name):
                    new = wrk(rig.outside, address, port, options.seconds, "-H", "Connection: close")
                    kept = wrk(rig.outside, address, port, max(options.seconds // 4, 3))
                results[name, place, "new"].append(new)
                results[name, place, "kept"].append(kept)
                say(f"round {round + 1}: {name}, {place} pod: {new:.0f} new connections/s, {kept:.0f} requests/s")
                if place == "remote" and name != ROUTED:
                    slow[name, place].append(equal_ports(rig, address, port, base))
                    base += ROUNDS + 50
                    say(f"  equal source ports: {slow[name, place][-1]}")
        losses = {name: restart_under_load(rig) for name, rig in made.items()}
    print_traffic(results, slow, losses)


def open_rig(stack: ExitStack, directory: Path, name: str) -> Rig:
    """A cluster of its own for a proxy, until the stack is closed."""
    kind, settings = PROXIES[name]
    control_plane = stack.enter_context(ControlPlane(directory / "control-plane"))
    return stack.enter_context(Rig(control_plane, directory, kind, "bench", clients=CLIENTS + 1, **settings))


def restart_under_load(rig: Rig) -> dict[str, int]:
    service = rig.service([rig.b1], type="NodePort")
    address, port = rig.node_a.address(4), service.node_port()
    rig.expect(rig.outside, address, port, ("b1", "node-a"))
    load = Load(rig.outside, address, port, rig.directory, rate=200, timeout="5s")
    time.sleep(1)
    rig.proxy.kill()
    time.sleep(0.5)
    rig.proxy.start()
    rig.proxy.wait_ready()
    time.sleep(2)
    report = load.finish()
    return {"of": report.sent, "failed": report.failed, "over 200 ms": report.slow}


def print_traffic(
    results: dict[tuple[str, str, str], list[float]],
    slow: dict[tuple[str, str], list[dict[str, float]]],
    losses: dict[str, dict[str, int]],
) -> None:
    print("\nthrough a NodePort (median of rounds, lowest–highest; share of direct)")
    for what, title in (("new", "new connections/s, one busy client"), ("kept", "requests/s on kept connections")):
        for place in ("remote", "local"):
            direct = statistics.median(results[DIRECT, place, what])
            print(f"\n  {title}, {place} pod")
            for (name, where, kind), values in results.items():
                if (where, kind) == (place, what):
                    middle = statistics.median(values)
                    print(
                        f"    {name:<20} {middle:>9,.0f}  ({min(values):,.0f}–{max(values):,.0f})  {middle / direct:.2f}"
                    )
    print(f"\n  {CLIENTS} clients with equal source ports, remote pod")
    for (name, _), rounds in slow.items():
        total = {key: sum(each[key] for each in rounds) for key in ("of", "failed", "over 200 ms")}
        print(f"    {name:<20} {total}, p99 {max(each['p99 ms'] for each in rounds):.1f} ms")
    print("\n  200 new connections/s while the proxy is killed and started again")
    for name, loss in losses.items():
        print(f"    {name:<20} {loss}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=list(PROXIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of each measurement of new connections")
    options = parser.parse_args()
    os.environ.setdefault("WEIR_BIN", release())
    say(f"weir: {os.environ['WEIR_BIN']}; load of the machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        traffic(options, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
