#!/usr/bin/env python3
"""The LoadBalancer part of the tutorial, on a real control plane and an emulated AWS. `make demo` runs it.

Every line that begins with `$` is a command that was run, and what follows is its output. Every line that begins
with `✓` was checked; the first that does not hold ends the demo with exit code 1. KEEP=1 leaves everything running
at the end, until Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sandbox.aws import REGION, Account, LocalStack
from sandbox.cluster import ControlPlane
from sandbox.manifests import install
from sandbox.process import StartError, wait_for
from sandbox.scene import NODES
from sandbox.weir import Weir, binary

T = TypeVar("T")

ACCOUNT = "000000000001"
ASG = "workers"
SERVICE = "/api/v1/namespaces/default/services/order"
#: No call of weir's for so long: it has nothing more to do.
QUIET_SECONDS = 2.0

STARTED = time.monotonic()
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


class Broken(Exception):
    """Something was not as promised."""


def chapter(text: str) -> None:
    print(f"\n{BOLD}[{time.monotonic() - STARTED:5.1f} s] {text}{PLAIN}", flush=True)


def expect(holds: object, promise: str) -> None:
    if not holds:
        raise Broken(promise)
    print(f"  ✓ {promise}", flush=True)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print(f"  {title}")
    for row in texts:
        print("    " + "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Demo:
    """The parts that run, and what is asked of them."""

    def __init__(self, control_plane: ControlPlane, account: Account) -> None:
        self.control_plane, self.account = control_plane, account
        self.kube = control_plane.kube

    # --- Kubernetes

    def kubectl(self, line: str) -> str:
        print(f"  {BOLD}$ kubectl {line}{PLAIN}")
        output = self.control_plane.kubectl(*shlex.split(line))
        print("".join(f"    {part}\n" for part in output.rstrip().splitlines()), end="", flush=True)
        return output

    def service(self) -> dict[str, Any] | None:
        return self.kube.find(SERVICE)

    def hostname(self) -> str | None:
        ingress = (self.service() or {}).get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
        return ingress[0].get("hostname")

    def sync_nodes(self) -> None:
        """Makes the Node objects those of the instances that run: what kubelets and the cloud's node controller do."""
        wanted = {node["metadata"]["name"]: node for node in self.account.node_manifests()}
        present = {node["metadata"]["name"] for node in self.kube.list(NODES)}
        for name in wanted.keys() - present:
            self.kube.create(NODES, wanted[name])
        for name in present - wanted.keys():
            self.kube.delete(f"{NODES}/{name}")

    # --- AWS

    def balancers(self) -> list[dict[str, Any]]:
        return self.account.elbv2.describe_load_balancers()["LoadBalancers"]

    def target_groups(self) -> list[dict[str, Any]]:
        return self.account.elbv2.describe_target_groups()["TargetGroups"]

    def listeners(self, balancer: str) -> list[dict[str, Any]]:
        return self.account.elbv2.describe_listeners(LoadBalancerArn=balancer)["Listeners"]

    def targets(self, group: str) -> dict[str, str]:
        """Registered instances and their health."""
        health = self.account.elbv2.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
        return {row["Target"]["Id"]: row["TargetHealth"]["State"] for row in health}

    def sources(self) -> list[dict[str, Any]]:
        answer = self.account.autoscaling.describe_traffic_sources(AutoScalingGroupName=ASG)
        return answer["TrafficSources"]

    def members(self) -> set[str]:
        return set(self.account.workers.members(ASG))

    def security_groups(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The nodes' own group, and those that weir made."""
        groups = self.account.ec2.describe_security_groups()["SecurityGroups"]
        nodes = f"{self.account.cluster}-nodes"
        made = [group for group in groups if group["GroupName"] not in (nodes, "default")]
        return next(group for group in groups if group["GroupName"] == nodes), made

    def wait_quiet(self) -> None:
        last, since = weir_mark(self.account), time.monotonic()
        deadline = since + 30
        while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < deadline:
            time.sleep(0.2)
            if (mark := weir_mark(self.account)) != last:
                last, since = mark, time.monotonic()

    def show_targets(self, group: str, title: str) -> None:
        zones = {i["InstanceId"]: i["Placement"]["AvailabilityZone"] for i in self.account.workers.instances()}
        rows = [(target, zones.get(target, "-"), state) for target, state in sorted(self.targets(group).items())]
        table(title, ("INSTANCE", "ZONE", "HEALTH"), rows)

    # --- the story

    def deploy(self) -> None:
        chapter("A deployment, and its Service of type LoadBalancer")
        self.kubectl("get nodes")
        self.kubectl("create deployment order --image=nginx --port=8080")
        self.kubectl("expose deployment order --type=LoadBalancer --port=8080 --target-port=8080")
        service = self.service() or {}
        chosen = service["spec"].get("loadBalancerClass")
        expect(chosen == "weir.dev/nlb", "the admission policy gave the Service weir's class: weir.dev/nlb")
        hostname = within(20, self.hostname, "the Service to get a hostname")
        output = self.kubectl("get service order")
        expect(hostname in output, f"EXTERNAL-IP is {hostname}")

    def look_at_aws(self) -> str:
        chapter("What AWS has now")
        self.wait_quiet()
        balancers, groups = self.balancers(), self.target_groups()
        rows = [(b["LoadBalancerName"], b["Type"], b["Scheme"], b["State"]["Code"]) for b in balancers]
        table("load balancers", ("NAME", "TYPE", "SCHEME", "STATE"), rows)
        expect(len(balancers) == 1 and balancers[0]["Type"] == "network", "one Network Load Balancer")
        expect(balancers[0]["DNSName"].lower() == self.hostname(), "its DNS name is the Service's EXTERNAL-IP")

        listeners = self.listeners(balancers[0]["LoadBalancerArn"])
        names = {group["TargetGroupArn"]: group["TargetGroupName"] for group in groups}
        rows = [(row["Protocol"], row["Port"], names[row["DefaultActions"][0]["TargetGroupArn"]]) for row in listeners]
        table("listeners", ("PROTOCOL", "PORT", "TARGET GROUP"), rows)
        expect([row["Port"] for row in listeners] == [8080], "one listener, on port 8080")

        node_port = ((self.service() or {})["spec"]["ports"][0])["nodePort"]
        rows = [
            (
                group["TargetGroupName"],
                f"{group['Protocol']} {group['Port']}",
                f"{group['HealthCheckProtocol']} {group['HealthCheckPort']}{group.get('HealthCheckPath', '')}",
            )
            for group in groups
        ]
        table("target groups", ("NAME", "TARGETS' PORT", "HEALTH CHECK"), rows)
        expect([group["Port"] for group in groups] == [node_port], f"one target group, on the NodePort {node_port}")
        group = groups[0]["TargetGroupArn"]

        sources = self.sources()
        rows = [(ASG, names.get(row["Identifier"], row["Identifier"]), row["State"]) for row in sources]
        table("traffic sources", ("AUTO SCALING GROUP", "TARGET GROUP", "STATE"), rows)
        expect([row["Identifier"] for row in sources] == [group], "the target group is a traffic source of the workers")
        self.show_targets(group, "registered instances")
        expect(set(self.targets(group)) == self.members(), "every worker is registered, by Auto Scaling itself")

        nodes, made = self.security_groups()
        rows = [(g["GroupName"], describe(g["IpPermissions"])) for g in [*made, nodes]]
        table("security groups", ("NAME", "ADMITS"), rows)
        expect(nodes["IpPermissions"], "the nodes admit the load balancers' group to the NodePorts and the health port")

        calls = self.account.calls()
        writes = [call["operation"] for call in calls if not call["operation"].startswith(("Describe", "Get", "List"))]
        print(f"  weir's {len(writes)} AWS writes so far: {', '.join(writes)}")
        return group

    def scale(self, group: str) -> None:
        for size, what in ((6, "out"), (2, "in")):
            chapter(f"The Auto Scaling group scales {what}: {len(self.members())} → {size}")
            self.wait_quiet()
            mark = self.account.mark()
            members = set(self.account.workers.scale(ASG, size))
            self.sync_nodes()
            self.kubectl("get nodes")
            within(20, lambda: set(self.targets(group)) == members, "the targets to follow the instances")
            self.show_targets(group, "registered instances")
            expect(len(members) == size, f"the {size} workers, and nobody else, are the targets")
            time.sleep(QUIET_SECONDS)
            calls = [call["operation"] for call in self.account.calls(since=mark)]
            expect(not calls, f"weir made no AWS call meanwhile{': ' + ', '.join(calls) if calls else ''}")

    def events(self) -> None:
        chapter("What the Service's owner was told")
        output = self.kubectl("events --for service/order")
        expect("LoadBalancerReady" in output, "an Event says that the load balancer is ready")

    def delete(self) -> None:
        chapter("The Service goes, and everything with it")
        self.kubectl("delete service order")
        self.kubectl("delete deployment order")
        within(20, lambda: self.service() is None, "the Service to be gone")
        nodes, made = within(10, self.shared_gone, "the shared security group and the nodes' rules to be gone")
        found = {
            "load balancers": [row["LoadBalancerName"] for row in self.balancers()],
            "target groups": [row["TargetGroupName"] for row in self.target_groups()],
            "traffic sources": [row["Identifier"] for row in self.sources()],
            "security groups of weir": [row["GroupName"] for row in made],
            "rules in the nodes' security group": nodes["IpPermissions"],
        }
        for what, left in found.items():
            expect(not left, f"no {what} left{': ' + str(left) if left else ''}")

    def shared_gone(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        nodes, made = self.security_groups()
        return None if made or nodes["IpPermissions"] else (nodes, made)


def weir_mark(account: Account) -> int:
    """Like `Account.mark`, of weir's own calls: the demo's looks at AWS are no sign of work."""
    return max((call["n"] for call in account.calls()), default=0)


def within(seconds: float, check: Callable[[], T | None], what: str) -> T:
    try:
        return wait_for(check, seconds, what, pause=0.1)
    except TimeoutError as error:
        raise Broken(str(error)) from None


def describe(rules: list[dict[str, Any]]) -> str:
    """Inbound rules on one line."""
    parts = []
    for rule in rules:
        ports = f"{rule['IpProtocol']} {rule.get('FromPort', '')}"
        if rule.get("ToPort") != rule.get("FromPort"):
            ports += f"-{rule['ToPort']}"
        origins = [row["CidrIp"] for row in rule.get("IpRanges", [])]
        origins += [row["GroupId"] for row in rule.get("UserIdGroupPairs", [])]
        parts.append(f"{ports} from {', '.join(origins)}")
    return "; ".join(sorted(parts)) or "nobody"


def keep(demo: Demo, weir: Weir) -> None:
    chapter("KEEP is set: everything stays until Ctrl-C. In another terminal:")
    kubectl = demo.control_plane.binaries / "kubectl"
    print(f"    export KUBECONFIG={demo.control_plane.kubeconfig}")
    print(f"    alias kubectl={kubectl}")
    print(f"    export AWS_ENDPOINT_URL={demo.account.localstack.endpoint} AWS_REGION={REGION}")
    print(f"    export AWS_ACCESS_KEY_ID={ACCOUNT} AWS_SECRET_ACCESS_KEY=test")
    print(f"    curl http://{weir.address}/metrics", flush=True)
    while weir.alive:
        time.sleep(0.5)
    raise Broken("weir keeps running")


def run(directory: Path, parts: ExitStack) -> None:
    chapter("Starting: LocalStack, etcd, kube-apiserver, kube-controller-manager")
    account = Account(parts.enter_context(LocalStack(directory / "localstack")), ACCOUNT)
    control_plane = parts.enter_context(ControlPlane(directory / "control-plane"))
    account.seed(workers=3)
    demo = Demo(control_plane, account)
    demo.sync_nodes()
    files = install(control_plane)
    print(f"  applied {', '.join(f'manifests/{path.name}' for path in files)}")
    # Not as an administrator: with the rights of the installed role, which have to be enough.
    token = control_plane.kube.service_account_token("weir-system", "weir-controller")
    kubeconfig = control_plane.write_kubeconfig("weir", token)
    endpoint = account.localstack.endpoint
    weir = Weir(directory / "weir", kubeconfig, endpoint, ACCOUNT, account.cluster, "--leader-elect=true")
    parts.callback(weir.stop)
    print(f"  started weir controller --cluster-name={account.cluster}, as ServiceAccount weir-system/weir-controller")
    try:
        weir.wait_ready()
        demo.deploy()
        group = demo.look_at_aws()
        demo.scale(group)
        demo.events()
        demo.delete()
        chapter("Everything was as promised.")
        if os.environ.get("KEEP", "0") not in ("", "0"):
            try:
                keep(demo, weir)
            except KeyboardInterrupt:
                print()
        expect(weir.stop() == 0, "weir ends in order")
    except (Broken, StartError, RuntimeError):
        print(f"\nThe end of weir's log:\n{weir.tail(15)}", file=sys.stderr)
        raise


def terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    if not binary().is_file():
        print(f"{binary()} is missing: run `make build`", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, terminated)
    with tempfile.TemporaryDirectory(prefix="weir-demo-") as scratch, ExitStack() as parts:
        try:
            run(Path(scratch), parts)
        except Broken as broken:
            print(f"\n✗ not as promised: {broken}", file=sys.stderr)
            return 1
        except StartError as error:
            print(f"\n✗ {error}", file=sys.stderr)
            return 1
        except RuntimeError as error:  # kubectl
            print(f"\n✗ {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
