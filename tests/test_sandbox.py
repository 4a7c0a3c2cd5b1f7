"""The sandbox keeps its promises; what other tests show about weir rests on these."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import botocore.exceptions
import pytest
import requests

from sandbox.aws import Account, LocalStack
from sandbox.cluster import ControlPlane
from sandbox.kube import Kube, KubeError, Object
from sandbox.kubernetes.build import kubernetes_version
from sandbox.process import Process, StartError, wait_for
from sandbox.scene import LOAD_BALANCER_CLASS, Scene
from sandbox.weir import Weir

TESTS = Path(__file__).parent
ENVIRONMENT = {"PATH": os.environ["PATH"]}


# --- processes


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os; from pathlib import Path; from sandbox.process import Process; "
        f"child = Process('sleep', ['sleep', '600'], Path({str(tmp_path / 'log')!r}), dict(os.environ)); "
        "print(child.pid, flush=True); input()"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert running(child)
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not running(child), 5, "the orphan to be killed")


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    process = Process("shell", ["sh", "-c", "echo cannot find my keys; exit 3"], tmp_path / "log", ENVIRONMENT)
    with pytest.raises(StartError, match=r"(?s)shell exited with 3.*cannot find my keys"):
        process.wait_ready(lambda: False, 5)


def test_a_start_is_awaited_only_so_long(tmp_path: Path) -> None:
    process = Process("sleep", ["sleep", "600"], tmp_path / "log", ENVIRONMENT)
    with pytest.raises(StartError, match=r"was not ready after 0\.2 s"):
        process.wait_ready(lambda: False, 0.2)
    assert process.terminate() == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while true; do sleep 0.1; done"
    process = Process("shell", ["sh", "-c", script], tmp_path / "log", ENVIRONMENT)
    process.wait_ready(lambda: "deaf" in process.tail(), 5)
    assert process.terminate(timeout=0.3) == -signal.SIGKILL


# --- Kubernetes


def test_kubernetes_has_the_pinned_version(control_plane: ControlPlane) -> None:
    wanted = f"v{kubernetes_version()}"
    assert control_plane.kube.get("/version")["gitVersion"] == wanted
    said = control_plane.kubectl("version")
    assert f"Client Version: {wanted}" in said
    assert f"Server Version: {wanted}" in said


def test_the_certificate_is_verified_and_the_token_needed(control_plane: ControlPlane) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(control_plane.server + "/version", timeout=5)
    stranger = Kube(control_plane.server, "not-a-token", control_plane.kube.ca)
    with pytest.raises(KubeError) as refused:
        stranger.list("/api/v1/nodes")
    assert refused.value.status == 401


def test_a_deployment_becomes_pods(cluster: Scene) -> None:
    cluster.control_plane.kubectl(
        "create", "deployment", "order", "--image=order", "--replicas=2", "--namespace", cluster.namespace
    )
    pods = cluster.kube.wait(lambda: cluster.kube.list(cluster.path("pods"), labelSelector="app=order")[1:], 15, "Pods")
    assert pods[0]["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"


def test_a_ready_pod_becomes_an_endpoint(cluster: Scene) -> None:
    cluster.expose("order")
    node = cluster.kube.list("/api/v1/nodes")[0]["metadata"]["name"]
    cluster.run_pod("order-1", node, "10.0.1.17", {"app": "order"})

    def endpoints() -> list[Object]:
        slices = cluster.kube.list(
            cluster.path("endpointslices", group="discovery.k8s.io/v1"),
            labelSelector="kubernetes.io/service-name=order",
        )
        return [endpoint for each in slices for endpoint in each.get("endpoints") or []]

    (endpoint,) = cluster.kube.wait(endpoints, 15, "an endpoint")
    assert endpoint["addresses"] == ["10.0.1.17"]
    assert endpoint["conditions"]["ready"] is True
    assert endpoint["nodeName"] == node


def test_service_account_tokens_carry_only_that_accounts_rights(control_plane: ControlPlane) -> None:
    kube = control_plane.kube
    narrow = Kube(control_plane.server, kube.service_account_token("default", "default"), kube.ca)
    with pytest.raises(KubeError) as refused:
        narrow.list("/api/v1/nodes")
    assert refused.value.status == 403
    assert "system:serviceaccount:default:default" in refused.value.message


def test_server_side_apply_and_patch(cluster: Scene) -> None:
    path = cluster.path("configmaps", "settings")
    shape = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
    assert cluster.kube.apply(path, {**shape, "data": {"a": "1"}})["data"] == {"a": "1"}
    assert cluster.kube.apply(path, {**shape, "data": {"b": "2"}})["data"] == {"b": "2"}
    assert cluster.kube.patch(path, {"data": {"c": "3"}})["data"] == {"b": "2", "c": "3"}
    cluster.kube.delete(path)
    cluster.kube.delete(path)
    assert cluster.kube.find(path) is None


# --- the scene


def test_nodes_are_the_accounts_workers(cluster: Scene, account: Account) -> None:
    nodes = cluster.kube.list("/api/v1/nodes")
    ids = sorted(node["spec"]["providerID"].rpartition("/")[2] for node in nodes)
    assert ids == sorted(account.names["instances"])
    for node in nodes:
        assert node["spec"].get("taints", []) == []
        assert [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"] == ["True"]


def test_a_service_is_exposed_and_deleted(cluster: Scene) -> None:
    service = cluster.expose("order", annotations={"example.com/team": "shop"}, externalTrafficPolicy="Local")
    assert service["spec"]["loadBalancerClass"] == LOAD_BALANCER_CLASS
    assert service["spec"]["healthCheckNodePort"]
    assert cluster.hostname("order") is None
    ingress = {"status": {"loadBalancer": {"ingress": [{"hostname": "order.example.com"}]}}}
    cluster.kube.patch(cluster.path("services", "order") + "/status", ingress)
    assert cluster.wait_hostname("order") == "order.example.com"
    cluster.delete("order")
    cluster.wait_gone("order")


def test_events_come_as_reason_and_note(cluster: Scene) -> None:
    cluster.expose("order")
    event = {
        "metadata": {"name": "order.1"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": {"apiVersion": "v1", "kind": "Service", "name": "order", "namespace": cluster.namespace},
        "reason": "Waiting",
        "note": "for the load balancer",
        "type": "Normal",
        "action": "Reconcile",
        "reportingController": "weir.dev/controller",
        "reportingInstance": "sandbox",
    }
    cluster.kube.create(cluster.path("events", group="events.k8s.io/v1"), event)
    assert cluster.events("order") == [("Waiting", "for the load balancer")]
    assert cluster.wait_event("order", "Waiting") == "for the load balancer"


def test_a_scene_leaves_nothing_behind(control_plane: ControlPlane, account: Account) -> None:
    scene = Scene(control_plane, "left-behind", account.node_manifests())
    scene.expose("stuck")
    scene.patch("stuck", {"metadata": {"finalizers": ["weir.dev/load-balancer"]}})
    scene.run_pod("order-1", scene.kube.list("/api/v1/nodes")[0]["metadata"]["name"], "10.0.1.17", {"app": "stuck"})
    scene.close()
    assert scene.kube.list("/api/v1/nodes") == []
    assert scene.kube.list(scene.path("services")) == []
    scene.kube.wait(lambda: scene.kube.find("/api/v1/namespaces/left-behind") is None, 20, "the namespace to be gone")


# --- AWS


def test_the_seeded_account_has_what_is_promised(account: Account) -> None:
    names = account.names
    assert account.sts.get_caller_identity()["Account"] == account.id
    (group,) = account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert sorted(i["InstanceId"] for i in group["Instances"]) == sorted(names["instances"])
    assert len(names["instances"]) == 3
    subnets = account.ec2.describe_subnets(SubnetIds=names["subnets"])["Subnets"]
    assert sorted(subnet["AvailabilityZone"] for subnet in subnets) == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert {subnet["VpcId"] for subnet in subnets} == {names["vpc"]}
    assert account.elbv2.describe_load_balancers()["LoadBalancers"] == []


def test_accounts_do_not_see_each_other(localstack: LocalStack, account: Account) -> None:
    other = Account(localstack, "999999999999")
    assert account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert other.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []


def test_the_call_log_names_operation_outcome_and_client(account: Account) -> None:
    mark = account.mark()
    with pytest.raises(botocore.exceptions.ClientError):
        account.elbv2.describe_load_balancers(Names=["absent"])
    account.elbv2.describe_load_balancers(PageSize=5)
    failed, good = account.calls(since=mark, client="boto")
    assert (failed["service"], failed["operation"]) == ("elbv2", "DescribeLoadBalancers")
    assert (failed["status"], failed["code"]) == (400, "LoadBalancerNotFound")
    assert (good["status"], good["code"], good["request"]["PageSize"]) == (200, None, 5)
    assert account.calls(since=mark) == []


def test_a_fault_hits_as_often_as_ordered(account: Account) -> None:
    account.faults({"operation": "DescribeVpcs", "client": "boto", "code": "UnauthorizedOperation", "status": 403})
    with pytest.raises(botocore.exceptions.ClientError, match="UnauthorizedOperation"):
        account.ec2.describe_vpcs()
    assert account.ec2.describe_vpcs()["Vpcs"]
    assert [fault["hits"] for fault in account.localstack.faults()] == [1]


def test_a_fault_is_for_weir_unless_said_otherwise(account: Account) -> None:
    account.faults({"operation": "*", "code": "Throttling"})
    assert account.ec2.describe_vpcs()["Vpcs"]


def test_settings_change_and_read_back(localstack: LocalStack, account: Account) -> None:
    assert localstack.settings()["provision_seconds"] == 0
    assert localstack.settings(provision_seconds=2)["provision_seconds"] == 2
    with pytest.raises(ValueError, match="no_such_setting"):
        localstack.settings(no_such_setting=1)


# --- weir, played by a stand-in


STAND_IN = """#!{python}
import http.server, json, os, signal, sys
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ)}}), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *_):
        print("thread 'main' panicked at src/main.rs", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
host, port = sys.argv[sys.argv.index("controller"):][2].partition("=")[2].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "stand-in"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("WEIR_BIN", str(program))
    monkeypatch.setenv("AWS_PROFILE", "production")
    return program


def test_weir_is_started_with_our_flags_and_a_clean_environment(stand_in: Path, tmp_path: Path) -> None:
    weir = Weir(tmp_path, tmp_path / "kubeconfig", "http://127.0.0.1:1", "000000000042", "demo", "--log-format=text")
    try:
        weir.wait_ready()
        started = weir.log()[0]
        with pytest.raises(AssertionError, match=r"panicked at src/main\.rs"):
            weir.assert_no_panic()
    finally:
        code = weir.stop()
    assert code == 7
    assert started["argv"] == [
        "controller",
        "--cluster-name=demo",
        f"--listen={weir.address}",
        "--leader-elect=false",
        "--log-format=text",
    ]
    assert started["env"]["AWS_ACCESS_KEY_ID"] == "000000000042"
    assert started["env"]["KUBECONFIG"] == str(tmp_path / "kubeconfig")
    assert "AWS_PROFILE" not in started["env"]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
