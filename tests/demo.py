#!/usr/bin/env python3
"""The tutorial from start to end, on a real control plane, an emulated AWS and nodes in network namespaces, without
any kube-proxy: `weir node` forwards on every node, `weir controller` makes the load balancer. `make demo` runs it.

                     internet ── NLB            weir controller ── AWS (LocalStack)
                                  │                    │
    ═══════╤══════════╤═══════════╧═══════ VPC         │
        worker 1   worker 2   worker 3           kube-apiserver
        weir node  weir node  weir node
        order-…    order-…    client, CoreDNS

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

from sandbox import netns
from sandbox.aws import REGION, Account, LocalStack
from sandbox.cluster import ControlPlane
from sandbox.dns import ClusterDns
from sandbox.fabric import Host, Node, Pod
from sandbox.kubelet import Kubelets
from sandbox.manifests import install
from sandbox.nlb import LoadBalancers
from sandbox.process import StartError, wait_for
from sandbox.scene import NODES
from sandbox.weir import Weir, binary
from sandbox.workers import Workers

T = TypeVar("T")

ACCOUNT = "000000000001"
ASG = "workers"
SERVICE = "/api/v1/namespaces/default/services/order"
ZONE_LABEL = "topology.kubernetes.io/zone"
#: New connections of one look at who answers. With two pods, one in 32,768 that only one of them does.
CONNECTIONS = 16
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

    def __init__(self, account: Account, workers: Workers, kubelets: Kubelets) -> None:
        self.control_plane, self.account = workers.control_plane, account
        self.workers, self.kubelets = workers, kubelets
        self.kube = workers.kube

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
        """A worker for each instance that runs: what kubelets and the cloud's node controller do."""
        wanted = {node["metadata"]["name"]: node for node in self.account.node_manifests()}
        present = {node["metadata"]["name"] for node in self.kube.list(NODES)}
        for name in wanted.keys() - present:
            self.workers.add_node(name, wanted[name]["metadata"]["labels"].get(ZONE_LABEL, ""), wanted[name])
        for name in present - wanted.keys():
            self.kubelets.lose(name)
            self.kube.delete(f"{NODES}/{name}")
            self.workers.remove_node(name)
        self.workers.wait_ready()

    def nodes(self) -> list[Node]:
        """Workers in the order in which they came."""
        return [self.workers.fabric.nodes[name] for name in self.workers.proxies]

    # --- connections

    def ask(self, source: Host, url: str, answered_by: set[str] | None, count: int = CONNECTIONS) -> None:
        """So many new connections; who answered how often is shown while it happens."""
        print(f"  {BOLD}{source.name}$ curl {url}{PLAIN}   ({count} times)")
        counts: dict[str, int] = {}
        for _ in range(count):
            answer = source.namespace.run("curl", "--silent", "--show-error", "--max-time", "5", url)
            counts[answer.split()[0]] = counts.get(answer.split()[0], 0) + 1
            if sys.stdout.isatty():
                print("\r    " + "   ".join(f"{name} {'▇' * times}" for name, times in sorted(counts.items())), end="")
        if sys.stdout.isatty():
            print()
        else:
            for name, times in sorted(counts.items()):
                print(f"    {name} {'▇' * times} {times}")
        expect(answered_by is None or counts.keys() == answered_by, f"answered by {' and '.join(sorted(counts))}")

    def fails(self, source: Host, url: str, promise: str) -> None:
        """curl must not get through; what it says is shown."""
        print(f"  {BOLD}{source.name}$ curl {url}{PLAIN}")
        try:
            source.namespace.run("curl", "--silent", "--show-error", "--max-time", "3", url)
        except Exception as error:
            print(f"    {str(error).strip().rpartition(f'{url}: ')[2]}")
            print(f"  ✓ {promise}", flush=True)
            return
        raise Broken(promise)

    def weir_node(self, node: Node, *arguments: str) -> str:
        print(f"  {BOLD}{node.name}$ weir node {' '.join(arguments)}{PLAIN}")
        environment = f"KUBECONFIG={self.workers.kubeconfig(node)}"
        command = ("env", environment, f"NODE_NAME={node.name}", str(binary()), "node", *arguments)
        output = node.namespace.run(*command)
        print("".join(f"    {part}\n" for part in output.rstrip().splitlines()), end="", flush=True)
        return output

    def pods(self) -> set[str]:
        """Names of the Pods that are Ready and not on their way out."""
        self.kubelets.check()
        pods = self.kube.list("/api/v1/namespaces/default/pods", labelSelector="app=order")
        running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
        return {pod["metadata"]["name"] for pod in running if not pod["metadata"].get("deletionTimestamp")}

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
        chapter("A deployment")
        self.kubectl("get nodes")
        self.kubectl("create deployment order --image=nginx --port=8080 --replicas=2")
        within(30, lambda: len(self.pods()) == 2, "both Pods to run")
        self.kubectl("get pods -o wide")

    def cluster_ip(self, client: Pod) -> None:
        chapter("A Service of type ClusterIP, from a client pod")
        self.kubectl("expose deployment order --type=ClusterIP --port=8080")
        address = (self.service() or {})["spec"]["clusterIP"]
        self.until_served(client, f"http://{address}:8080/")
        self.ask(client, f"http://{address}:8080/", self.pods())
        self.kubectl("delete service order")
        within(10, lambda: self.refuses(client, address), "the ClusterIP to be served no longer")
        self.fails(client, f"http://{address}:8080/", "without the Service, nobody answers on its address")

    def node_port(self, outside: Host) -> None:
        chapter("A Service of type NodePort, through a node with and a node without a pod")
        self.kubectl("expose deployment order --type=NodePort --port=8080")
        self.kubectl("get service order")
        port = (self.service() or {})["spec"]["ports"][0]["nodePort"]
        has_pod = {pod.node.name for pod in self.kubelets.pods()}
        with_pod = next(node for node in self.nodes() if node.name in has_pod)
        without = next(node for node in self.nodes() if node.name not in has_pod)
        for node, what in ((with_pod, "which runs one of the pods"), (without, "which runs none of them")):
            print(f"  {node.name}, {what}, is {node.address(4)}")
            self.until_served(outside, f"http://{node.address(4)}:{port}/")
            self.ask(outside, f"http://{node.address(4)}:{port}/", self.pods())
        chapter(f"The rules of the node for port {port}, and the way of a connection through them")
        shown = self.weir_node(without, "rules", str(port))
        expect("compared with the kernel" in shown and "MISSING" not in shown, "the kernel holds exactly these")
        way = self.weir_node(without, "trace", outside.address(4), f"{without.address(4)}:{port}")
        expect("sent to one of 2" in way, "the connection gets to one of the two pods")
        self.kubectl("delete service order")

    def until_served(self, source: Host, url: str) -> None:
        """A moment passes between `kubectl expose` and the first endpoint in the rules."""

        def check() -> bool:
            try:
                source.namespace.run("curl", "--silent", "--max-time", "1", url)
            except Exception:
                return False
            return True

        within(10, check, f"{url} to be served")

    def refuses(self, source: Host, address: str) -> bool:
        try:
            source.namespace.run("curl", "--silent", "--max-time", "1", f"http://{address}:8080/")
        except Exception:
            return True
        return False

    def load_balancer(self) -> str:
        chapter("A Service of type LoadBalancer")
        self.kubectl("expose deployment order --type=LoadBalancer --port=8080")
        service = self.service() or {}
        chosen = service["spec"].get("loadBalancerClass")
        expect(chosen == "weir.dev/nlb", "the admission policy gave the Service weir's class: weir.dev/nlb")
        hostname = within(20, self.hostname, "the Service to get a hostname")
        output = self.kubectl("get service order")
        expect(hostname in output, f"EXTERNAL-IP is {hostname}")
        return hostname

    def open_from_outside(self, balancers: LoadBalancers, hostname: str) -> None:
        chapter("The Service from outside the VPC, by the load balancer's name")
        balancers.address(hostname)
        within(30, lambda: balancers.healthy(hostname), "a worker to pass the load balancer's health check")
        self.until_served(balancers.internet, f"http://{hostname}:8080/")
        self.ask(balancers.internet, f"http://{hostname}:8080/", self.pods())

    def name(self, client: Pod) -> None:
        chapter("The Service from a pod, by its name")
        self.ask(client, "http://order:8080/", self.pods())

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

    def scale(self, group: str, keeper: Node) -> None:
        self.change_size(group, "out", 6, lambda: self.account.workers.scale(ASG, 6))
        for node in self.nodes():
            if node is not keeper:
                self.kubelets.open(node)
        newest = self.nodes()[-1]
        self.change_size(group, "in", 2, lambda: self.terminate_all_but(keeper, newest))
        within(30, lambda: len(self.pods()) == 2, "the Pods of lost workers to run elsewhere")
        self.kubectl("get pods -o wide")

    def change_size(self, group: str, what: str, size: int, change: Callable[[], object]) -> None:
        chapter(f"The Auto Scaling group scales {what}: {len(self.members())} → {size}")
        self.wait_quiet()
        mark = self.account.mark()
        change()
        self.sync_nodes()
        self.kubectl("get nodes")
        members = self.members()
        within(20, lambda: set(self.targets(group)) == members, "the targets to follow the instances")
        self.show_targets(group, "registered instances")
        expect(len(members) == size, f"the {size} workers, and nobody else, are the targets")
        time.sleep(QUIET_SECONDS)
        calls = [call["operation"] for call in self.account.calls(since=mark)]
        expect(not calls, f"weir made no AWS call meanwhile{': ' + ', '.join(calls) if calls else ''}")

    def terminate_all_but(self, *kept: Node) -> None:
        ids = {instance for instance, node in self.workers.instances.items() if node in kept}
        for instance in self.members() - ids:
            self.account.autoscaling.terminate_instance_in_auto_scaling_group(
                InstanceId=instance, ShouldDecrementDesiredCapacity=True
            )

    def events(self) -> None:
        chapter("What the Service's owner was told")
        output = self.kubectl("events --for service/order")
        expect("LoadBalancerReady" in output, "an Event says that the load balancer is ready")

    def delete(self, client: Pod, balancers: LoadBalancers, hostname: str) -> None:
        chapter("The Service goes, and everything with it")
        address = (self.service() or {})["spec"]["clusterIP"]
        self.kubectl("delete service order")
        within(20, lambda: self.service() is None, "the Service to be gone")
        within(10, lambda: self.refuses(client, address), "the nodes to forget the Service")
        self.fails(client, f"http://{address}:8080/", "its ClusterIP is nobody's any longer")
        within(10, lambda: not self.resolves(client), "the cluster's DNS to forget the name")
        self.fails(client, "http://order:8080/", "its name is gone from the cluster's DNS")
        self.fails(balancers.internet, f"http://{hostname}:8080/", "the load balancer is gone")
        self.kubectl("delete deployment order")
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

    def resolves(self, client: Pod) -> bool:
        return bool(client.namespace.run("sh", "-c", "getent hosts order || true").strip())

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


def keep(demo: Demo, weir: Weir, *hosts: Host) -> None:
    chapter("KEEP is set: everything stays until Ctrl-C. In another terminal:")
    kubectl = demo.control_plane.binaries / "kubectl"
    print(f"    export KUBECONFIG={demo.control_plane.kubeconfig}")
    print(f"    alias kubectl={kubectl}")
    print(f"    export AWS_ENDPOINT_URL={demo.account.localstack.endpoint} AWS_REGION={REGION}")
    print(f"    export AWS_ACCESS_KEY_ID={ACCOUNT} AWS_SECRET_ACCESS_KEY=test")
    print(f"    curl http://{weir.address}/metrics")
    for host in (*demo.nodes(), *hosts):
        print(f"    {' '.join(host.namespace.prefix)} …   # a command on {host.name}")
    sys.stdout.flush()
    while weir.alive:
        time.sleep(0.5)
    raise Broken("weir keeps running")


def run(directory: Path, parts: ExitStack) -> None:
    chapter("Starting: LocalStack, etcd, kube-apiserver, kube-controller-manager, nodes, CoreDNS")
    account = Account(parts.enter_context(LocalStack(directory / "localstack")), ACCOUNT)
    control_plane = parts.enter_context(ControlPlane(directory / "control-plane"))
    account.seed(workers=3)
    install(control_plane)
    print("  applied manifests/overlays/replace; as there are no kubelets, its pods run as processes")
    workers = parts.enter_context(Workers(control_plane, directory / "nodes", "weir"))
    kubelets = parts.enter_context(Kubelets(workers, "default"))
    demo = Demo(account, workers, kubelets)
    outside = workers.fabric.add_host("outside")
    demo.sync_nodes()
    print(f"  {len(demo.nodes())} workers, each with `weir node` and no kube-proxy")
    first, second, third = demo.nodes()
    kubelets.open(first)
    kubelets.open(second)
    balancers = parts.enter_context(LoadBalancers(workers, account))
    client = workers.fabric.add_pod(third, "client")
    dns = ClusterDns(workers, third)
    parts.callback(dns.close)
    dns.resolve_in(client, "default")
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
        demo.cluster_ip(client)
        demo.node_port(outside)
        hostname = demo.load_balancer()
        group = demo.look_at_aws()
        demo.open_from_outside(balancers, hostname)
        demo.name(client)
        demo.scale(group, keeper=third)
        demo.open_from_outside(balancers, hostname)
        demo.events()
        demo.delete(client, balancers, hostname)
        chapter("Everything was as promised.")
        if os.environ.get("KEEP", "0") not in ("", "0"):
            try:
                keep(demo, weir, client, outside, balancers.internet)
            except KeyboardInterrupt:
                print()
        expect(weir.stop() == 0, "weir controller ends in order")
    except (Broken, StartError, RuntimeError):
        print(f"\nThe end of weir's log:\n{weir.tail(15)}", file=sys.stderr)
        raise


def terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    if not binary().is_file():
        print(f"{binary()} is missing: run `make build`", file=sys.stderr)
        return 1
    if reason := netns.missing():
        print(f"the nodes of this demo are network namespaces: {reason}", file=sys.stderr)
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
