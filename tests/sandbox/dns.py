"""The cluster's DNS: CoreDNS as a pod, behind the Service `kube-dns` that each node's service proxy forwards."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.fabric import Node, Pod
from sandbox.netns import Relay
from sandbox.process import Process
from sandbox.wire import get
from sandbox.workers import Workers

#: Where pods' resolvers look, by convention.
DNS_ADDRESS = "10.96.0.10"
DOMAIN = "cluster.local"
START_SECONDS = 20.0

_READY_PORT = 8181
_SYSTEM = "/api/v1/namespaces/kube-system"
_LABELS = {"k8s-app": "kube-dns"}
#: Answers are kept for a second: a test that deletes a Service sees its name go.
_COREFILE = """.:53 {{
    errors
    ready :{ready}
    cache 1
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
"""


def coredns_binary() -> Path:
    """CoreDNS, built by prepare.py."""
    return Path(os.environ["WEIR_COREDNS"])


class ClusterDns:
    """CoreDNS on a node, serving when made; it ends with the `Workers`, `close` takes away its objects."""

    def __init__(self, workers: Workers, node: Node) -> None:
        self._workers, self._kube = workers, workers.kube
        self.pod: Pod = workers.fabric.add_pod(node, "coredns")
        self._relay = Relay(self.pod.namespace, workers.api_port)
        server = f"https://127.0.0.1:{self._relay.port}"
        control_plane = workers.control_plane
        kubeconfig = control_plane.write_kubeconfig(f"coredns-{self._relay.port}", control_plane.token, server)
        corefile = workers.directory / "Corefile"
        corefile.write_text(_COREFILE.format(ready=_READY_PORT, domain=DOMAIN, kubeconfig=kubeconfig))
        command = [coredns_binary(), "-conf", corefile]
        log = workers.directory / "coredns.log"
        self._process: Process = self.pod.namespace.start("coredns", command, log, {"HOME": str(workers.directory)})
        self._process.wait_ready(self._is_ready, START_SECONDS)
        self._publish()

    def resolve_in(self, pod: Pod, namespace: str) -> None:
        """Processes started in a pod from now on resolve as those of a pod of this Kubernetes namespace."""
        search = [f"{namespace}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN]
        pod.namespace.resolver(DNS_ADDRESS, search)

    def close(self) -> None:
        self._process.terminate()
        self._relay.close()
        self._kube.delete(f"{_SYSTEM}/services/kube-dns")
        self._kube.delete(f"{_SYSTEM}/pods/coredns", gracePeriodSeconds="0")

    def _is_ready(self) -> bool:
        answer = get(self.pod, "127.0.0.1", _READY_PORT, "/ready")
        return answer is not None and answer.status == 200

    def _publish(self) -> None:
        """The Pod and the Service, as any cluster has them."""
        ports = [{"name": f"dns-{name}".lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")]
        spec = {"clusterIP": DNS_ADDRESS, "selector": _LABELS, "ports": ports}
        self._kube.create(f"{_SYSTEM}/services", {"metadata": {"name": "kube-dns"}, "spec": spec})
        pod = {
            "metadata": {"name": "coredns", "labels": _LABELS},
            "spec": {"nodeName": self.pod.node.name, "containers": [{"name": "coredns", "image": "none"}]},
        }
        self._kube.create(f"{_SYSTEM}/pods", pod)
        ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "PodScheduled")]
        status = {"phase": "Running", "podIP": self.pod.address(4), "podIPs": [{"ip": self.pod.address(4)}]}
        self._kube.patch(f"{_SYSTEM}/pods/coredns/status", {"status": {**status, "conditions": ready}})
