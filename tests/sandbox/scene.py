"""What one test owns on the shared control plane: the Nodes of its AWS account, and a namespace for its Services."""

from __future__ import annotations

import json
from typing import Any

from sandbox.cluster import ControlPlane
from sandbox.kube import Kube, KubeError, Object

LOAD_BALANCER_CLASS = "weir.dev/nlb"
NODES = "/api/v1/nodes"


class Scene:
    """Make it, use it, and `close` it: afterwards neither Nodes nor Services are left for the next test."""

    def __init__(self, control_plane: ControlPlane, namespace: str, nodes: list[Object]) -> None:
        self.control_plane = control_plane
        self.kube: Kube = control_plane.kube
        self.namespace = namespace
        # What admission refuses the controller would never see; the tests of admission have namespaces of their own.
        labels = {"weir.dev/validation": "none"}
        self.kube.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        for node in nodes:
            self.kube.create(NODES, node)

    def path(self, resource: str, name: str = "", group: str = "v1") -> str:
        """The API path of a namespaced resource here: `path("deployments", "order", group="apps/v1")`."""
        prefix = f"/api/{group}" if group == "v1" else f"/apis/{group}"
        return f"{prefix}/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def expose(
        self,
        name: str,
        port: int = 80,
        target_port: int = 8080,
        *,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        **spec: Any,
    ) -> Object:
        """Creates a Service of type LoadBalancer in weir's class; `spec` adds to or replaces its spec's fields."""
        service = {
            "metadata": {"name": name, "annotations": annotations or {}, "labels": labels or {}},
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": LOAD_BALANCER_CLASS,
                "selector": {"app": name},
                "ports": [{"name": "main", "port": port, "targetPort": target_port, "protocol": "TCP"}],
                **spec,
            },
        }
        return self.kube.create(self.path("services"), service)

    def run_pod(self, name: str, node: str, ip: str, labels: dict[str, str], *more_ips: str) -> Object:
        """A Pod object that looks scheduled, running and Ready, as a kubelet would report it.

        A dual-stack Pod has its address of the other family in `more_ips`.
        """
        pod = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        }
        self.kube.create(self.path("pods"), pod)
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": each} for each in (ip, *more_ips)],
            "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")],
        }
        return self.kube.patch(self.path("pods", name) + "/status", {"status": status})

    def service(self, name: str) -> Object:
        return self.kube.get(self.path("services", name))

    def patch(self, name: str, body: Object) -> Object:
        """Merge-patches a Service."""
        return self.kube.patch(self.path("services", name), body)

    def hostname(self, name: str) -> str | None:
        """What `kubectl get service` shows as EXTERNAL-IP."""
        ingress = self.service(name)["status"]["loadBalancer"].get("ingress") or [{}]
        return ingress[0].get("hostname")

    def wait_hostname(self, name: str, timeout: float = 30.0) -> str:
        return self.kube.wait(lambda: self.hostname(name), timeout, f"a hostname in the status of Service {name}")

    def events(self, name: str) -> list[tuple[str, str]]:
        """(reason, note) of the Events about the Service of this name, oldest first."""
        events = self.kube.list(self.path("events", group="events.k8s.io/v1"))
        ours = [event for event in events if event["regarding"].get("name") == name]
        ours.sort(key=lambda event: event["metadata"]["creationTimestamp"] + (event.get("eventTime") or ""))
        return [(event["reason"], event.get("note", "")) for event in ours]

    def wait_event(self, name: str, reason: str, timeout: float = 30.0) -> str:
        """The note of the first Event with this reason."""

        def notes() -> list[tuple[str]]:
            return [(note,) for found, note in self.events(name) if found == reason]

        return self.kube.wait(notes, timeout, f"an Event {reason} about Service {name}")[0][0]

    def delete(self, name: str) -> None:
        self.kube.delete(self.path("services", name))

    def wait_gone(self, name: str, timeout: float = 30.0) -> None:
        path = self.path("services", name)
        self.kube.wait(lambda: self.kube.find(path) is None, timeout, f"Service {name} to be gone")

    def describe(self) -> str:
        """The Services with their status and Events, for a person."""
        lines = []
        for service in self.kube.list(self.path("services")):
            name = service["metadata"]["name"]
            lines.append(f"{name}: {json.dumps(service['status'])}")
            lines += [f"  {reason}: {note}" for reason, note in self.events(name)]
        return "\n".join(lines)

    def close(self) -> None:
        """Removes everything without the help of weir, which may be dead."""
        for service in self.kube.list(self.path("services")):
            self._remove_service(service["metadata"]["name"])
        self.kube.delete(f"/api/v1/namespaces/{self.namespace}")
        # No kubelet confirms their end, so Pods go at once; the namespace is closing and gets no new ones.
        self.kube.delete(self.path("pods"), gracePeriodSeconds="0")
        for node in self.kube.list(NODES):
            self.kube.delete(f"{NODES}/{node['metadata']['name']}")

    def _remove_service(self, name: str) -> None:
        self.delete(name)
        try:
            self.kube.patch(self.path("services", name), {"metadata": {"finalizers": None}})
        except KubeError as error:
            if error.status != 404:
                raise
