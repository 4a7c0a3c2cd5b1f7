"""weir node against broken tools, meddlers and odd objects: the last good rules stay, and all is made good soon after."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sandbox import netns, proxies
from sandbox.process import LOOPBACK
from sandbox.proxies import METRICS_PORT
from sandbox.rig import Rig, soon
from sandbox.services import Port
from sandbox.wire import get


#: What the agent says when a sync fails.
FAILED = "the last good rules stay"


@pytest.fixture(scope="module")
def proxy_kind() -> str:
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    return "weir"


class Nft:
    """An nft that can be made to fail: first in the PATH of node-a's agent while the context lasts."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        self._rig = rig
        self._fault = directory / "fault"
        fake = directory / "nft"
        fake.write_text(f'#!/bin/sh\n[ -e {self._fault} ] && . {self._fault}\nexec /usr/sbin/nft "$@"\n')
        fake.chmod(0o755)
        self._path = f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"

    def __enter__(self) -> Nft:
        self._rig.proxy.settings["environment"] = {"PATH": self._path}
        self._rig.proxy.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        del self._rig.proxy.settings["environment"]
        self._rig.proxy.restart()

    def spoil(self, shell: str) -> None:
        self._fault.write_text(shell + "\n")

    def mend(self) -> None:
        self._fault.unlink(missing_ok=True)


def nft(rig: Rig, *words: str) -> str:
    return rig.node_a.namespace.run("nft", *words)


def test_flows_leave_an_endpoint_that_went_while_nft_was_broken(rig: Rig, tmp_path: Path) -> None:
    """P60: the look at flows waits for the rules, however often these fail first."""
    service = rig.service([rig.a1], ports=[Port("web-udp", protocol="UDP")], sessionAffinity="ClientIP")
    rig.expect(rig.outside, service.cluster_ip(), 80, ("a1", "outside"), protocol="UDP")
    with Nft(rig, tmp_path) as tool:
        question = rig.question(rig.outside, "UDP")
        with question.open(service.cluster_ip(), 80, patience=0.3) as flow:
            assert question.on(flow).server == "a1"
            tool.spoil("exit 3")
            with failing(rig):
                service.set_endpoints([rig.b1])
            soon(lambda: question.on(flow).server == "a1")
            tool.mend()
            soon(lambda: question.on(flow).server == "b1", within=20)


def test_a_node_without_rules_is_not_ready(rig: Rig, tmp_path: Path) -> None:
    with Nft(rig, tmp_path) as tool:
        rig.proxy.stop()
        nft(rig, "flush ruleset")
        tool.spoil("exit 3")
        with failing(rig):
            rig.proxy.start()

        def status() -> int:
            answer = get(rig.node_a, LOOPBACK, METRICS_PORT, "/readyz")
            return answer.status if answer else 0

        assert status() == 503
        tool.mend()
        soon(lambda: status() == 200, within=40)


@contextmanager
def failing(rig: Rig) -> Iterator[None]:
    """Within the block, or soon after it, the agent says that it cannot change the rules."""
    said = rig.proxy.log.read_text().count(FAILED) if rig.proxy.log.exists() else 0
    yield
    soon(lambda: rig.proxy.log.read_text().count(FAILED) > said)


def test_what_is_left_of_a_table_is_made_whole(rig: Rig) -> None:
    """P73, P76: with a map missing no comparison could succeed."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.proxy.stop()
    nft(rig, "flush table ip weir; delete map ip weir endpoints-udp")
    rig.proxy.start()
    rig.proxy.wait_ready()
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))


def test_a_map_of_another_kind_is_replaced_with_its_table(rig: Rig) -> None:
    """P76: it cannot even be read."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    name = "ip weir endpoints-tcp"
    nft(rig, f"flush table ip weir; delete map {name}; add map {name} {{ type ipv4_addr : ipv4_addr; flags interval; }}")
    nft(rig, f"add element {name} {{ 10.0.0.0/8 : 10.0.0.1 }}")
    service.set_endpoints([rig.a2])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a2", "caller"), within=30)


def test_a_table_that_is_deleted_again_and_again_is_there_soon_after(rig: Rig) -> None:
    """P76: failures that the deletions cause do not make the next attempt wait."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # not there just now
            nft(rig, "delete table ip weir")
        time.sleep(random.random() / 50)
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), within=4)


@pytest.mark.parametrize("line", ["flush table ip weir", "flush map ip weir inside", "add rule ip weir lb-tcp-1 drop"])
def test_what_others_change_is_undone_within_seconds(rig: Rig, line: str) -> None:
    """P76, and better: the kernel tells who changed what."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    nft(rig, line)
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), within=15)


def test_what_the_agent_does_itself_is_nobody_elses_change(rig: Rig) -> None:
    """With chains made and deleted by nft, which is a process of its own."""
    said = rig.proxy.log.read_text().count("somebody")
    for seconds in (100, 200):
        service = rig.service([rig.a1, rig.b1], sessionAffinity="ClientIP")
        service.patch(sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}})
        service.set_endpoints([rig.b1])
        rig.expect(rig.caller, service.cluster_ip(), 80, ("b1", "caller"))
        service.delete()
    time.sleep(4)  # longer than unused chains are kept
    assert rig.proxy.log.read_text().count("somebody") == said


def test_a_thousand_endpoints_with_affinity_cost_the_kernel_little(rig: Rig) -> None:
    """Each has a set of its own for the clients that are pinned to it."""

    def slab() -> int:
        """MiB, of the whole machine."""
        [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Slab:")]
        return int(line.split()[1]) >> 10

    calm, service = rig.service([rig.b1]), rig.service(ports=[Port()], sessionAffinity="ClientIP")
    rig.expect(rig.caller, calm.cluster_ip(), 80, ("b1", "caller"))
    before = slab()
    labels = {"kubernetes.io/service-name": service.name}
    manifest = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service.name}-many", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "web", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [f"10.250.{number >> 8}.{number & 255}"]} for number in range(1, 1001)],
    }
    rig.kube.apply(f"{service.slices}/{service.name}-many", manifest)
    # For who is pinned to it, and for who may be sent to any.
    soon(lambda: nft(rig, "list", "table", "ip", "weir").count("goto pin-") >= 2000, within=20)
    assert slab() - before < 500
    calm.set_endpoints([rig.a1])
    rig.expect(rig.caller, calm.cluster_ip(), 80, ("a1", "caller"))


def test_a_cluster_ip_is_nobody_elses_external_ip(rig: Rig) -> None:
    """Not even an older Service's: anybody can write an external IP."""
    thief = rig.service([rig.b1])
    time.sleep(1.1)  # ages are told in seconds
    victim = rig.service([rig.a1])
    rig.expect(rig.caller, victim.cluster_ip(), 80, ("a1", "caller"))
    thief.patch(externalIPs=[victim.cluster_ip()])
    soon(lambda: "another Service has this address and port" in rig.proxy.log.read_text())
    rig.stays(rig.caller, victim.cluster_ip(), 80, ("a1", "caller"))
