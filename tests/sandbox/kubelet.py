"""What a scheduler and kubelets do to Pods, as far as a Service can tell: real servers in pods' namespaces."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from sandbox.fabric import Node, Pod
from sandbox.kube import KubeError, Object
from sandbox.workers import Workers

POLL_SECONDS = 0.1
_READY = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")]


class Kubelets:
    """Context manager: inside it, Pods of one Kubernetes namespace run on the nodes that are `open` to them."""

    def __init__(self, workers: Workers, namespace: str) -> None:
        self._workers, self._kube = workers, workers.kube
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._nodes: dict[str, Node] = {}
        self._pods: dict[str, Pod] = {}
        self._ended = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="kubelets", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def open(self, node: Node) -> None:
        """New Pods may be placed there."""
        self._nodes[node.name] = node

    def lose(self, name: str) -> None:
        """The node is gone, and its Pods with it."""
        self._nodes.pop(name, None)
        for pod in self._kube.list(self._path, fieldSelector=f"spec.nodeName={name}"):
            self._end(pod["metadata"]["name"])

    def pods(self) -> list[Pod]:
        """Those that run."""
        return list(self._pods.values())

    def check(self) -> None:
        """Raises what went wrong in the background."""
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                for pod in self._kube.list(self._path):
                    self._care(pod)
            except KubeError as error:
                if error.status not in (404, 409):  # gone, or changed, in this very moment
                    self._failure = error
            except Exception as error:  # told by `check`
                self._failure = error

    def _care(self, pod: Object) -> None:
        name, spec = pod["metadata"]["name"], pod["spec"]
        if pod["metadata"].get("deletionTimestamp"):
            self._end(name)
        elif not spec.get("nodeName"):
            if self._nodes:
                target = {"kind": "Node", "name": self._emptiest()}
                self._kube.create(f"{self._path}/{name}/binding", {"metadata": {"name": name}, "target": target})
        elif name not in self._pods and spec["nodeName"] in self._nodes:
            self._start(name, spec)

    def _emptiest(self) -> str:
        counts = Counter(pod.node.name for pod in self._pods.values())
        return min(self._nodes, key=lambda name: counts[name])

    def _start(self, name: str, spec: Object) -> None:
        ports = [port["containerPort"] for container in spec["containers"] for port in container.get("ports", [])]
        pod = self._workers.add_pod(self._nodes[spec["nodeName"]], name, tcp=tuple(ports), udp=())
        self._pods[name] = pod
        addresses = [{"ip": pod.address(4)}, {"ip": pod.address(6)}]
        running = {"ready": True, "restartCount": 0, "imageID": "", "state": {"running": {}}}
        containers = [{"name": each["name"], "image": each["image"], **running} for each in spec["containers"]]
        status = {
            "phase": "Running",
            "podIP": pod.address(4),
            "podIPs": addresses,
            "conditions": _READY,
            "containerStatuses": containers,
        }
        self._kube.patch(f"{self._path}/{name}/status", {"status": status})

    def _end(self, name: str) -> None:
        if pod := self._pods.pop(name, None):
            self._workers.remove_pod(pod)
        self._kube.delete(f"{self._path}/{name}", gracePeriodSeconds="0")
