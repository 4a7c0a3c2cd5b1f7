"""What the repository's manifests come to, by kustomize and by Helm, and their installation on a test cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from sandbox.cluster import ControlPlane
from sandbox.kube import Object

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
NAMESPACE = "weir-system"
#: Kinds whose pods nobody would run: a test cluster has no kubelets. Processes stand for them.
WORKLOADS = ("Deployment", "DaemonSet")


class Refused(Exception):
    """What kustomize or Helm said when it did not render."""


def kustomize(directory: Path) -> list[Object]:
    """The objects of a kustomization, in its order."""
    return _rendered([Path(os.environ["WEIR_K8S_BIN"]) / "kubectl", "kustomize", directory])


def chart(values: Object, namespace: str = NAMESPACE) -> list[Object]:
    """The objects of the Helm chart, but for its hooks, which are no part of what is installed."""
    command = [os.environ["WEIR_HELM"], "template", "weir", MANIFESTS, "--namespace", namespace, "--values", "-"]
    rendered = _rendered(command, json.dumps(values))
    return [each for each in rendered if "helm.sh/hook" not in each["metadata"].get("annotations", {})]


def apply(control_plane: ControlPlane, objects: Iterable[Object], *flags: str) -> None:
    """Applies objects in their order, with a field that the API does not know taken for an error."""
    text = "".join(f"---\n{json.dumps(each)}\n" for each in objects)
    control_plane.kubectl("apply", "--server-side", "--validate=strict", *flags, "-f", "-", stdin=text)


def install(control_plane: ControlPlane) -> None:
    """Applies what does not need a kubelet, and returns when the policies are in force."""
    objects = kustomize(MANIFESTS / "overlays" / "replace")
    apply(control_plane, [each for each in objects if each["kind"] not in WORKLOADS])
    control_plane.kube.wait(lambda: _class_is_set(control_plane), 15, "the mutating policy to set a class")


def _class_is_set(control_plane: ControlPlane) -> bool:
    """The API server takes up a policy a moment after it was created; a dry run shows whether it has."""
    service = {
        "metadata": {"name": "probe"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "probe"}},
    }
    path = "/api/v1/namespaces/default/services"
    return "loadBalancerClass" in control_plane.kube.create(path, service, dryRun="All")["spec"]


def _rendered(command: list[str | Path], stdin: str | None = None) -> list[Object]:
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return [each for each in yaml.safe_load_all(done.stdout) if each]
