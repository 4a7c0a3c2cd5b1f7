"""`weir plan` says beforehand what the controller does then, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WeirFactory

from sandbox.aws import Account
from sandbox.checks import (
    ANNOTATION,
    CALM,
    counted,
    is_served,
    serve,
    target_groups,
    wait_nothing_left,
    wait_rest,
    writes,
)
from sandbox.process import wait_for
from sandbox.question import FAILED, ISOLATED, NOTHING, PENDING, Answer, Asker
from sandbox.scene import LOAD_BALANCER_CLASS, Scene

#: The call of each step, by how its words begin.
CALLS = {
    "create security group": "CreateSecurityGroup",
    "allow in": "AuthorizeSecurityGroupIngress",
    "no longer allow in": "RevokeSecurityGroupIngress",
    "delete security group": "DeleteSecurityGroup",
    "create internet-facing load balancer": "CreateLoadBalancer",
    "create internal load balancer": "CreateLoadBalancer",
    "delete load balancer": "DeleteLoadBalancer",
    "create target group": "CreateTargetGroup",
    "check health": "ModifyTargetGroup",
    "delete target group": "DeleteTargetGroup",
    "create listener": "CreateListener",
    "set listener": "ModifyListener",
    "delete listener": "DeleteListener",
    "set attributes of load balancer": "ModifyLoadBalancerAttributes",
    "set attributes of target group": "ModifyTargetGroupAttributes",
    "attach target group": "AttachTrafficSources",
    "detach target group": "DetachTrafficSources",
}


class Planner:
    """Asks for plans of the test's cluster, and sees to it that none of them changes anything."""

    def __init__(self, asker: Asker, cluster: Scene, account: Account) -> None:
        self._asker, self._cluster, self._account = asker, cluster, account

    def __call__(self, *arguments: str, stdin: str = "", **variables: str) -> Answer:
        before, mark = self._services(), self._account.mark()
        settings = [] if "--snapshot" in arguments else [f"--cluster-name={self._account.cluster}"]
        answer = self._asker.ask("plan", *settings, *arguments, stdin=stdin, **variables)
        assert writes(self._account, mark) == []
        assert self._services() == before
        return answer

    def of(self, manifest: dict[str, Any]) -> Answer:
        """The plan of a Service in a file."""
        return self("--output=json", "-f", "-", stdin=json.dumps(manifest))

    def _services(self) -> list[dict[str, Any]]:
        return self._cluster.kube.list("/api/v1/services")


@pytest.fixture
def plan(cluster: Scene, account: Account, installed: list[Path], tmp_path: Path) -> Planner:
    return Planner(Asker(cluster.control_plane, account, tmp_path), cluster, account)


def manifest(cluster: Scene, name: str, *ports: tuple[str, int], **annotations: str) -> dict[str, Any]:
    """What a person writes: neither class nor NodePorts."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "annotations": {ANNOTATION + key.replace("_", "-"): value for key, value in annotations.items()},
        },
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": name},
            "ports": [{"name": port, "port": number} for port, number in ports],
        },
    }


def planned_calls(*parts: list[dict[str, Any]]) -> dict[str, int]:
    """How many calls of each kind these steps are."""
    counts: dict[str, int] = {}
    for step in (step for part in parts for step in part if step["kind"] != "wait"):
        [call] = {call for words, call in CALLS.items() if step["text"].startswith(words)}
        counts[call] = counts.get(call, 0) + 1
    return counts


def applied(cluster: Scene, account: Account, body: dict[str, Any]) -> dict[str, int]:
    """Applies a file as a person would, and counts weir's writes once it rests; target groups share calls."""
    mark = account.mark()
    cluster.control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    wait_for(lambda: writes(account, mark), 20, "weir to begin")
    wait_for(lambda: cluster.hostname(body["metadata"]["name"]), 30, "a hostname")
    wait_rest(account, 3.0)
    counts = counted(writes(account, mark))
    for call in ("AttachTrafficSources", "DetachTrafficSources"):
        rows = [row["request"]["TrafficSources"] for row in writes(account, mark) if row["operation"] == call]
        counts[call] = sum(map(len, rows))
    return dict(+counts)


def test_what_is_planned_from_a_file_is_what_the_controller_does(
    cluster: Scene, account: Account, weir: WeirFactory, plan: Planner
) -> None:
    """A Service's life: made, one port more and others changed, another scheme, and nothing in between."""
    weir(CALM)
    body = manifest(cluster, "order", ("web", 80), ("tls", 443))
    new = plan.of(body)
    line = new.service("order")
    assert (new.code, line["action"], line["file"]) == (PENDING, "create", "standard input")
    assert len(line["assumed"]) == 3, line["assumed"]
    assert applied(cluster, account, body) == planned_calls(line["steps"], new.report["shared"])
    everything = plan()
    assert (everything.code, everything.text.splitlines()[-1]) == (NOTHING, "Services: 1 with nothing to do")
    assert plan.of(body).code == NOTHING, "class, UID and NodePorts are those of the Service"

    # One keeps its number, one its name, one is new; a health check and an attribute change in place.
    node_ports = {port["name"]: port["nodePort"] for port in cluster.service("order")["spec"]["ports"]}
    body = manifest(
        cluster,
        "order",
        ("web", 80),
        ("tls", 8443),
        ("more", 81),
        healthcheck_interval="20",
        attributes="load_balancing.cross_zone.enabled=true",
    )
    change = plan.of(body)
    line = change.service("order")
    assert (change.code, line["action"], line["assumed"]) == (
        PENDING,
        "change",
        ["the API server allocates the NodePort of port 81"],
    )
    texts = "\n".join(step["text"] for step in line["steps"])
    assert f"for TCP {node_ports['tls']}\n" in texts and "-81-<hash> for TCP <allocated at creation>\n" in texts
    assert "(interval: 10 s → 20 s)" in texts
    assert applied(cluster, account, body) == planned_calls(line["steps"])
    kept = {port["name"]: port["nodePort"] for port in cluster.service("order")["spec"]["ports"]}
    assert kept.items() >= node_ports.items()

    body["metadata"]["annotations"][ANNOTATION + "scheme"] = "internal"
    replacement = plan.of(body)
    line = replacement.service("order")
    assert (replacement.code, line["action"]) == (PENDING, "replace")
    assert any("hostname" in note for note in line["notes"])
    assert applied(cluster, account, body) == planned_calls(line["steps"])
    assert plan.of(body).code == NOTHING

    cluster.delete("order")
    wait_nothing_left(account)
    assert plan().code == NOTHING


def test_while_the_controller_is_away(cluster: Scene, account: Account, weir: WeirFactory, plan: Planner) -> None:
    """What others changed, what is refused, what is to go; the same without any network; and who asks wrongly."""
    controller = weir(CALM)
    for name in ("order", "cart", "late"):
        serve(cluster, account, name)
    assert controller.stop() == 0
    group = target_groups(account)[0]
    owner = {
        tag["Value"].rpartition("/")[2]
        for row in account.elbv2.describe_tags(ResourceArns=[group["TargetGroupArn"]])["TagDescriptions"]
        for tag in row["Tags"]
        if tag["Key"] == "weir.dev/service"
    }.pop()
    account.elbv2.modify_target_group(TargetGroupArn=group["TargetGroupArn"], HealthCheckPort="9999")
    account.autoscaling.detach_traffic_sources(
        AutoScalingGroupName="workers", TrafficSources=[{"Identifier": group["TargetGroupArn"], "Type": "elbv2"}]
    )
    cluster.expose("wrong", annotations={ANNOTATION + "scheme": "public"})
    cluster.delete("late" if owner != "late" else "cart")
    going = "late" if owner != "late" else "cart"

    snapshot = cluster.control_plane.directory / f"{cluster.namespace}.json"
    answer = plan("--output=json", "--save-snapshot", str(snapshot))
    assert answer.code == FAILED, "one is refused"
    changed = [step["text"] for step in answer.service(owner)["steps"]]
    assert answer.service(owner)["action"] == "change"
    name = group["TargetGroupName"]
    assert changed == [
        f"check health of target group {name} by HTTP on 10256 (port: 9999 → 10256)",
        f"attach target group {name} to Auto Scaling group workers",
    ]
    assert answer.service(going)["action"] == "delete"
    assert answer.service(going)["because"] == "the Service is being deleted"
    [problem] = answer.service("wrong")["problems"]
    assert problem.startswith(ANNOTATION + 'scheme: "public" is an unknown scheme; expected ')
    assert plan(f"{cluster.namespace}/{owner}").code == PENDING
    assert plan(f"{cluster.namespace}/wrong").code == FAILED

    body = manifest(cluster, "order", ("main", 80), scheme="internal")
    offline = plan("--output=json", "--snapshot", str(snapshot), "-f", "-", stdin=json.dumps(body), **ISOLATED)
    online = plan.of(body)
    assert offline.code == online.code == PENDING, offline.errors
    assert offline.report["services"] == online.report["services"]
    stored = plan("--output=json", "--snapshot", str(snapshot), **ISOLATED)
    assert (stored.code, stored.report["services"]) == (FAILED, answer.report["services"])

    for arguments, words in (
        (["--no-such-flag"], "--no-such-flag"),
        (["nowhere/order"], "Service nowhere/order is neither in the cluster nor has it anything in AWS"),
        (["-f", "/nonexistent"], "cannot read /nonexistent"),
        (["--snapshot", "/nonexistent"], "cannot read /nonexistent"),
    ):
        asked = plan(*arguments)
        assert asked.code == FAILED and words in asked.errors, asked.errors
    assert "KUBECONFIG" in plan(KUBECONFIG="/nonexistent").errors

    # What was planned is done once the controller is back.
    weir(CALM)
    wait_for(lambda: is_served(account, cluster.wait_hostname(owner)), 20, "it to be served again")
    cluster.wait_gone(going)
    assert plan(f"{cluster.namespace}/{owner}").code == NOTHING


def test_a_directory_with_a_service_of_no_concern(cluster: Scene, plan: Planner, tmp_path: Path) -> None:
    """Whole directories can be given; what is not for weir is said to be so."""
    files = tmp_path / "files"
    files.mkdir()
    theirs = manifest(cluster, "theirs", ("web", 80))
    theirs["spec"]["loadBalancerClass"] = "example.com/other"
    (files / "theirs.json").write_text(json.dumps(theirs))
    (files / "notes.txt").write_text("{")
    inside = manifest(cluster, "inside", ("web", 80))
    inside["spec"].pop("type")
    ours = manifest(cluster, "ours", ("web", 80)) | {"kind": "Service"}
    ours["spec"]["loadBalancerClass"] = LOAD_BALANCER_CLASS
    (files / "more.yaml").write_text("\n---\n".join(json.dumps(each) for each in (inside, ours)))
    answer = plan("--output=json", "-f", str(files))
    assert answer.code == PENDING, answer.errors
    assert {line["service"].rpartition("/")[2]: line["action"] for line in answer.report["services"]} == {
        "inside": "none",
        "ours": "create",
        "theirs": "none",
    }
    because = answer.service("theirs")["because"]
    assert because == "weir does not serve it: spec.loadBalancerClass is example.com/other, not weir.dev/nlb"
