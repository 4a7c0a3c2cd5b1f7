"""weir node as a process: what it writes to the kernel and when, what it says, and how it ends (section J)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import netns, proxies, segments
from sandbox.fabric import Host
from sandbox.rig import Rig, soon
from sandbox.weir import binary
from sandbox.wire import REFUSED

TABLES = (("ip", "weir"), ("ip6", "weir"))


@pytest.fixture(scope="module")
def proxy_kind() -> str:
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    return "weir"


def weir(host: Host, rig: Rig, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs `weir node …` where a node's agent runs."""
    environment = {"KUBECONFIG": str(rig.proxy.kubeconfig), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    command = [*host.namespace.prefix, *prefix, binary(), "node", *arguments]
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def elements(rig: Rig) -> int:
    return sum(
        rig.node_a.namespace.run("nft", "list", "map", family, table, name).count(" : ")
        for family, table in TABLES
        for name in ("inside", "outside", "endpoints-tcp")
    )


@contextmanager
def monitored(rig: Rig) -> Iterator[list[str]]:
    """Collects what anybody changes in the tables of node-a; the list is complete after the block."""
    command = [*rig.node_a.namespace.prefix, "nft", "monitor"]
    monitor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    lines: list[str] = []
    try:
        yield lines
        time.sleep(0.5)
    finally:
        monitor.terminate()
        assert monitor.stdout
        lines += [line.strip() for line in monitor.stdout if line.startswith(("add", "delete", "flush", "replace"))]
        monitor.wait()


def test_a_restart_with_nothing_changed_writes_nothing(rig: Rig) -> None:
    """P73: everything that there can be is there: both policies, affinity, both protocols, no endpoint."""
    pinned = {"sessionAffinity": "ClientIP"}
    rig.service([rig.a1, rig.a2, rig.b1], type="NodePort", externalTrafficPolicy="Local")
    rig.service([rig.a1, rig.b1], type="NodePort", **pinned)
    guarded = rig.service([rig.b1], type="LoadBalancer", loadBalancerSourceRanges=["172.30.0.0/24", "fd00:30::/64"])
    vip = rig.vip(4)
    guarded.set_ingress({"ip": vip})
    rig.service()
    rig.expect(rig.outside, vip, 80, ("b1", "node-a"))
    before = elements(rig)
    with monitored(rig) as changes:
        rig.proxy.restart()
        time.sleep(3)  # longer than unused chains are kept
    assert changes == []
    assert elements(rig) == before


def test_a_change_writes_no_more_than_what_changed(rig: Rig) -> None:
    """P72: one more endpoint is a few elements in one transaction, however many Services there are."""
    for _ in range(20):
        rig.service([rig.a1])
    service = rig.service([rig.a1, rig.b1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    with monitored(rig) as changes:
        service.set_endpoints([rig.a1, rig.b1, rig.a2])
        rig.expect(rig.caller, service.cluster_ip(), 80, *((name, "caller") for name in ("a1", "a2", "b1")))
    ours = [line for line in changes if " element " in line]
    # A frontend is an address, a port and a protocol. Each has an endpoint more, and other verdicts in both maps; the
    # endpoint's address is in two sets already.
    frontends = len(service.object["spec"]["clusterIPs"]) * 4
    assert 0 < len(ours) <= frontends * 5, "\n".join(changes)
    assert not [line for line in changes if line.startswith("flush")]


def test_what_others_do_to_our_table_is_undone(rig: Rig) -> None:
    """P76: at the next comparison, of which a restart is one."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    address = service.cluster_ip()
    for line in (
        f"delete element ip weir inside {{ {address} . tcp . 80 : goto lb-tcp-1 }}",
        "add element ip weir outside { 192.0.2.1 . tcp . 80 : drop }",
        "add element ip weir outside { 192.0.2.2 . tcp . 80 : accept }",
        "add rule ip weir refuse accept",
        "insert rule ip weir prerouting return",
        "add chain ip weir visitor",
        "add rule ip weir lb-tcp-1 drop",
    ):
        rig.node_a.namespace.run("nft", *line.split(" "))
    rig.proxy.restart()
    rig.expect(rig.caller, address, 80, ("a1", "caller"))

    def clean() -> None:
        table = rig.node_a.namespace.run("nft", "list", "table", "ip", "weir")
        assert not [word for word in ("192.0.2", "visitor", "accept\n", "return\n\t\tiifname") if word in table], table

    soon(clean)


def test_a_table_of_another_layout_is_replaced_under_traffic(rig: Rig) -> None:
    """P75, and an upgrade: what an older weir left is replaced as a whole."""
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.proxy.stop()
    listing = rig.node_a.namespace.run("nft", "list", "chains", "ip")
    layout = next(word for word in listing.split() if word.startswith("layout-"))
    rig.node_a.namespace.run("nft", "delete", "chain", "ip", "weir", layout)
    rig.node_a.namespace.run("nft", "delete", "chain", "ip", "weir", "output")
    rig.node_a.namespace.run("nft", "add chain ip weir output { type nat hook output priority -90; }")
    rig.proxy.start()
    rig.proxy.wait_ready()
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
    rig.expect(rig.node_a, service.cluster_ip(), 80, ("a1", "node-a"))
    assert layout in rig.node_a.namespace.run("nft", "list", "chains", "ip")


def test_cleanup_takes_both_tables_and_nothing_else(rig: Rig) -> None:
    """P77: also when they are gone already; ending alone takes nothing (P74)."""
    service = rig.service([rig.b1])
    rig.expect(rig.node_a, service.cluster_ip(), 80, ("b1", "node-a"))
    rig.node_a.namespace.run("nft", "add table ip neighbour")
    assert rig.proxy.stop() == 0
    rig.expect(rig.node_a, service.cluster_ip(), 80, ("b1", "node-a"))
    try:
        for _ in range(2):
            done = weir(rig.node_a, rig, "--cleanup")
            assert (done.returncode, done.stderr) == (0, "")
            assert rig.node_a.namespace.run("nft", "list", "tables").split() == ["table", "ip", "neighbour"]
    finally:
        rig.node_a.namespace.run("nft", "delete table ip neighbour")
        rig.proxy.start()
        rig.proxy.wait_ready()


def test_trace_tells_the_way_of_a_connection(rig: Rig) -> None:
    service = rig.service([rig.a1, rig.b1], type="NodePort", externalTrafficPolicy="Local")
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    node_port = f"{rig.node_a.address(4)}:{service.node_port()}"

    def trace(source: str, to: str) -> str:
        done = weir(rig.node_a, rig, "trace", "--node-name=node-a", source, to)
        assert done.returncode == 0, done.stderr
        return done.stdout

    outside = trace("192.0.2.9", node_port)
    assert "sent to one of 1:" in outside and "sees the client's address" in outside
    assert f"Service {service.object['metadata']['namespace']}/{service.object['metadata']['name']}" in outside
    assert "sent to one of 2:" in trace("host", node_port)
    assert "refused" in trace("pod:10.244.1.9", f"{service.cluster_ip()}:81")
    assert "goes on as it came" in trace("host", "192.0.2.1:80")
    service.set_endpoints([rig.b1])
    soon(lambda: "dropped" in trace("192.0.2.9", node_port))
    for source, to in (("nobody", node_port), ("host", "192.0.2.1"), ("::1", node_port)):
        done = weir(rig.node_a, rig, "trace", "--node-name=node-a", source, to)
        assert done.returncode != 0 and "panicked" not in done.stderr
    assert "it should be host, pod:ADDRESS or ADDRESS" in weir(
        rig.node_a, rig, "trace", "--node-name=node-a", "nobody", node_port
    ).stderr


def test_rules_shows_those_of_a_service_and_whether_the_kernel_has_them(rig: Rig) -> None:
    service = rig.service([rig.a1, rig.b1], type="NodePort")
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    name = f"{service.object['metadata']['namespace']}/{service.object['metadata']['name']}"

    def rules(which: str) -> str:
        done = weir(rig.node_a, rig, "rules", "--node-name=node-a", which)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = rules(name)
    assert "compared with the kernel" in shown and "MISSING" not in shown
    assert f"{service.cluster_ip()} . tcp . 80 : goto lb-tcp-2" in shown
    assert rules(str(service.node_port())) == shown
    rig.proxy.stop()
    try:
        element = f"{{ {service.cluster_ip()} . tcp . 80 : goto lb-tcp-2 }}"
        rig.node_a.namespace.run("nft", f"delete element ip weir inside {element}")
        assert rules(name).count("MISSING") == 1
    finally:
        rig.proxy.start()
        rig.proxy.wait_ready()
    done = weir(rig.node_a, rig, "rules", "--node-name=node-a", "nowhere/nothing")
    assert (done.returncode, "Service nowhere/nothing does not exist" in done.stderr) == (1, True)


def test_what_is_missing_is_said_in_a_sentence(rig: Rig) -> None:
    """P96: NET_ADMIN is all that it takes, and it is missed in words."""
    free = ("--healthz-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0")
    drop = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    done = weir(rig.node_a, rig, "--node-name=node-a", *free, prefix=drop)
    assert done.returncode == 1 and "NET_ADMIN" in done.stderr, done.stderr
    done = weir(rig.node_a, rig)
    assert done.returncode == 1 and "--node-name" in done.stderr
    for flags, words in (
        ("--nodeport-addresses=10.0.0.0/33", "is no CIDR"),
        ("--masquerade-mark=0x4000", "kube-proxy"),
        ("--min-sync-period=soon", "expected a time"),
    ):
        done = weir(rig.node_a, rig, "--node-name=node-a", flags)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_two_services_of_one_node_port_seen_in_transit(rig: Rig) -> None:
    """Of two that claim a frontend the older has it; when it lets go, the other one has it at once."""
    shared = "192.0.2.77"
    rig.route(shared)
    first = rig.service([rig.a1], externalIPs=[shared])
    rig.expect(rig.outside, shared, 80, ("a1", "outside"))
    time.sleep(1.1)  # Kubernetes tells the age of objects in whole seconds
    second = rig.service([rig.b1], externalIPs=[shared])
    rig.expect(rig.caller, second.cluster_ip(), 80, ("b1", "caller"))
    rig.stays(rig.outside, shared, 80, ("a1", "outside"))
    first.delete()
    rig.expect(rig.outside, shared, 80, ("b1", "node-a"))


def test_a_service_that_flaps_ten_times_a_second_disturbs_nobody(rig: Rig) -> None:
    calm, restless = rig.service([rig.b1]), rig.service([rig.a1, rig.b1])
    rig.expect(rig.caller, calm.cluster_ip(), 80, ("b1", "caller"))
    for round in range(30):
        restless.set_endpoints([rig.a1, rig.b1] if round % 2 else [])
        assert rig.question(rig.caller).ask(calm.cluster_ip(), 80).server == "b1"
        time.sleep(0.1)
    rig.expect(rig.caller, restless.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
    restless.set_endpoints([])
    rig.expect(rig.caller, restless.cluster_ip(), 80, REFUSED)


def test_a_node_of_ours_has_room_for_connections_and_is_liberal_with_windows(rig: Rig) -> None:
    """P65, P66: the settings of a network namespace; beside kube-proxy they are its business."""
    values = {
        name: rig.node_a.namespace.run("cat", f"/proc/sys/net/netfilter/nf_conntrack_tcp_{name}").strip()
        for name in ("be_liberal", "timeout_established", "timeout_close_wait")
    }
    assert values == {"be_liberal": "1", "timeout_established": "86400", "timeout_close_wait": "3600"}


@pytest.mark.parametrize("liberal", [True, False], ids=["as weir sets it", "as the kernel has it"])
def test_a_segment_out_of_the_window_is_translated_if_the_node_is_liberal(rig: Rig, liberal: bool) -> None:
    """P66, kubernetes#74839: untranslated, it would come from an address that the client never called."""
    service = rig.service([rig.a1], type="NodePort")
    address, port = rig.node_a.address(4), service.node_port()
    rig.expect(rig.outside, address, port, ("a1", "outside"))
    question = rig.question(rig.outside)
    rig.node_a.namespace.sysctl(netfilter__nf_conntrack_tcp_be_liberal=int(liberal))
    try:
        with (
            segments.sniffer(rig.a1) as at_pod,
            segments.sniffer(rig.outside) as at_client,
            question.open(address, port) as flow,
        ):
            question.on(flow)
            asked = next(segment for segment in segments.seen(at_pod) if segment.payload and segment.target == 8080)
            segments.seen(at_client)
            segments.send(rig.a1, asked.answer(beyond=1_000_000))
            time.sleep(0.3)
            sources = {segment.source for segment in segments.seen(at_client)}
            assert sources == {address if liberal else rig.a1.address(4)}
    finally:
        rig.node_a.namespace.sysctl(netfilter__nf_conntrack_tcp_be_liberal=1)


def test_node_ports_follow_the_nodes_addresses(rig: Rig) -> None:
    """P24, P57: in place, without a restart."""
    service = rig.service([rig.a1], type="NodePort")
    port, new = service.node_port(), rig.vip(4)
    rig.expect(rig.outside, rig.node_a.address(4), port, ("a1", "outside"))
    path = f"/api/v1/nodes/{rig.node_a.name}"
    addresses = rig.kube.get(path)["status"]["addresses"]
    moved = [{"type": "InternalIP", "address": new}, *addresses]
    pid = rig.proxy.process.pid
    try:
        rig.kube.patch(f"{path}/status", {"status": {"addresses": moved}})
        rig.expect(rig.outside, new, port, ("a1", "outside"))
        rig.expect(rig.outside, rig.node_a.address(4), port, REFUSED)
    finally:
        rig.kube.patch(f"{path}/status", {"status": {"addresses": addresses}})
    rig.expect(rig.outside, rig.node_a.address(4), port, ("a1", "outside"))
    assert rig.proxy.process.alive and rig.proxy.process.pid == pid


def test_an_nft_that_talks_nonsense_leaves_the_last_good_rules(rig: Rig, tmp_path: Path) -> None:
    """P70: nothing of a change is half there, words say why, and it is made good as soon as it can be."""
    switch = tmp_path / "broken"
    fake = tmp_path / "nft"
    fake.write_text(f'#!/bin/sh\n[ -e {switch} ] && {{ echo "%&!" >&2; exit 3; }}\nexec /usr/sbin/nft "$@"\n')
    fake.chmod(0o755)
    rig.proxy.settings["environment"] = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    rig.proxy.restart()
    try:
        service = rig.service([rig.a1])
        rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
        switch.touch()
        pinned = rig.service([rig.a1, rig.b1], sessionAffinity="ClientIP")
        soon(lambda: "the last good rules stay" in rig.proxy.log.read_text() and "%&!" in rig.proxy.log.read_text())
        rig.stays(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
        assert rig.proxy.process.alive
        switch.unlink()
        soon(lambda: rig.question(rig.caller).ask(pinned.cluster_ip(), 80).server in ("a1", "b1"), within=40)
    finally:
        switch.unlink(missing_ok=True)
        del rig.proxy.settings["environment"]
        rig.proxy.restart()


def test_a_table_that_somebody_owns_is_said_to_be(rig: Rig) -> None:
    """P78: a table with an owner can be changed by its owner alone, and goes with it."""
    rig.proxy.stop()
    assert weir(rig.node_a, rig, "--cleanup").returncode == 0
    owner = subprocess.Popen([*rig.node_a.namespace.prefix, "nft", "-i"], stdin=subprocess.PIPE, text=True)
    try:
        assert owner.stdin
        owner.stdin.write("add table ip weir { flags owner; }\n")
        owner.stdin.flush()
        soon(lambda: "weir" in rig.node_a.namespace.run("nft", "list", "tables"))
        rig.proxy.start()
        soon(lambda: "another program owns" in rig.proxy.log.read_text())
    finally:
        owner.terminate()
        owner.wait()
    service = rig.service([rig.a1])
    rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"), within=40)
