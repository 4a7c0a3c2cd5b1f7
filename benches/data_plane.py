#!/usr/bin/env python3
"""What forwarding costs: weir node beside kube-proxy (nftables and iptables) and the direct way, in one run.

    make bench-data                                 all of it, some 20 minutes
    benches/data_plane.py --part traffic            connections and requests through a NodePort
    benches/data_plane.py --part scale --sizes 1000 loading and changing rules at one size

traffic   One client host, two nodes, pods on both, all in network namespaces of this machine. Through a NodePort of
          node-a to a pod on node-b (remote) and to one on node-a (local), and directly to the same pods:
            new       new connections a second of one busy client, 32 at a time, closed by the server
            equal     64 client addresses that use the same source port at the same moment, 150 times: how many
                      connections failed, or took more than 200 ms
            kept      requests a second on 32 connections that stay open
            restart   200 new connections a second while the proxy is killed and started again: how many failed
          Rounds of all ways take turns, since the machine's speed changes over time; medians are shown.

scale     N Services x 5 endpoints in a real API server; then one proxy after the other, each on a fresh node:
            load      from the start of the process until the last Service that was made answers by the rules
            change    an EndpointSlice is written -> the kernel has it (seen by `nft monitor`), median and worst
            memory, CPU seconds until loaded, CPU seconds for all changes, and the size of the ruleset as text

Runs as root. The release binary is measured if `cargo build --release` has made one, else the debug binary.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sandbox.cluster import ControlPlane  # noqa: E402
from sandbox.fabric import Host  # noqa: E402
from sandbox.kube import Kube  # noqa: E402
from sandbox.rig import Rig  # noqa: E402
from sandbox.wire import Load  # noqa: E402
from sandbox.workers import Workers  # noqa: E402

#: Proxy by its name in the tables: kind and settings.
PROXIES = {
    "weir": ("weir", {}),
    "kube-proxy nftables": ("kube-proxy", {"mode": "nftables"}),
    "kube-proxy iptables": ("kube-proxy", {"mode": "iptables"}),
}
DIRECT = "direct"
CLIENTS = 64
ROUNDS = 150


def release() -> str:
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return next((str(path) for kind in ("release", "debug") if (path := target / kind / "weir").exists()), "")


# --- traffic


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
                    self.ends[DIRECT, place] = (rig, pod.address(4), 8080)

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
                new = wrk(rig.outside, address, port, options.seconds, "-H", "Connection: close")
                kept = wrk(rig.outside, address, port, max(options.seconds // 4, 3))
                results[name, place, "new"].append(new)
                results[name, place, "kept"].append(kept)
                say(f"round {round + 1}: {name}, {place} pod: {new:.0f} new connections/s, {kept:.0f} requests/s")
                if place == "remote":
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


# --- scale


def fill(kube: Kube, services: int, endpoints: int) -> None:
    """Services as `scale/s0`…, the first 2,000 with a NodePort, and one slice for each."""
    kube.create("/api/v1/namespaces", {"metadata": {"name": "scale"}})
    started = time.monotonic()

    def make(number: int) -> None:
        spec = {
            "type": "NodePort" if number < 2000 else "ClusterIP",
            "ports": [{"name": "p", "port": 80, "targetPort": 8080}],
        }
        name = {"metadata": {"name": f"s{number}"}}
        kube.create("/api/v1/namespaces/scale/services", {**name, "spec": spec})
        kube.create(SLICES, slice_of(number, endpoints))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(services)))
    say(f"made {services} Services x {endpoints} in {time.monotonic() - started:.0f} s")


SLICES = "/apis/discovery.k8s.io/v1/namespaces/scale/endpointslices"


def slice_of(number: int, endpoints: int, generation: int = 0) -> dict[str, object]:
    def address(index: int) -> str:
        place = number * endpoints + index
        return f"10.{200 + generation % 2}.{place // 250 % 250}.{place % 250 + 1}"

    return {
        "metadata": {"name": f"s{number}", "labels": {"kubernetes.io/service-name": f"s{number}"}},
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address(index)], "nodeName": f"node-{index % 3}", "conditions": {"ready": True}}
            for index in range(endpoints)
        ],
    }


def scale(options: argparse.Namespace, directory: Path) -> None:
    rows = []
    for size in options.sizes:
        with ControlPlane(directory / f"scale-{size}") as control_plane:
            fill(control_plane.kube, size, options.endpoints)
            for number, name in enumerate(options.proxies):
                rows.append((size, name, measure(options, control_plane, directory / f"{size}-{number}", name, size)))
                say(f"{size} x {options.endpoints}, {name}: {rows[-1][2]}")
    print(f"\nrules for N Services x {options.endpoints}")
    columns = list(rows[0][2])
    print("  " + f"{'N':>6} {'proxy':<20}" + "".join(f"{column:>18}" for column in columns))
    for size, name, row in rows:
        print("  " + f"{size:>6} {name:<20}" + "".join(f"{row[column]:>18}" for column in columns))


def measure(
    options: argparse.Namespace, control_plane: ControlPlane, directory: Path, name: str, size: int
) -> dict[str, str]:
    kind, settings = PROXIES[name]
    kube = control_plane.kube
    # Where the last of them leads to is in the kernel only when all are.
    last = kube.get(f"/api/v1/namespaces/scale/services/s{size - 1}")["spec"]["clusterIP"]
    with Workers(control_plane, directory, kind, **settings) as workers:
        started = time.monotonic()
        node = workers.add_node("bench", "us-east-1a")
        proxy = workers.proxies["bench"]
        loaded = wait_loaded(node, name, last, options.patience)
        took = time.monotonic() - started
        pid = proxy.process.pid
        cpu, row = cpu_seconds(pid), {"load s": "-", "change p50 ms": "-", "change max ms": "-"}
        if not loaded:
            return {**row, "load s": f"> {options.patience}", **blank()}
        row["load s"] = f"{took:.2f}"
        time.sleep(3)
        if "nftables" in name or name == "weir":
            times = [change_time(kube, node, number, options.endpoints) for number in range(options.changes)]
            row["change p50 ms"] = f"{statistics.median(times) * 1000:.1f}"
            row["change max ms"] = f"{max(times) * 1000:.1f}"
            for number in range(options.changes):
                kube.put(f"{SLICES}/s{7 + number * 13}", slice_of(7 + number * 13, options.endpoints))
        rules = ["iptables-save"] if "iptables" in name else ["nft", "list", "ruleset"]
        text = node.namespace.run(*rules)
        return {
            **row,
            "RSS MiB": f"{memory(pid):.0f}",
            "CPU load s": f"{cpu:.2f}",
            "CPU change ms": f"{(cpu_seconds(pid) - cpu) * 1000 / max(2 * options.changes, 1):.1f}",
            "rule lines": f"{text.count(chr(10)):,}",
            "rule MB": f"{len(text) / 1e6:.1f}",
        }


def blank() -> dict[str, str]:
    return {key: "-" for key in ("RSS MiB", "CPU load s", "CPU change ms", "rule lines", "rule MB")}


def wait_loaded(node: Host, name: str, address: str, patience: float) -> bool:
    """Whether the rules know the address of the last Service in time. Asked cheaply and seldom: it costs the kernel."""
    ask: Callable[[], str]
    if name == "weir":
        # Base chains come last.
        ask = lambda: node.namespace.run("sh", "-c", "nft list chain ip weir prerouting 2>/dev/null | grep -c vmap || true")  # noqa: E731
    elif "nftables" in name:
        element = f"{{ {address} . tcp . 80 }}"
        ask = lambda: node.namespace.run(  # noqa: E731
            "sh", "-c", f"nft get element ip kube-proxy service-ips '{element}' 2>/dev/null | grep -c goto || true"
        )
    else:
        ask = lambda: node.namespace.run("sh", "-c", f"iptables-save -t nat | grep -c '{address}/32' || true")  # noqa: E731
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if ask().strip() not in ("", "0"):
            return True
        time.sleep(0.05)
    return False


def change_time(kube: Kube, node: Host, number: int, endpoints: int) -> float:
    """Seconds from the request that changes a slice to the first notice that the kernel's rules have changed."""
    monitor = subprocess.Popen([*node.namespace.prefix, "nft", "monitor"], stdout=subprocess.PIPE)
    try:
        assert monitor.stdout
        time.sleep(1)
        while select.select([monitor.stdout], [], [], 0.2)[0]:
            os.read(monitor.stdout.fileno(), 1 << 16)
        which = 7 + number * 13
        began = time.monotonic()
        kube.put(f"{SLICES}/s{which}", slice_of(which, endpoints, 1))
        assert select.select([monitor.stdout], [], [], 60)[0], "no change within a minute"
        return time.monotonic() - began
    finally:
        monitor.terminate()
        monitor.wait()


def memory(pid: int) -> float:
    """Resident MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def cpu_seconds(pid: int) -> float:
    """Of the process and the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("traffic", "scale"), action="append")
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=list(PROXIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of each measurement of new connections")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 5000, 10000])
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--changes", type=int, default=15)
    parser.add_argument("--patience", type=float, default=180, help="seconds a proxy may take to load")
    options = parser.parse_args()
    os.environ.setdefault("WEIR_BIN", release())
    say(f"weir: {os.environ['WEIR_BIN']}; load of the machine: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        parts = options.part or ["traffic", "scale"]
        if "traffic" in parts:
            traffic(options, Path(directory))
        if "scale" in parts:
            scale(options, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
