#!/usr/bin/env python3
"""What weir costs: AWS calls, seconds, memory and CPU for the same work at a given number of Services.

    make bench                                    all of it, about six minutes after the build
    benches/control_plane.py --services 40        one round of another size

Each round boots a control plane and an emulated AWS of its own, starts weir, and goes through:

    create   N Services with one port each, until every one has its hostname and weir is quiet
    restart  weir ends and starts again: it reads everything and writes nothing
    drift    one drift interval where nothing has changed: the check of everything, and the turns of the slow walk
    nodes    10 nodes join, 0.5 s apart: labelled as EKS managed node groups label them, then without that label
    delete   all Services at once, until they are gone and weir is quiet

At most 50 target groups fit on one Auto Scaling group, which is AWS's limit. The first 50 are attached and cost
nothing when a node joins; for every other one a node must be registered, by anybody's controller. A second round with
40 Services shows what a node costs where all of them are attached: nothing.

AWS is emulated and answers at once: seconds say how long weir takes, not how long AWS would. The release binary is
measured if `cargo build --release` has made one, else the debug binary.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from sandbox.aws import Account, LocalStack  # noqa: E402
from sandbox.cluster import ControlPlane  # noqa: E402
from sandbox.manifests import install  # noqa: E402
from sandbox.process import wait_for  # noqa: E402
from sandbox.scene import NODES, Scene  # noqa: E402
from sandbox.weir import Weir, binary  # noqa: E402

ASG = "workers"
SLOTS = 50
MANAGED_LABEL = "eks.amazonaws.com/nodegroup"
JOIN_SECONDS = 0.5
QUIET_SECONDS = 3.0
PATIENCE_SECONDS = 600.0
CLIENTS = 8

#: Long enough that the reads after a start are over before the first check, in the phase that waits for one; and longer
#: than all the others, so that no check falls into their counts.
DRIFT_INTERVAL = "20s"
NO_DRIFT_INTERVAL = "1h"

#: What another controller needed for the same work on 2 cores, with a real kube-apiserver 1.37.2 and AWS emulated by
#: moto 5.2.5: AWS Load Balancer Controller 3.5.0, instance targets, one Auto Scaling group, 100 Services.
PEER = """\
recorded earlier, not in this run: AWS Load Balancer Controller 3.5.0, 100 Services
  create  2381 calls (23.8 a Service) in 27.3 s, CPU 3.9 s, RSS 78 MiB
  nodes    295 calls for 10 nodes and 101 target groups, CPU 1.35 s, RSS 83 MiB
  delete   997 calls (10.0 a Service) in 21.3 s, CPU 2.3 s, RSS 80 MiB"""


@dataclass
class Usage:
    """What a process used so far."""

    cpu_seconds: float
    rss_mib: float
    peak_mib: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        process = Path("/proc") / str(pid)
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        ticks = int(fields[11]) + int(fields[12])
        memory = [int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]
        return cls(ticks / os.sysconf("SC_CLK_TCK"), *memory)


class Round:
    """One control plane, one account, one weir, and phases on them."""

    def __init__(self, scene: Scene, account: Account, services: int, directory: Path) -> None:
        self.scene, self.account, self.services, self.directory = scene, account, services, directory
        self.kube = scene.kube
        self.weir = self.start(NO_DRIFT_INTERVAL)

    def start(self, drift_interval: str) -> Weir:
        kubeconfig, endpoint = self.scene.control_plane.kubeconfig, self.account.localstack.endpoint
        flag = f"--drift-interval={drift_interval}"
        weir = Weir(self.directory, kubeconfig, endpoint, self.account.id, self.account.cluster, flag)
        try:
            weir.wait_ready()
        except BaseException:
            weir.kill()
            raise
        return weir

    def close(self) -> None:
        self.weir.stop()
        self.weir.assert_no_panic()

    # --- measuring

    def calls(self, since: int) -> list[dict[str, Any]]:
        return self.account.calls(since=since)

    def settle(self, since: int, quiet: float = QUIET_SECONDS) -> float:
        """Waits until weir has made no call for a while; the time of the last one."""
        count, last = -1, time.monotonic()
        deadline = last + PATIENCE_SECONDS
        while time.monotonic() - last < quiet:
            if (now := len(self.calls(since))) != count:
                count, last = now, time.monotonic()
            if time.monotonic() > deadline:
                raise TimeoutError("weir does not come to rest")
            time.sleep(0.25)
        return last

    def phase(self, name: str, work: Callable[[], float], per: int | None = None) -> list[dict[str, Any]]:
        """Runs `work`, which returns the time of its end, then prints one line of figures and one of calls."""
        pid, before = self.weir.pid, Usage.of(self.weir.pid)
        mark, started = self.account.mark(), time.monotonic()
        ended = work()
        calls, after = self.calls(mark), Usage.of(self.weir.pid)
        cpu = after.cpu_seconds - (before.cpu_seconds if self.weir.pid == pid else 0)
        each = f" ({len(calls) / per:.2f} a Service)" if per else ""
        print(
            f"  {name:<18} {ended - started:6.1f} s  {len(calls):5} calls{each}  "
            f"CPU {cpu:.2f} s  RSS {after.rss_mib:.0f} MiB (peak {after.peak_mib:.0f})",
        )
        by_action = Counter(call["operation"] for call in calls)
        failed = Counter(call["code"] or call["status"] for call in calls if call["status"] != 200)
        print("    " + (", ".join(f"{count} {action}" for action, count in by_action.most_common()) or "no call"))
        if failed:
            print("    of these failed: " + ", ".join(f"{count} {code}" for code, count in failed.most_common()))
        sys.stdout.flush()
        return calls

    # --- phases

    def create(self) -> float:
        mark = self.account.mark()
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda number: self.scene.expose(f"bench-{number:03}"), range(self.services)))
        wait_for(lambda: self.with_hostname() == self.services, PATIENCE_SECONDS, "all hostnames", pause=0.2)
        ready = time.monotonic()
        self.settle(mark)
        return ready

    def restart(self, drift_interval: str) -> Callable[[], float]:
        def work() -> float:
            mark = self.account.mark()
            self.close()
            self.weir = self.start(drift_interval)
            return self.settle(mark)

        return work

    def drift(self) -> float:
        done = self.drift_checks()
        wait_for(lambda: self.drift_checks() > done, PATIENCE_SECONDS, "a drift check", pause=0.1)
        return time.monotonic()

    def drift_checks(self) -> float:
        rows = [line for line in self.weir.metrics().splitlines() if line.startswith("weir_drift_checks_total")]
        return float(rows[0].split()[1])

    def join(self, count: int, *, labelled: bool) -> Callable[[], float]:
        """Scales the group out, and returns the work: the Node objects of the new instances appear, one by one."""
        workers = self.account.workers
        workers.scale(ASG, len(workers.members(ASG)) + count)
        present = {node["metadata"]["name"] for node in self.kube.list(NODES)}
        joining = [node for node in self.account.node_manifests() if node["metadata"]["name"] not in present]
        assert len(joining) == count, f"{len(joining)} of {count} instances were launched"
        if not labelled:
            for node in joining:
                del node["metadata"]["labels"][MANAGED_LABEL]

        def work() -> float:
            mark = self.account.mark()
            for node in joining:
                self.kube.create(NODES, node)
                time.sleep(JOIN_SECONDS)
            joined = time.monotonic()
            return max(joined, self.settle(mark) if self.calls(mark) else self.rest(joined))

        return work

    @staticmethod
    def rest(since: float) -> float:
        time.sleep(QUIET_SECONDS)
        return since

    def delete(self) -> float:
        mark = self.account.mark()
        names = [service["metadata"]["name"] for service in self.kube.list(self.scene.path("services"))]
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self.scene.delete, names))
        wait_for(lambda: not self.kube.list(self.scene.path("services")), PATIENCE_SECONDS, "all to go", pause=0.2)
        gone = time.monotonic()
        self.settle(mark)
        return gone

    # --- what is there

    def with_hostname(self) -> int:
        services = self.kube.list(self.scene.path("services"))
        return sum(1 for service in services if service["status"]["loadBalancer"].get("ingress"))

    def check_targets(self) -> None:
        """Every worker is a target of every Service, or the figures are worth nothing."""
        members = set(self.account.workers.members(ASG))
        elbv2 = self.account.elbv2
        pages = elbv2.get_paginator("describe_target_groups").paginate()
        groups = [group["TargetGroupArn"] for page in pages for group in page["TargetGroups"]]
        assert len(groups) == self.services, f"{len(groups)} target groups"
        for group in groups:
            health = elbv2.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
            found = {row["Target"]["Id"] for row in health}
            assert found == members, f"{group} has {len(found)} targets, not {len(members)}"

    def check_nothing_left(self) -> None:
        balancers = self.account.elbv2.describe_load_balancers()["LoadBalancers"]
        groups = self.account.elbv2.describe_target_groups()["TargetGroups"]
        assert not balancers and not groups, f"{len(balancers)} load balancers and {len(groups)} target groups are left"


def run(services: int, phases: set[str], directory: Path) -> None:
    with ExitStack() as parts:
        account = Account(parts.enter_context(LocalStack(directory / "localstack")), f"{services:012}")
        control_plane = parts.enter_context(ControlPlane(directory / "control-plane"))
        account.seed(workers=3)
        install(control_plane)
        scene = Scene(control_plane, "bench", account.node_manifests())
        bench = Round(scene, account, services, directory / "weir")
        parts.callback(bench.close)
        bench.settle(0)
        idle, attached = Usage.of(bench.weir.pid), min(services, SLOTS)
        print(f"{services} Services: {attached} attached, {services - attached} registered one by one")
        print(f"  {'start':<18} {len(bench.calls(0))} calls, RSS {idle.rss_mib:.0f} MiB", flush=True)
        bench.phase("create", bench.create, services)
        bench.check_targets()
        if "drift" in phases:
            bench.phase("restart", bench.restart(DRIFT_INTERVAL))
            bench.drift()
            bench.phase("drift interval", bench.drift)
            bench.restart(NO_DRIFT_INTERVAL)()
        if "nodes" in phases:
            for labelled, name in ((True, "10 nodes, labelled"), (False, "10 nodes, no label")):
                bench.phase(name, bench.join(10, labelled=labelled))
                bench.check_targets()
        bench.phase("delete", bench.delete, services)
        bench.check_nothing_left()


def choose_binary() -> str:
    """Prefers the release build; says which it is."""
    if "WEIR_BIN" not in os.environ:
        release = binary().parent.parent / "release" / "weir"
        if release.is_file():
            os.environ["WEIR_BIN"] = str(release)
    chosen = binary()
    if not chosen.is_file():
        sys.exit("there is no weir to measure: run `cargo build --release`")
    if "release" not in chosen.parts:
        return "debug build: memory and CPU are higher than those of a release build"
    return "release build"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, help="one round with so many Services")
    options = parser.parse_args()
    print(f"weir controller, {choose_binary()}, {os.cpu_count()} cores", flush=True)
    everything = {"drift", "nodes"}
    rounds = [(options.services, everything)] if options.services else [(100, everything), (40, {"nodes"})]
    for services, phases in rounds:
        with tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch:
            run(services, phases, Path(scratch))
    print(PEER)


if __name__ == "__main__":
    main()
