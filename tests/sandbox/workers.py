"""Worker nodes that really forward: a fabric, Node objects for its nodes, and on each a service proxy of one kind."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandbox.cluster import ControlPlane
from sandbox.fabric import FAMILIES, Fabric, Node, Pod
from sandbox.kube import Object
from sandbox.manifests import install
from sandbox.netns import Relay
from sandbox.proxies import PROXIES, ServiceProxy, WeirNode
from sandbox.scene import NODES, Scene
from sandbox.wire import Server

ZONE_LABEL = "topology.kubernetes.io/zone"


class Workers:
    """Context manager: `fabric` and what runs on it exist inside it, and are gone after it.

    `kind` is a service proxy's, see `sandbox.proxies.PROXIES`; `directory` holds logs and configurations.
    """

    def __init__(self, control_plane: ControlPlane, directory: Path, kind: str, **settings: Any) -> None:
        self.control_plane, self.directory, self.kind = control_plane, directory, kind
        self.kube = control_plane.kube
        self.fabric = Fabric()
        self.proxies: dict[str, ServiceProxy] = {}
        self.servers: dict[str, Server] = {}
        self.instances: dict[str, Node] = {}
        """Nodes by the id of their instance, if they were made from a cloud's manifest."""
        self._settings = settings
        self._relays: dict[str, Relay] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._token = self._agents_token()
        self._open.enter_context(self.fabric)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add_node(self, name: str, zone: str = "us-east-1a", manifest: Object | None = None) -> Node:
        """A node and its Node object; its proxy starts, but is not awaited: see `wait_ready`.

        `manifest` is the Node object of an instance that the cloud knows already, called the same; the fabric's
        addresses take the place of the cloud's.
        """
        node = self.fabric.add_node(name, zone)
        body = manifest or {"metadata": {"name": name, "labels": {ZONE_LABEL: zone, "kubernetes.io/hostname": name}}}
        addresses = [{"type": "InternalIP", "address": node.address(family)} for family in FAMILIES]
        addresses.append({"type": "Hostname", "address": name})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        self.kube.create(NODES, {**body, "status": {"addresses": addresses, "conditions": [ready]}})
        self._open.callback(self.kube.delete, f"{NODES}/{name}")
        if provider := body.get("spec", {}).get("providerID"):
            self.instances[provider.rpartition("/")[2]] = node
        proxy = PROXIES[self.kind](node, self.kubeconfig(node), self.directory, **self._settings)
        self.proxies[name] = proxy
        proxy.start()
        self._open.callback(proxy.stop)
        return node

    def remove_node(self, name: str) -> None:
        """A node that is gone: nothing of it answers. Its namespace stays until the fabric goes."""
        self.proxies.pop(name).stop()
        node = self.fabric.nodes[name]
        self.instances = {instance: each for instance, each in self.instances.items() if each is not node}
        node.namespace.ip("link set eth0 down")

    def wait_ready(self) -> None:
        """Returns when every node's proxy has programmed what exists."""
        for proxy in self.proxies.values():
            proxy.wait_ready()

    def kubeconfig(self, node: Node) -> Path:
        """A kubeconfig for processes in a node's namespace: the API server is at a loopback port of it."""
        relay = self.relay(node)
        server = f"https://127.0.0.1:{relay.port}"
        return self.control_plane.write_kubeconfig(f"{node.name}-{relay.port}", self._token, server)

    def _agents_token(self) -> str:
        """weir has no more rights than its installed role gives it."""
        if self.kind != WeirNode.kind:
            return self.control_plane.token
        install(self.control_plane)
        return self.kube.service_account_token("weir-system", "weir-node")

    @property
    def api_port(self) -> int:
        """The host's loopback port of the API server, where relays lead."""
        return int(self.control_plane.server.rpartition(":")[2])

    def relay(self, node: Node) -> Relay:
        """The node's way to the API server. `pause` it to see what an agent does without one."""
        if node.name not in self._relays:
            relay = Relay(node.namespace, self.api_port)
            self._open.callback(relay.close)
            self._relays[node.name] = relay
        return self._relays[node.name]

    def add_pod(self, node: Node, name: str, **server: Any) -> Pod:
        """A pod with a server in it, called like it. No Pod object is made: see `Scene.run_pod` and `Services`."""
        pod = self.fabric.add_pod(node, name)
        self.servers[name] = Server(pod, self.directory, **server)
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """Ends its server, which answers what it has begun, and takes away its namespace."""
        self.servers.pop(pod.name).stop()
        self.fabric.remove_pod(pod)

    def run_pod(self, scene: Scene, node: Node, name: str, labels: dict[str, str], **server: Any) -> Pod:
        """A pod with a server in it, and its Pod object: the control plane's controllers do the rest."""
        pod = self.add_pod(node, name, **server)
        scene.run_pod(name, node.name, pod.address(4), labels, pod.address(6))
        return pod

    def end_pod(self, scene: Scene, pod: Pod, pause: float = 0.5) -> None:
        """Ends a pod as a kubelet does: it drains, and after a preStop pause its server is told to end."""
        path = scene.path("pods", pod.name)
        self.kube.delete(path)
        time.sleep(pause)
        self.remove_pod(pod)
        self.kube.delete(path, gracePeriodSeconds="0")

    def describe(self) -> str:
        """The rules of each node and the end of its proxy's log, for a person."""
        parts = []
        for name, node in self.fabric.nodes.items():
            rules = node.namespace.run("nft", "list", "ruleset")
            parts += [f"--- {name}", self.proxies[name].process.tail(15), *rules.splitlines()[:200]]
        return "\n".join(parts)
