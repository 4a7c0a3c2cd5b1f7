#!/usr/bin/env python3
"""How fast rules get into the kernel: weir node beside kube-proxy (nftables and iptables), in one run.

    make bench-rules                                all of it
    benches/rules.py --sizes 1000 --proxies weir    one size, one proxy

A real API server holds N Services x 5 endpoints, the first 2,000 with a NodePort. One proxy after the other starts on a
fresh node in a network namespace:

    load      start of the process -> a connection to a Service is answered. kube-proxy writes all rules in one
              transaction, and weir its base chains last: what answers then is everything
    change    an EndpointSlice is written to the API server -> the kernel has committed the last of the transactions
              that follow, seen in its own notices; with the time the API server takes. At idle, one after the other
    RSS       resident memory after all changes, and the most there was, which is while loading
    CPU       of the process and its children: up to three seconds after loading, and for each change
    rules     lines of `nft list ruleset` or `iptables-save`

At each size one change of an element is also written with `nft -f -` into weir's table, as if weir had no netlink of its
own, beside the time weir takes for its changes. Most of the former is the end of the process: closing its socket waits
until the kernel has freed what was deleted.

Runs as root. The release binary is measured if `cargo build --release` has made one, else the debug binary.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benches"))

from data_plane import PROXIES, release, say  # noqa: E402
from sandbox.cluster import ControlPlane  # noqa: E402
from sandbox.fabric import Host, Node  # noqa: E402
from sandbox.kube import Kube, KubeError  # noqa: E402
from sandbox.process import LOOPBACK  # noqa: E402
from sandbox.proxies import METRICS_PORT  # noqa: E402
from sandbox.wire import get  # noqa: E402
from sandbox.workers import Workers  # noqa: E402

NAMESPACE = "/api/v1/namespaces/scale"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/scale/endpointslices"
#: As many NodePorts as fit well into the API server's range of 2,768.
NODE_PORTS = 2000
#: The Service that really leads somewhere.
PROBE = "probe"
ATTEMPT_SECONDS = 0.02
#: A change has reached the kernel when it was quiet for so long; iptables takes a transaction for each of its tables.
QUIET_SECONDS = 0.3
#: Nobody waits for more changes than fit in here: kube-proxy in iptables mode takes seconds for each.
CHANGE_SECONDS = 90.0
TEXT_CHANGES = 30


# --- what the API server holds


class Contents:
    """Services of the `scale` namespace. They only become more."""

    def __init__(self, kube: Kube, endpoints: int) -> None:
        self.kube, self.endpoints = kube, endpoints
        self.size = 0
        self._generations: dict[int, int] = {}
        kube.create("/api/v1/namespaces", {"metadata": {"name": "scale"}})
        probe = kube.create(f"{NAMESPACE}/services", service(PROBE, "ClusterIP"))
        self.probe_address: str = probe["spec"]["clusterIP"]

    def grow(self, size: int) -> None:
        def make(number: int) -> None:
            kind = "NodePort" if number < NODE_PORTS else "ClusterIP"
            self.kube.create(f"{NAMESPACE}/services", service(f"s{number}", kind))
            self.kube.create(SLICES, self._slice(number))

        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(make, range(self.size, size)))
        self.size = size
        say(f"{size} Services x {self.endpoints} are made after {time.monotonic() - started:.0f} s")

    def change(self, number: int) -> None:
        """Gives the Service of this number, counted round, other endpoints."""
        number %= self.size
        self._generations[number] = 1 - self._generations.get(number, 0)
        self.kube.put(f"{SLICES}/s{number}", self._slice(number))

    def lead(self, host: Host) -> None:
        """From now on the probe's endpoint is this host."""
        body = endpoint_slice(PROBE, [host.address(4)])
        try:
            self.kube.put(f"{SLICES}/{PROBE}", body)
        except KubeError:
            self.kube.create(SLICES, body)

    def _slice(self, number: int) -> dict[str, object]:
        second = 200 + self._generations.get(number, 0)
        places = range(number * self.endpoints, (number + 1) * self.endpoints)
        return endpoint_slice(f"s{number}", [f"10.{second}.{place // 250 % 250}.{place % 250 + 1}" for place in places])


def service(name: str, kind: str) -> dict[str, object]:
    ports = [{"name": "p", "port": 80, "targetPort": 8080}]
    return {"metadata": {"name": name}, "spec": {"type": kind, "ports": ports}}


def endpoint_slice(service: str, addresses: Sequence[str]) -> dict[str, object]:
    return {
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address], "nodeName": f"node-{index % 3}", "conditions": {"ready": True}}
            for index, address in enumerate(addresses)
        ],
    }


# --- what the kernel tells


class Notices:
    """When transactions of nftables were committed in a namespace: notices of NFT_MSG_NEWGEN, one for each."""

    _NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES = 12, 270, 1, 7
    _NEW_GENERATION = 10 << 8 | 15  # linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h

    def __init__(self, node: Node) -> None:
        self.last = 0.0
        self._ended = False
        self._socket = node.namespace.call(self._open)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._ended = True
        self._reader.join()
        self._socket.close()

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._NETLINK_NETFILTER)
        opened.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: a full sync is many notices
        opened.bind((0, 0))
        opened.settimeout(0.5)
        opened.setsockopt(self._SOL_NETLINK, self._ADD_MEMBERSHIP, self._NFNLGRP_NFTABLES)
        return opened

    def _read(self) -> None:
        while not self._ended:
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError:
                continue
            now, at = time.monotonic(), 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == self._NEW_GENERATION:
                    self.last = now
                at += max((length + 3) & ~3, 16)

    def settled_after(self, moment: float, patience: float = 60.0) -> float:
        """When the last transaction after this moment was committed, once no more follow."""
        end = moment + patience
        while time.monotonic() < end:
            if self.last > moment and time.monotonic() - self.last > QUIET_SECONDS:
                return self.last
            time.sleep(0.01)
        raise TimeoutError(f"no change of the rules within {patience:g} s")


@contextmanager
def listener(host: Host) -> Iterator[None]:
    """The host takes connections on port 8080, and that is all."""
    opened = host.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.bind((host.address(4), 8080))
        opened.listen(64)
        yield
    finally:
        opened.close()


def answers(node: Node, address: str) -> bool:
    """Whether a connection from the node to an address is taken within a moment."""
    attempt = node.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
    with attempt:
        attempt.settimeout(ATTEMPT_SECONDS)
        try:
            attempt.connect((address, 80))
        except OSError:
            time.sleep(ATTEMPT_SECONDS / 2)
            return False
    return True


# --- what the process costs


def resident(pid: int, field: str = "VmRSS") -> float:
    """Resident MiB, now or (`VmHWM`) at most."""
    return int(re.findall(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def statistics_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """Of the process and the children it has waited for."""
    return sum(map(int, statistics_of(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def age(pid: int) -> float:
    """Seconds since it was started."""
    started = int(statistics_of(pid)[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


# --- measuring


@dataclass
class Row:
    """What was measured of one proxy at one size. Nothing but the names is known of one that did not load in time."""

    size: int
    proxy: str
    load: float | None = None
    changes: list[float] = field(default_factory=list)
    rss: float = 0
    peak: float = 0
    cpu_load: float = 0
    cpu_change: float = 0
    lines: int = 0
    text_changes: list[float] = field(default_factory=list)
    """Milliseconds of `nft -f -` for a change of one element."""
    own_changes: float = 0
    """Milliseconds that weir takes to carry a change to the kernel, by its own metric; mean."""

    def cells(self) -> list[str]:
        if self.load is None:
            return ["not loaded"]
        times = sorted(each * 1000 for each in self.changes)
        return [
            f"{self.load:.2f}", f"{statistics.median(times):.1f}", f"{quantile(times, 0.99):.1f}", f"{times[-1]:.1f}",
            f"{self.rss:.0f}", f"{self.peak:.0f}", f"{self.cpu_load:.2f}", f"{self.cpu_change:.1f}", f"{self.lines:,}",
        ]  # fmt: skip


COLUMNS = ("load s", "change p50 ms", "p99", "max", "RSS MiB", "peak", "CPU load s", "CPU/change ms", "rules")


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values."""
    return values[min(int(len(values) * share), len(values) - 1)]


def measure(options: argparse.Namespace, workers: Workers, contents: Contents, row: Row) -> None:
    host = workers.fabric.add_host("server")
    contents.lead(host)
    with listener(host):
        node = workers.add_node("bench")
        pid = workers.proxies["bench"].process.pid
        while not answers(node, contents.probe_address):
            if age(pid) > options.patience:
                return
        row.load = age(pid)
    time.sleep(3)
    row.cpu_load = cpu_seconds(pid)
    with closing(Notices(node)) as notices:
        row.changes = changes(options.changes, contents, notices)
    # What belongs to the changes but follows them, like deleting chains that are not used any longer.
    time.sleep(3)
    row.cpu_change = (cpu_seconds(pid) - row.cpu_load) * 1000 / len(row.changes)
    row.rss, row.peak = resident(pid), resident(pid, "VmHWM")
    row.lines = node.namespace.run(*dump_command(row.proxy)).count("\n")
    if row.proxy == "weir":
        row.own_changes = mean_sync_ms(node)
        row.text_changes = [text_change(node) for _ in range(TEXT_CHANGES)]


def changes(count: int, contents: Contents, notices: Notices) -> list[float]:
    """Seconds from each request to the last commit that follows it."""
    found: list[float] = []
    end = time.monotonic() + CHANGE_SECONDS
    for number in range(count):
        began = time.monotonic()
        if began > end:
            break
        contents.change(7 + number * 13)
        found.append(notices.settled_after(began) - began)
    return found


def dump_command(proxy: str) -> list[str]:
    return ["iptables-save"] if "iptables" in proxy else ["nft", "list", "ruleset"]


def mean_sync_ms(node: Node) -> float:
    """Of weir's partial syncs so far."""
    answer = get(node, LOOPBACK, METRICS_PORT, "/metrics")
    assert answer, "weir's metrics cannot be read"
    lines = [line for line in answer.body.splitlines() if "partial" in line and "IPv4" in line]
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
    total = next(value for name, value in values.items() if name.endswith("_seconds_sum"))
    return total * 1000 / next(value for name, value in values.items() if name.endswith("_seconds_count"))


def text_change(node: Node) -> float:
    """Milliseconds that nft takes, as a process, to replace an element of weir's endpoints that no Service has."""
    element = "element ip weir endpoints-tcp { 203.0.113.1 . 80 . 0 : 192.0.2.1 . 80 }"
    script = f"add {element}\ndelete {element}\nadd {element}\ndelete {element}\n"
    return node.namespace.call(lambda: timed(["nft", "-f", "-"], script)) * 1000


def timed(command: Sequence[str], stdin: str) -> float:
    started = time.monotonic()
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)
    return time.monotonic() - started


# --- printing


def print_rows(rows: Sequence[Row], endpoints: int) -> None:
    print(f"\nrules for N Services x {endpoints}")
    print(f"  {'N':>6} {'proxy':<20}" + "".join(f"{column:>14}" for column in COLUMNS))
    for row in rows:
        print(f"  {row.size:>6} {row.proxy:<20}" + "".join(f"{cell:>14}" for cell in row.cells()))
    print("\none change of an element of weir's table, as text and over netlink")
    for row in rows:
        if row.text_changes:
            text = statistics.median(row.text_changes)
            print(f"  {row.size:>6} nft -f - {text:.1f} ms (median), weir's own {row.own_changes:.2f} ms (mean)")


def print_targets(rows: Sequence[Row], endpoints: int) -> None:
    """The targets that were set for these figures, as far as their sizes were measured."""
    by_size = {row.size: row for row in rows if row.proxy == "weir" and row.load is not None}
    targets = [
        (10000, "load, s", 2.0, lambda row: row.load),
        (5000, "median change, ms", 20.0, lambda row: statistics.median(row.changes) * 1000),
        (5000, "RSS, MiB", 60.0, lambda row: row.rss),
    ]
    print("\ntargets")
    for size, what, most, value in targets:
        if row := by_size.get(size):
            found = value(row)
            verdict = "met" if found <= most else "NOT MET"
            print(f"  {what} at {size:,} x {endpoints}: {found:.1f} of {most:g} at most, {verdict}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", nargs="+", choices=PROXIES, default=list(PROXIES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 5000, 10000])
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--patience", type=float, default=240, help="seconds a proxy may take to load")
    options = parser.parse_args()
    os.environ.setdefault("WEIR_BIN", release())
    say(f"weir: {os.environ['WEIR_BIN']}; load of the machine: {os.getloadavg()[0]:.1f}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, ControlPlane(Path(scratch) / "control-plane") as control_plane:
        contents = Contents(control_plane.kube, options.endpoints)
        for size in sorted(options.sizes):
            contents.grow(size)
            for name in options.proxies:
                kind, settings = PROXIES[name]
                rows.append(row := Row(size, name))
                with Workers(control_plane, Path(scratch) / f"{size}-{name}", kind, **settings) as workers:
                    measure(options, workers, contents, row)
                say(f"{size} {name}: {', '.join(map(' '.join, zip(COLUMNS, row.cells(), strict=False)))}")
    print_rows(rows, options.endpoints)
    print_targets(rows, options.endpoints)
    return 0


if __name__ == "__main__":
    sys.exit(main())
