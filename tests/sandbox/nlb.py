"""The data path that the emulated AWS lacks: Network Load Balancers that forward to nodes of the fabric.

    internet ──── nlb ════ fabric ════ nodes        internet  203.0.113.0/24, behind nlb
                  one address a load balancer       nlb       forwards, and checks the targets' health

Load balancers, listeners, target groups and registered targets are read from the emulator every moment; what weir's
controller did there is all that is known here. As in AWS, a connection goes to one healthy target, to any registered
one if none is healthy, and the client's address arrives there unless the target group says otherwise.

Simpler than AWS: one address a load balancer and no zones, IPv4 only, security groups are not asked, and health checks
come `CHECK_SECONDS` apart instead of 5 to 300.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from sandbox.aws import Account
from sandbox.fabric import Addresses, Host, Node
from sandbox.process import wait_for
from sandbox.wire import Question, get
from sandbox.workers import Workers

CHECK_SECONDS = 0.3
#: Who may be asked for health takes no longer than this.
CHECK_PATIENCE = 0.5

_PROTOCOLS = {"TCP": ["tcp"], "TLS": ["tcp"], "UDP": ["udp"], "TCP_UDP": ["tcp", "udp"]}
_INTERNET: Addresses = {4: "203.0.113.10", 6: "fd00:113::10"}
_GATEWAY: Addresses = {4: "203.0.113.1", 6: "fd00:113::1"}
_INTERNET_RANGE = "203.0.113.0/24"


@dataclass(frozen=True)
class Target:
    """A registered instance and the port that its target group, or its registration, says."""

    group: str
    instance: str
    port: int


class Health:
    """The checks of one target: as many in a row as its group asks for turn it."""

    def __init__(self) -> None:
        self.healthy = False
        self._against = 0

    def note(self, good: bool, group: dict[str, Any]) -> None:
        self._against = 0 if good == self.healthy else self._against + 1
        needed = group["UnhealthyThresholdCount" if self.healthy else "HealthyThresholdCount"]
        if self._against >= needed:
            self.healthy, self._against = good, 0


class LoadBalancers:
    """Context manager: inside it the account's load balancers forward. `internet` is a client outside the VPC."""

    def __init__(self, workers: Workers, account: Account) -> None:
        self._workers, self._account = workers, account
        self._elbv2 = account.client("elbv2")  # boto3 clients are no good in two threads that make them
        self._addresses: dict[str, str] = {}
        self._health: dict[Target, Health] = defaultdict(Health)
        self._rules = ""
        self._ended = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        fabric = self._workers.fabric
        self.host: Host = fabric.add_host("nlb")
        self.host.namespace.sysctl(ipv4__ip_forward=1)
        self.internet: Host = fabric.add_client_behind(self.host, "internet", _INTERNET, _GATEWAY)
        self._thread = threading.Thread(target=self._run, name="nlb", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def address(self, hostname: str) -> str:
        """What the public DNS says about a load balancer's name."""
        try:
            return wait_for(lambda: self._addresses.get(hostname), 10, f"{hostname} to be known")
        except TimeoutError as late:
            raise late from self._failure

    def healthy(self, hostname: str) -> set[str]:
        """The names of the nodes that pass the checks of every target group behind a load balancer."""
        rows: dict[str, list[bool]] = defaultdict(list)
        for target in self._targets_of(hostname):
            if node := self._workers.instances.get(target.instance):
                rows[node.name].append(self._health[target].healthy)
        return {name for name, checks in rows.items() if all(checks)}

    # --- the loop

    def _run(self) -> None:
        while not self._ended.wait(CHECK_SECONDS):
            try:
                self._refresh()
            except Exception as failure:  # something changed between two reads, most likely: the next round may work
                self._failure = failure
            else:
                self._failure = None

    def _refresh(self) -> None:
        groups = {row["TargetGroupArn"]: row for row in self._elbv2.describe_target_groups()["TargetGroups"]}
        targets = {arn: self._targets(group) for arn, group in groups.items()}
        for target in [target for each in targets.values() for target in each]:
            self._health[target].note(self._passes(target, groups[target.group]), groups[target.group])
        for node in self._workers.instances.values():
            node.route(_INTERNET_RANGE, via=self.host)
        self._program(self._lines(groups, targets))

    def _targets(self, group: dict[str, Any]) -> list[Target]:
        arn = group["TargetGroupArn"]
        rows = self._elbv2.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        live = [row["Target"] for row in rows if row["TargetHealth"]["State"] != "draining"]
        return [Target(arn, row["Id"], row.get("Port") or group["Port"]) for row in live]

    def _targets_of(self, hostname: str) -> list[Target]:
        [balancer] = [row for row in self._balancers() if row["DNSName"].lower() == hostname]
        arn = balancer["LoadBalancerArn"]
        groups = self._elbv2.describe_target_groups(LoadBalancerArn=arn)["TargetGroups"]
        return [target for group in groups for target in self._targets(group)]

    def _balancers(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._elbv2.describe_load_balancers()["LoadBalancers"]
        return [row for row in rows if row["State"]["Code"] == "active"]

    def _passes(self, target: Target, group: dict[str, Any]) -> bool:
        node = self._workers.instances.get(target.instance)
        if node is None:
            return False
        asked = group["HealthCheckPort"]
        port = target.port if asked == "traffic-port" else int(asked)
        if group["HealthCheckProtocol"] == "TCP":
            return self._accepts(node, port)
        answer = get(self.host, node.address(4), port, group["HealthCheckPath"], patience=CHECK_PATIENCE)
        return answer is not None and 200 <= answer.status < 400

    def _accepts(self, node: Node, port: int) -> bool:
        try:
            with closing(Question(self._workers.fabric, self.host).open(node.address(4), port, CHECK_PATIENCE)):
                return True
        except OSError:
            return False

    # --- rules

    def _lines(self, groups: dict[str, Any], targets: dict[str, list[Target]]) -> list[str]:
        lines = []
        known = {}
        for balancer in self._balancers():
            name = balancer["DNSName"].lower()
            known[name] = self._addresses.get(name) or self._new_address()
            arn = balancer["LoadBalancerArn"]
            for listener in self._elbv2.describe_listeners(LoadBalancerArn=arn)["Listeners"]:
                [action] = listener["DefaultActions"]
                group = groups[action["TargetGroupArn"]]
                ends = self._ends(targets[group["TargetGroupArn"]])
                if ends:
                    lines += self._forward(known[name], listener, ends, group)
        for name in self._addresses.keys() - known.keys():
            self.host.remove_address(self._addresses[name])
        if known.keys() != self._addresses.keys():
            self.internet.namespace.hosts(known)
        self._addresses = known
        return lines

    def _new_address(self) -> str:
        address = self._workers.fabric.spare_address(4)
        self.host.add_address(address)
        return address

    def _ends(self, targets: list[Target]) -> list[str]:
        """Where connections go: address and port of each healthy target, or of all."""
        reachable = [target for target in targets if target.instance in self._workers.instances]
        chosen = [target for target in reachable if self._health[target].healthy] or reachable
        return [f"{self._workers.instances[target.instance].address(4)} . {target.port}" for target in chosen]

    def _forward(self, address: str, listener: dict[str, Any], ends: list[str], group: dict[str, Any]) -> list[str]:
        choice = ", ".join(f"{number} : {end}" for number, end in enumerate(ends))
        mark = "" if self._keeps_client(group["TargetGroupArn"]) else " meta mark set 1"
        return [
            f"ip daddr {address} {protocol} dport {listener['Port']}{mark} "
            f"dnat ip addr . port to numgen random mod {len(ends)} map {{ {choice} }}"
            for protocol in _PROTOCOLS[listener["Protocol"]]
        ]

    def _keeps_client(self, arn: str) -> bool:
        rows = self._elbv2.describe_target_group_attributes(TargetGroupArn=arn)["Attributes"]
        return {row["Key"]: row["Value"] for row in rows}.get("preserve_client_ip.enabled") != "false"

    def _program(self, lines: list[str]) -> None:
        """One transaction; connections of before are in conntrack and stay with their targets."""
        rules = "\n".join(
            [
                "table ip nlb",
                "delete table ip nlb",
                "table ip nlb {",
                " chain listeners {",
                "  type nat hook prerouting priority -100",
                *(f"  {line}" for line in lines),
                " }",
                " chain sources {",
                "  type nat hook postrouting priority 100",
                "  meta mark 1 masquerade",
                " }",
                "}\n",
            ]
        )
        if rules != self._rules:
            self.host.namespace.run("nft", "-f", "-", stdin=rules)
            self._rules = rules
