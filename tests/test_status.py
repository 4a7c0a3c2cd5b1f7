"""`weir status`: what a person sees of a Service, from its creation on."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import WeirFactory

from sandbox.aws import Account
from sandbox.checks import serve
from sandbox.doctor import environment, run
from sandbox.process import wait_for
from sandbox.scene import Scene
from sandbox.view import lone_instances, nodes_follow
from sandbox.weir import binary

Status = Callable[..., str]


@pytest.fixture
def status(cluster: Scene, account: Account) -> Status:
    """What `weir status` prints with these arguments."""
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)

    def show(*arguments: str) -> str:
        done = run("status", f"--cluster-name={account.cluster}", *arguments, **settled)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return show


def trees(status: Status, *arguments: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(status("--output=json", *arguments))["services"]
    return shown


def test_a_service_with_nodes_of_both_kinds(
    cluster: Scene, account: Account, weir: WeirFactory, status: Status
) -> None:
    """The tree, with an Auto Scaling group and a node in none; every line has its object in JSON."""
    [lone] = lone_instances(account)
    nodes_follow(cluster, account)
    weir()
    hostname = serve(cluster, account)
    wait_for(lambda: trees(status)[0]["loadBalancers"][0]["listeners"][0]["targetGroup"]["total"] == 4, 20, "targets")
    [tree] = trees(status)
    assert (tree["service"], tree["state"], tree["words"]) == (f"{cluster.namespace}/order", "ready", [])
    [balancer] = tree["loadBalancers"]
    assert (balancer["state"], balancer["scheme"]) == ("active", "internet-facing")
    assert balancer["zones"] == dict(zip(account.names["zones"], account.names["subnets"], strict=True))
    [listener] = balancer["listeners"]
    group = listener["targetGroup"]
    assert (listener["port"], listener["protocol"], group["healthy"], group["missing"]) == (80, "TCP", 4, [])
    direct, workers = group["sources"]
    assert (workers["autoScalingGroup"], workers["attachment"], workers["healthy"]) == ("workers", "added", 3)
    assert (direct["autoScalingGroup"], [target["instance"] for target in direct["targets"]]) == (None, [lone])
    node_port = cluster.service("order")["spec"]["ports"][0]["nodePort"]
    assert status() == (
        f"Service {cluster.namespace}/order  ready  {hostname}\n"
        f"└─ Network Load Balancer {balancer['name']}  active, internet-facing, us-east-1a, us-east-1b, us-east-1c\n"
        "   └─ listener TCP 80\n"
        f"      └─ target group {group['name']}  4 of 4 healthy, NodePort {node_port}, checked by HTTP 10256/healthz\n"
        "         ├─ registered one by one: nodes in no Auto Scaling group  1 of 1 healthy\n"
        "         └─ Auto Scaling group workers, attached  3 of 3 healthy\n"
        "\n"
    )


def test_it_only_reads_and_reads_in_batches(cluster: Scene, account: Account, weir: WeirFactory, status: Status) -> None:
    """Two calls for each Service, and a handful for all of them together."""
    controller = weir()
    names = [f"order-{number}" for number in range(12)]
    for name in names:
        cluster.expose(name)
    for name in names:
        cluster.wait_hostname(name)
    controller.stop()
    mark = account.mark()
    assert len(trees(status)) == 12
    calls = account.calls(mark)
    assert all(call["operation"].startswith("Describe") for call in calls)
    assert len(calls) <= 2 * len(names) + 8, [call["operation"] for call in calls]
    assert len(trees(status, f"{cluster.namespace}/order-3")) == 1


def test_what_is_missing_pending_refused_or_leaving(
    cluster: Scene, account: Account, weir: WeirFactory, status: Status
) -> None:
    """In words, with the last thing that the controller said."""
    assert status() == "weir looks after no Service\n"
    cluster.expose("order")
    assert "the controller has said nothing of it" in status() and "there is no load balancer yet" in status()
    account.localstack.settings(provision_seconds=6)
    controller = weir()
    cluster.wait_event("order", "Waiting")
    wait_for(lambda: "provisioning, internet-facing" in status(), 10, "a load balancer")
    assert "pending\n├─ Waiting: " in status()
    account.localstack.settings(provision_seconds=0)
    cluster.wait_hostname("order")
    controller.stop()

    key = "service.beta.kubernetes.io/aws-load-balancer-scheme"
    cluster.expose("wrong", annotations={key: "public"})
    assert f'Service {cluster.namespace}/wrong  refused\n└─ {key}: "public" is an unknown scheme' in status()
    cluster.expose("theirs", loadBalancerClass="example.com/other")
    assert "theirs" not in status()
    shown = status(f"{cluster.namespace}/theirs")
    assert "not weir's" in shown and "is example.com/other, and weir serves weir.dev/nlb" in shown

    [balancer] = account.elbv2.describe_load_balancers()["LoadBalancers"]
    account.elbv2.delete_load_balancer(LoadBalancerArn=balancer["LoadBalancerArn"])
    [tree] = trees(status, f"{cluster.namespace}/order")
    assert tree["loadBalancers"] == [] and "somebody deleted it" in tree["words"][0]
    assert len(tree["idleTargetGroups"]) == 1
    cluster.delete("order")
    assert trees(status, f"{cluster.namespace}/order")[0]["state"] == "deleting"


def test_a_service_that_is_not_there(cluster: Scene, account: Account) -> None:
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)
    done = run("status", "--cluster-name=demo", "shop/order", **settled)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "weir: the controller's settings are taken to be the defaults: Deployment weir-system/weir-controller does not exist",
        "weir: there is no Service shop/order; `weir doctor` may tell more",
    ]
    done = run("status", **settled)
    assert done.returncode == 1 and done.stderr.startswith("weir: --cluster-name: not given"), done.stderr
    del settled["AWS_REGION"]
    done = run("status", "--cluster-name=demo", **settled)
    assert done.stdout == "weir looks after no Service\n", "the Region is the nodes'"


@pytest.mark.parametrize("command", [["status"], ["status", "--watch", "--interval=200ms"], ["plan"], ["gc"], ["doctor"]])
def test_a_reader_who_goes_away_is_no_failure(cluster: Scene, account: Account, command: list[str]) -> None:
    """As with `| head -1`; what `--watch` would go on with has nobody to read it."""
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [binary(), *command, "--cluster-name=demo"],
        env={"PATH": os.environ["PATH"], **settled},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert "roken pipe" not in done.stderr and "panicked" not in done.stderr, done.stderr
    assert done.returncode == 0 or command == ["doctor"], done.stderr


def test_it_is_live_with_watch(cluster: Scene, account: Account, weir: WeirFactory) -> None:
    """A line of JSON whenever something has changed, and none in between."""
    settled = environment(cluster.control_plane.kubeconfig, account.localstack.endpoint, account.id)
    command = [binary(), "status", "--cluster-name=demo", "--watch", "--interval=200ms", "--output=json"]
    watching = subprocess.Popen(
        command, env={"PATH": os.environ["PATH"], **settled}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert watching.stdout
        states = [state_in(watching.stdout.readline())]
        weir()
        cluster.expose("order")
        end = threading.Timer(60, watching.kill)
        end.start()
        while states[-1] != "ready" and (line := watching.stdout.readline()):
            states.append(state_in(line))
        end.cancel()
        assert states[-1] == "ready", states
        assert states[0] is None and "pending" in states
    finally:
        watching.terminate()
        watching.wait()


def state_in(line: str) -> str | None:
    """The state of the only Service in a look."""
    services = json.loads(line)["services"]
    return services[0]["state"] if services else None
