"""Installs the repository's manifests on a test cluster."""

from __future__ import annotations

from pathlib import Path

from sandbox.cluster import ControlPlane

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def install(control_plane: ControlPlane) -> list[Path]:
    """Applies manifests/*.yaml in the order of their names, and returns when their policies are in force."""
    files = [path for path in sorted(MANIFESTS.rglob("*.yaml")) if path.stem != "kustomization"]
    for path in files:
        control_plane.kubectl("apply", "--server-side", "-f", path)
    policies = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"
    if control_plane.kube.list(policies):
        control_plane.kube.wait(lambda: _class_is_set(control_plane), 15, "the mutating policy to set a class")
    return files


def _class_is_set(control_plane: ControlPlane) -> bool:
    """The API server takes up a policy a moment after it was created; a dry run shows whether it has."""
    service = {
        "metadata": {"name": "probe"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "probe"}},
    }
    path = "/api/v1/namespaces/default/services"
    return "loadBalancerClass" in control_plane.kube.create(path, service, dryRun="All")["spec"]
