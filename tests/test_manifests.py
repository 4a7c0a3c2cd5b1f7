"""The manifests as a user meets them: rendered, accepted by a real API server, installed, upgraded and taken away.

Pods run as processes with the root, user, capabilities, variables and ServiceAccount that the manifests give them: see
`sandbox.container`. What docs/install.md tells to write and to type is read from there.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from sandbox import doctor, manifests, netns, proxies
from sandbox.aws import REGION, Account
from sandbox.cluster import ControlPlane
from sandbox.container import Container
from sandbox.fabric import Host
from sandbox.image import image
from sandbox.kube import KubeError, Object
from sandbox.manifests import MANIFESTS, NAMESPACE, Refused, chart, kustomize
from sandbox.netns import Namespace, Relay
from sandbox.process import LOOPBACK, StartError
from sandbox.proxies import KubeProxy
from sandbox.rig import Rig, soon
from sandbox.scene import Scene
from sandbox.view import nothing
from sandbox.weir import ROOT, binary
from sandbox.wire import get

INSTALL = (ROOT / "docs" / "install.md").read_text()
ACCOUNTS = tuple(f"system:serviceaccount:{NAMESPACE}:weir-{role}" for role in ("controller", "node"))
#: The API server's name in a chart that replaces kube-proxy; nobody asks it here.
REPLACE = {"mode": "replace", "apiServer": {"host": "api.example.com"}}
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
MODES = {"none": "base/controller", "beside": "overlays/beside", "replace": "overlays/replace"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: what is installed here goes again."""
    with ControlPlane(tmp_path_factory.mktemp("manifests"), audited=ACCOUNTS) as running:
        yield running


# --- from the documentation


def told(name: str) -> str:
    """The YAML of docs/install.md that begins with the name of its file."""
    [text] = re.findall(rf"```yaml\n# {name}\n(.*?)```", INSTALL, re.DOTALL)
    return text


def commands(heading: str) -> list[str]:
    """The blocks of shell commands under a heading of docs/install.md."""
    _, _, section = INSTALL.partition(f"## {heading}\n")
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [re.sub(r"^ +", "", block, flags=re.MULTILINE) for block in blocks]


class Terminal:
    """Where a user types: a directory with their kustomization, and kubectl and helm as the cluster's administrator."""

    def __init__(self, control_plane: ControlPlane, directory: Path) -> None:
        self.directory = directory / "mine"
        self.directory.mkdir()
        (directory / "weir").symlink_to(ROOT)
        self._environment = {
            "PATH": f"{control_plane.binaries}:{Path(os.environ['WEIR_HELM']).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "KUBECONFIG": str(control_plane.kubeconfig),
        }

    def type(self, text: str) -> str:
        """What the commands print; one that fails ends them, and raises with what it said."""
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(done.stderr.strip())
        return done.stdout

    def kustomization(self, **more: object) -> list[Object]:
        """Writes the documentation's kustomization, with `more` over it, and renders it."""
        content = {**yaml.safe_load(told("kustomization.yaml")), **more}
        (self.directory / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return kustomize(self.directory)


@pytest.fixture
def terminal(plane: ControlPlane, tmp_path: Path) -> Terminal:
    return Terminal(plane, tmp_path)


# --- rendering


def composed(directory: Path, overlay: str, components: tuple[str, ...]) -> list[Object]:
    """An overlay with components and the cluster's name, as a user's kustomization would have it."""
    directory.mkdir()
    to = Path(os.path.relpath(MANIFESTS, directory))
    name = {"name": "WEIR_CLUSTER_NAME", "value": "demo"}
    patch = workload("Deployment", "weir-controller", {"env": [name]})
    content = {
        "resources": [str(to / overlay)],
        "components": [str(to / "components" / each) for each in components],
        "patches": [{"patch": json.dumps(patch)}],
    }
    if overlay.endswith("replace"):
        address = [
            {"name": "KUBERNETES_SERVICE_HOST", "value": "api.example.com"},
            {"name": "KUBERNETES_SERVICE_PORT", "value": "443"},
        ]
        content["patches"].append({"patch": json.dumps(workload("DaemonSet", "weir-node", {"env": address}))})
    (directory / "kustomization.yaml").write_text(json.dumps(content))
    return kustomize(directory)


def workload(kind: str, name: str, container: Object) -> Object:
    """A patch of the container of a workload."""
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {"containers": [{"name": "weir", **container}]}}},
    }


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by kind and name, the order of a container's variables left out: none of ours refers to another."""
    found = {(each["kind"], each["metadata"]["name"]): deepcopy(each) for each in objects}
    assert len(found) == len(objects)
    for each in found.values():
        for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            variables = container["env"]
            container["env"] = {variable["name"]: variable for variable in variables}
            assert len(container["env"]) == len(variables)
            assert not [each for each in variables if "$(" in each.get("value", "")]
    return found


@pytest.mark.parametrize("components", [(), ("network-policy", "monitoring")])
@pytest.mark.parametrize("mode", MODES)
def test_kustomize_and_helm_come_to_the_same_objects(mode: str, components: tuple[str, ...], tmp_path: Path) -> None:
    """But for the namespace, which Helm leaves to its user, and a node's monitoring where there is no node."""
    values = {
        "clusterName": "demo",
        "node": REPLACE if mode == "replace" else {"mode": mode},
        "networkPolicy": {"enabled": "network-policy" in components},
        "monitoring": {"enabled": "monitoring" in components},
    }
    by_kustomize = by_name(composed(tmp_path / "mine", MODES[mode], components))
    del by_kustomize["Namespace", NAMESPACE]
    assert by_name(chart(values)) == by_kustomize
    assert len(by_kustomize) >= 10


def test_the_defaults_of_the_chart_are_the_overlay_beside(terminal: Terminal) -> None:
    """And the examples of the documentation come to the same, too."""
    by_kustomize = by_name(terminal.kustomization())
    del by_kustomize["Namespace", NAMESPACE]
    assert by_name(chart(yaml.safe_load(told("values.yaml")))) == by_kustomize


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "'/clusterName': ''"),
        ({"clusterName": "a b"}, "'/clusterName': 'a b'"),
        ({"clusterName": "demo", "node": {"mode": "replace"}}, "'/node/apiServer/host'"),
        ({"clusterName": "demo", "node": {"mode": "replace", "apiServer": {"host": "https://api"}}}, "'https://api'"),
        ({"clusterName": "demo", "node": {"mode": "both"}}, "'/node/mode'"),
        ({"clusterName": "demo", "controler": {}}, "'controler' not allowed"),
        ({"clusterName": "demo", "controller": {"env": {"WEIR_CONCURRENCY": 4}}}, "'/controller/env/WEIR_CONCURRENCY'"),
    ],
)
def test_the_chart_names_the_value_it_refuses(values: Object, words: str) -> None:
    with pytest.raises(Refused) as refused:
        chart(values)
    assert words in str(refused.value)


def test_values_reach_the_objects() -> None:
    values = {
        "clusterName": "demo",
        "controller": {
            "image": "registry.example.com/weir:1",
            "replicas": 3,
            "env": {"WEIR_LOG": "debug", "WEIR_LISTEN": "0.0.0.0:8080"},
            "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/weir"},
            "pod": {"nodeSelector": {"role": "system"}, "tolerations": [{"operator": "Exists"}]},
            "resources": {"limits": {"memory": "1Gi"}},
        },
    }
    before, after = (by_name(chart(each)) for each in ({"clusterName": "demo"}, values))
    deployment, account = after["Deployment", "weir-controller"], after["ServiceAccount", "weir-controller"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert deployment["spec"]["replicas"] == 3
    assert container["image"] == "registry.example.com/weir:1"
    assert container["env"]["WEIR_LOG"]["value"] == "debug"
    assert container["env"]["WEIR_LISTEN"]["value"] == "0.0.0.0:8080"
    assert container["env"]["WEIR_CLUSTER_NAME"]["value"] == "demo"
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert container["resources"]["requests"]["memory"] == "64Mi"
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "role": "system"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/weir"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {("Deployment", "weir-controller"), ("ServiceAccount", "weir-controller")}


def test_the_chart_goes_into_any_namespace(plane: ControlPlane) -> None:
    """Its policies and bindings, too; and the API server takes it there."""
    objects = chart({"clusterName": "demo", "networkPolicy": {"enabled": True}}, "load-balancers")
    assert NAMESPACE not in json.dumps(objects)
    plane.kube.create("/api/v1/namespaces", {"metadata": {"name": "load-balancers"}})
    manifests.apply(plane, objects, "--dry-run=server")
    plane.kube.delete("/api/v1/namespaces/load-balancers")


def test_helm_finds_nothing_to_complain_of() -> None:
    command = [os.environ["WEIR_HELM"], "lint", MANIFESTS, "--strict", "--set", "clusterName=demo"]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what the API server says


def test_the_api_server_takes_every_object_strictly(plane: ControlPlane, tmp_path: Path) -> None:
    """ServiceMonitors and PrometheusRules are checked against the Prometheus Operator's own definitions of them."""
    plane.kubectl("apply", "--server-side", "-f", os.environ["WEIR_OPERATOR_DEFINITIONS"])
    for overlay in MODES.values():
        objects = composed(tmp_path / overlay.replace("/", "-"), overlay, ("network-policy", "monitoring"))
        namespaces = [each for each in objects if each["kind"] == "Namespace"]
        manifests.apply(plane, namespaces)
        plane.kube.wait(lambda: served(plane, "monitoring.coreos.com"), 10, "the Prometheus Operator's kinds to be served")
        manifests.apply(plane, objects, "--dry-run=server")
    manifests.apply(plane, kustomize(MANIFESTS / "overlays" / "cleanup"), "--dry-run=server")
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(RuntimeError, match="livenesProbe"):
        manifests.apply(plane, [deployment], "--dry-run=server")


def test_the_controllers_pods_fit_the_restricted_standard(plane: ControlPlane) -> None:
    """A node's do not: because of the host's network, its one capability and its user, and of nothing else."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    plane.kube.create("/api/v1/namespaces", {"metadata": {"name": "strict", "labels": labels}})
    controller, node = (
        {"metadata": {"name": "pod"}, "spec": each["spec"]["template"]["spec"]}
        for each in kustomize(MANIFESTS / "overlays" / "replace")
        if each["kind"] in manifests.WORKLOADS
    )
    pods = "/api/v1/namespaces/strict/pods"
    plane.kube.create(pods, controller, dryRun="All")
    with pytest.raises(KubeError) as refused:
        plane.kube.create(pods, node, dryRun="All")
    reasons = set(re.findall(r"[:,] ([^:,()]+) \((?:host|container|pod)", refused.value.message))
    network = {"host namespaces", "hostPort", "probe or lifecycle host"}
    assert reasons == {*network, "unrestricted capabilities", "runAsNonRoot != true", "runAsUser=0"}
    plane.kube.delete("/api/v1/namespaces/strict")


def served(plane: ControlPlane, group: str) -> bool:
    return any(each["name"] == group for each in plane.kube.get("/apis")["groups"])


def test_variables_are_those_of_the_binary_and_ports_those_it_is_told(tmp_path: Path) -> None:
    for mode, overlay in MODES.items():
        for each in composed(tmp_path / mode, overlay, ("monitoring",)):
            if each["kind"] not in manifests.WORKLOADS:
                continue
            [container] = each["spec"]["template"]["spec"]["containers"]
            [role] = container["args"]
            known = set(re.findall(r"\[env: (\w+)", help_of(role)))
            given = {each["name"]: each.get("value") for each in container["env"]}
            assert not {name for name in given if not name.startswith("KUBERNETES_")} - known
            addresses = [value for name, value in given.items() if name.endswith(("_LISTEN", "_ADDRESS"))]
            ports = {port["containerPort"] for port in container["ports"]}
            assert {int(address.rpartition(":")[2]) for address in addresses} == ports


def help_of(role: str) -> str:
    return subprocess.run([binary(), role, "--help"], capture_output=True, text=True, check=True).stdout


# --- the life of an installation


class Kubelet:
    """Runs the pods of the controller's Deployment, each in a namespace with a way to the API server and to AWS."""

    def __init__(self, control_plane: ControlPlane, account: Account, directory: Path) -> None:
        self._control_plane, self._account, self._directory = control_plane, account, directory
        self._open = ExitStack()
        self.pods: list[Container] = []

    def roll_out(self) -> None:
        """Brings the pods to the Deployment as it is now, in the order of its rolling update."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/weir-controller"
        deployment = self._control_plane.kube.get(path)
        old, self.pods = self.pods, []
        for _ in range(deployment["spec"]["replicas"]):
            new = self._start(deployment)
            new.wait_ready()
            self.pods.append(new)
            if old:
                assert old.pop(0).stop() == 0
        self._control_plane.kube.wait(lambda: self.leaders(), 20, "a replica to lead")

    def leaders(self) -> list[Container]:
        """Those that have read the account, which only a leader does."""
        return [pod for pod in self.pods if '"read the account"' in pod.process.log.read_text()]

    def stop(self) -> None:
        for pod in self.pods:
            pod.stop()
            assert "panicked at" not in pod.process.log.read_text()
        self.pods = []

    def close(self) -> None:
        self.stop()
        self._open.close()

    def _start(self, deployment: Object) -> Container:
        name = f"weir-controller-{time.monotonic_ns()}"
        namespace = self._enter(Namespace("weir-controller"))
        api, aws = (
            self._enter(Relay(namespace, int(url.rpartition(":")[2])))
            for url in (self._control_plane.server, self._account.localstack.endpoint)
        )
        host = Host(namespace, {4: LOOPBACK, 6: "::1"})
        # As EKS's webhook adds it, but for keys where that adds a token to get them with.
        credentials = {
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{aws.port}",
            "AWS_ACCESS_KEY_ID": self._account.id,
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        return Container(
            self._control_plane, deployment, image("controller"), host, api.port, self._directory, name, credentials
        )

    def _enter(self, part: Namespace | Relay) -> Namespace | Relay:
        self._open.callback(part.close)
        return part


@pytest.fixture
def kubelet(plane: ControlPlane, account: Account, tmp_path: Path) -> Iterator[Kubelet]:
    if reason := netns.missing():
        pytest.skip(reason)
    kubelet = Kubelet(plane, account, tmp_path / "pods")
    yield kubelet
    kubelet.close()


@pytest.fixture
def shop(plane: ControlPlane, account: Account) -> Iterator[Scene]:
    """A namespace for Services, and the account's workers as Nodes."""
    scene = Scene(plane, f"shop-{account.id.lstrip('0')}", account.node_manifests())
    yield scene
    scene.close()


def writes(account: Account, since: int) -> list[str]:
    return [call["operation"] for call in account.calls(since) if not call["operation"].startswith("Describe")]


def test_install_serve_upgrade_uninstall(
    plane: ControlPlane, account: Account, terminal: Terminal, kubelet: Kubelet, shop: Scene
) -> None:
    """By the documentation and nothing else; the roles grant what was used on the way, and no more."""
    patches = yaml.safe_load(told("kustomization.yaml"))["patches"]
    terminal.kustomization()
    install, _ = commands("Install")[:2]
    terminal.type(install.splitlines()[0])
    kubelet.roll_out()
    for pod in kubelet.pods:
        assert confinement(pod) == {"Uid": "65532", "Gid": "65532", "CapEff": "0" * 16, "NoNewPrivs": "1"}

    terminal.type(f"kubectl create deployment order --namespace {shop.namespace} --image=nginx")
    policy = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings/weir-class"
    assert plane.kube.find(policy)
    terminal.type(f"kubectl expose deployment order --namespace {shop.namespace} --type=LoadBalancer --port=80")
    hostname = shop.wait_hostname("order")
    [balancer] = account.elbv2.describe_load_balancers()["LoadBalancers"]
    assert balancer["DNSName"].lower() == hostname
    assert len(targets(account)) == 3
    shop.expose("wrong", annotations={"service.beta.kubernetes.io/aws-load-balancer-scheme": "sideways"})
    shop.wait_event("wrong", "InvalidConfiguration")

    louder = workload("Deployment", "weir-controller", {"env": [{"name": "WEIR_LOG", "value": "info,weir=debug"}]})
    often = [{"name": f"WEIR_{name}_INTERVAL", "value": "2s"} for name in ("DRIFT", "RETRY_MAX")]
    faster = workload("Deployment", "weir-controller", {"env": often})
    terminal.kustomization(patches=[*patches, *({"patch": json.dumps(each)} for each in (louder, faster))])
    mark = account.mark()
    terminal.type(install.splitlines()[0])
    kubelet.roll_out()
    plane.kube.wait(lambda: len(drift_checks(account, mark)) > 2, 20, "drift checks of the new leader")
    assert writes(account, mark) == []
    assert shop.hostname("order") == hostname

    # A permission is taken away: the Event and the doctor name it. Given back, what waited for it goes on.
    denied = {"operation": "CreateSecurityGroup", "code": "UnauthorizedOperation", "status": 403, "count": -1}
    account.faults(denied)
    shop.expose("late")
    shop.wait_event("late", "AwsAccessDenied")
    seen = doctor.environment(plane.kubeconfig, account.localstack.endpoint, account.id)
    told_by = doctor.read(doctor.run("doctor", "--output=json", **seen))
    told_by.first("permission-denied", "ec2:CreateSecurityGroup")
    account.faults()
    shop.wait_hostname("late")
    shop.delete("late")
    shop.wait_gone("late")

    # Somebody takes the finalizer away: what that Service had is found by its tags.
    shop.expose("lost")
    shop.wait_hostname("lost")
    shop.patch("lost", {"metadata": {"finalizers": None}})
    shop.delete("lost")
    plane.kube.wait(lambda: len(account.elbv2.describe_load_balancers()["LoadBalancers"]) == 1, 20, "an orphan to go")

    with pytest.raises(Refused, match="Delete those Services first"):
        terminal.type("kubectl delete namespace weir-system")
    steps = commands("Uninstall")
    left = terminal.type(steps[0]).splitlines()[-1]
    assert left.split()[:2] == [shop.namespace, "order"]
    terminal.type(f"kubectl delete service order --namespace {shop.namespace}")
    assert nothing(account)
    assert used(plane, "controller") == granted("controller")
    kubelet.stop()
    terminal.type(steps[1])
    assert plane.kube.find(f"/api/v1/namespaces/{NAMESPACE}") is None


def confinement(pod: Container) -> dict[str, str]:
    """What the kernel knows of the process: effective user, group and capabilities, and whether it can gain any."""
    status = Path(f"/proc/{pod.process.pid}/status").read_text()
    words = {line.split()[0].rstrip(":"): line.split()[-1] for line in status.splitlines() if line}
    return {name: words[name] for name in ("Uid", "Gid", "CapEff", "NoNewPrivs")}


#: API group, resource and subresource, verb, and the one object if there is only one.
Right = tuple[str, str, str, str | None]


def granted(role: str) -> set[Right]:
    """What the roles of the controller or the node allow."""
    found = set()
    for each in kustomize(MANIFESTS / "overlays" / "replace"):
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"] == f"weir-{role}":
            for rule in each["rules"]:
                names = rule.get("resourceNames", [None])
                found |= set(itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"], names))
    return found


def used(plane: ControlPlane, role: str) -> set[Right]:
    """What it asked of the API server so far, in the words of the rights that allow it. Nothing was forbidden to it."""
    allowed, found = granted(role), set()
    for request in plane.audit():
        if request["user"]["username"] != f"system:serviceaccount:{NAMESPACE}:weir-{role}":
            continue
        assert request.get("responseStatus", {}).get("code") != 403, request
        about = request["objectRef"]
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        right = (about.get("apiGroup", ""), resource, request["verb"])
        name = about.get("name")
        found.add((*right, name if (*right, name) in allowed else None))
    return found


def targets(account: Account) -> list[str]:
    [group] = account.elbv2.describe_target_groups()["TargetGroups"]
    health = account.elbv2.describe_target_health(TargetGroupArn=group["TargetGroupArn"])
    return [each["Target"]["Id"] for each in health["TargetHealthDescriptions"]]


def drift_checks(account: Account, since: int) -> list[Object]:
    return [call for call in account.calls(since) if call["operation"] == "DescribeTargetGroups"]


# --- taken away in the wrong order


def test_what_is_uninstalled_too_early_is_kept_and_found_again(
    plane: ControlPlane, account: Account, terminal: Terminal, kubelet: Kubelet, shop: Scene
) -> None:
    terminal.kustomization()
    terminal.type("kubectl apply --server-side -k .")
    kubelet.roll_out()
    shop.expose("order")
    shop.wait_hostname("order")

    with pytest.raises(Refused) as refused:
        terminal.type("kubectl delete -k .")
    assert str(refused.value).count("Delete those Services first") == 7, refused.value
    terminal.type(f"kubectl get deployment,serviceaccount,role,rolebinding weir-controller --namespace {NAMESPACE}")
    terminal.type("kubectl get clusterrole,clusterrolebinding weir-controller")

    # Without the policy, nothing refuses any more, a moment after it is gone.
    kubelet.stop()
    remove = "kubectl delete --ignore-not-found -k ."
    plane.kube.wait(lambda: succeeds(terminal, remove), 30, "everything to be deleted too early")
    shop.delete("order")
    time.sleep(1)
    assert shop.service("order")["metadata"]["deletionTimestamp"]
    assert len(account.elbv2.describe_load_balancers()["LoadBalancers"]) == 1

    terminal.type("kubectl apply --server-side -k .")
    kubelet.roll_out()
    shop.wait_gone("order")
    assert nothing(account)
    kubelet.stop()
    terminal.type(f"kubectl annotate namespace {NAMESPACE} weir.dev/uninstall=confirmed")
    plane.kube.wait(lambda: succeeds(terminal, remove), 30, "everything to be deleted")


def test_helm_installs_upgrades_and_asks_before_it_uninstalls(plane: ControlPlane, terminal: Terminal) -> None:
    (terminal.directory / "values.yaml").write_text(told("values.yaml"))
    namespace, install = commands("Install")[1].splitlines()
    terminal.type(namespace)
    # Nobody makes the pods ready here.
    said = terminal.type(install.removesuffix(" --wait"))
    assert "in cluster demo" in said
    deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/weir-controller"
    assert plane.kube.get(deployment)["spec"]["replicas"] == 2
    upgrade = "helm upgrade weir ../weir/manifests --namespace weir-system --reuse-values"
    terminal.type(f"{upgrade} --set controller.replicas=3 --set node.mode=none")
    assert plane.kube.get(deployment)["spec"]["replicas"] == 3
    assert plane.kube.find(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/weir-node") is None

    confirm, uninstall, remove = commands("Uninstall")[2].splitlines()
    rehearsed = f"kubectl delete deployment weir-controller --namespace {NAMESPACE} --dry-run=server"
    plane.kube.wait(lambda: not succeeds(terminal, rehearsed), 30, "the API server to see the policy")
    with pytest.raises(Refused, match="Delete those Services first"):
        terminal.type(uninstall)
    assert len(manifests_left(terminal)) == len(chart({"clusterName": "demo", "node": {"mode": "none"}}))
    terminal.type(confirm)
    plane.kube.wait(lambda: succeeds(terminal, uninstall), 30, "Helm to uninstall")
    assert manifests_left(terminal) == []
    terminal.type(remove)


def succeeds(terminal: Terminal, command: str) -> bool:
    """The API server may take a moment to see the policy, or the confirmation."""
    try:
        terminal.type(command)
    except Refused:
        return False
    return True


def manifests_left(terminal: Terminal) -> list[str]:
    """Objects of Helm's that exist."""
    kinds = "deploy,ds,sa,pdb,role,rolebinding,clusterrole,clusterrolebinding"
    policies = "validatingadmissionpolicy,validatingadmissionpolicybinding"
    mutating = "mutatingadmissionpolicy,mutatingadmissionpolicybinding"
    label = "app.kubernetes.io/managed-by=Helm"
    found = terminal.type(f"kubectl get {kinds},{policies},{mutating} -A -l {label} -o name")
    return found.split()


# --- the node


@pytest.fixture(scope="module")
def node_plane(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with an installation on it."""
    if reason := netns.missing() or proxies.missing("weir"):
        pytest.skip(reason)
    manifests.apply(plane, kustomize(MANIFESTS / "overlays" / "beside"))
    yield plane


@pytest.fixture(scope="module")
def rig(node_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two nodes with kube-proxy, as a cluster has them before weir comes."""
    with Rig(node_plane, tmp_path_factory.mktemp("nodes"), KubeProxy.kind, "rig") as running:
        yield running


class Agents:
    """Pods of `weir node` on node-a, one at a time, as an overlay describes them."""

    def __init__(self, rig: Rig, directory: Path) -> None:
        self._rig, self._directory = rig, directory
        self._numbers = itertools.count(1)
        self.running: Container | None = None

    def run(self, overlay: str, change: Callable[[Object], None] = lambda workload: None) -> Container:
        """Replaces the pod; `change` may spoil the DaemonSet first."""
        self.stop()
        [workload] = [each for each in kustomize(MANIFESTS / "overlays" / overlay) if each["kind"] == "DaemonSet"]
        change(workload)
        node, directory = self._rig.node_a, self._directory / str(next(self._numbers))
        port = self._rig.workers.relay(node).port
        # Where a user of `replace` puts the API server's address.
        address = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(port)}
        for each in workload["spec"]["template"]["spec"]["containers"][0].get("env", []):
            each["value"] = address.get(each["name"], each.get("value"))
        self.running = Container(
            self._rig.workers.control_plane, workload, image("node"), node, port, directory, node.name
        )
        return self.running

    def stop(self) -> None:
        if self.running and self.running.process.alive:
            assert self.running.stop() == 0
            assert "panicked at" not in self.running.process.log.read_text()
        self.running = None


def weir_has(rig: Rig, address: str) -> bool:
    return address in rig.node_a.namespace.run("nft", "list", "map", "ip", "weir", "inside")


@pytest.fixture
def without_kube_proxy(rig: Rig) -> Iterator[None]:
    rig.proxy.stop()
    yield
    rig.proxy.start()
    rig.proxy.wait_ready()


@pytest.fixture
def agents(rig: Rig, tmp_path: Path) -> Iterator[Agents]:
    agents = Agents(rig, tmp_path)
    yield agents
    agents.stop()
    rig.clear()


def test_beside_kube_proxy_then_in_its_place_and_back(rig: Rig, agents: Agents) -> None:
    """As docs/install.md tells it: whoever runs, all Services are served."""
    ours = rig.service([rig.a1, rig.b1], type="NodePort", labels={PROXY_NAME: "weir"})
    others = rig.service([rig.b1], type="NodePort")

    def served() -> None:
        rig.expect(rig.caller, ours.cluster_ip(), 80, ("a1", "caller"), ("b1", "caller"))
        rig.expect(rig.caller, others.cluster_ip(), 80, ("b1", "caller"))
        rig.expect(rig.outside, rig.node_a.address(4), others.node_port(), ("b1", "node-a"))

    agents.run("beside").wait_ready()
    served()
    assert weir_has(rig, ours.cluster_ip()) and not weir_has(rig, others.cluster_ip())

    with pytest.raises(StartError, match="10256"):
        agents.run("replace").wait_ready()
    rig.proxy.stop()
    served()
    replaced = agents.run("replace")
    replaced.wait_ready()
    served()
    assert weir_has(rig, others.cluster_ip())
    assert "kube-proxy --cleanup" in replaced.process.log.read_text()
    for address in (rig.node_a.address(4), rig.node_a.address(6)):
        answer = get(rig.outside, address, 10256, "/healthz")
        assert answer and answer.status == 200
        assert get(rig.outside, address, 10249, "/metrics") is None

    rig.proxy.start()
    time.sleep(1)
    served()
    agents.run("beside").wait_ready()
    served()
    rig.proxy.wait_ready()
    assert not weir_has(rig, others.cluster_ip())

    agents.stop()
    assert "weir" in rig.node_a.namespace.run("nft", "list", "tables"), "rules stay"
    assert agents.run("cleanup").process.wait(10) == 0
    assert "weir" not in rig.node_a.namespace.run("nft", "list", "tables")


@pytest.mark.usefixtures("without_kube_proxy")
def test_the_nodes_role_grants_what_is_used_and_no_more(rig: Rig, agents: Agents, node_plane: ControlPlane) -> None:
    """It serves; it tells, twice, that it cannot open a port that somebody else has; it answers a question."""
    with rig.node_a.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind((rig.node_a.address(4), 32500))
        taken.listen()
        local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32500}
        service = rig.service([rig.a1], **local)
        for times in (1, 2):
            agents.run("replace").wait_ready()
            rig.expect(rig.caller, service.cluster_ip(), 80, ("a1", "caller"))
            soon(lambda: complaints(rig) == times)

    def asked(workload: Object) -> None:
        [container] = workload["spec"]["template"]["spec"]["containers"]
        container["args"] = ["node", "rules", f"{rig.services.namespace}/{service.name}"]

    answer = agents.run("replace", asked).process
    assert answer.wait(10) == 0
    assert service.cluster_ip() in answer.log.read_text()
    soon(lambda: used(node_plane, "node") == granted("node"))


def complaints(rig: Rig) -> int:
    """How often weir has told the same."""
    events = rig.kube.list(f"/apis/events.k8s.io/v1/namespaces/{rig.services.namespace}/events")
    ours = [each for each in events if each.get("reportingController") == "weir.dev/controller"]
    return sum(each.get("series", {}).get("count", 1) for each in ours)


@pytest.mark.usefixtures("without_kube_proxy")
def test_net_admin_is_needed_and_enough_but_for_the_kernels_settings(agents: Agents) -> None:
    """What a container without privileges cannot set is told, and is in the file that the documentation gives."""

    def without(workload: Object) -> None:
        workload["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = []

    with pytest.raises(StartError, match="NET_ADMIN"):
        agents.run("replace", without).wait_ready()
    agent = agents.run("replace")
    agent.wait_ready()
    log = agent.process.log.read_text()
    refused = dict(re.findall(r"cannot set /proc/sys/net/netfilter/(\w+) to (\d+): Read-only", log))
    refused.pop("nf_conntrack_max", None)  # follows the number of CPUs
    [settings] = re.findall(r"```ini\n(.*?)```", INSTALL, re.DOTALL)
    documented = dict(re.findall(r"^net\.netfilter\.(\w+) = (\d+)$", settings, re.MULTILINE))
    assert refused and refused.items() <= documented.items()
