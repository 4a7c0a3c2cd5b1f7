"""The service proxies that can run on a node of the fabric: weir's node agent, and kube-proxy to compare it with."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.fabric import Node
from sandbox.process import LOOPBACK, Process
from sandbox.weir import binary
from sandbox.wire import get

HEALTHZ_PORT = 10256
METRICS_PORT = 10249
START_SECONDS = 30.0
#: How the nodes' ends of pods' cables begin, which is how a proxy tells its own pods' packets from others.
POD_INTERFACES = "eni"
#: Small enough that a test does not wait for it, large enough that a burst of changes is one.
MIN_SYNC_PERIOD = "20ms"
#: The name by which Services ask for weir while kube-proxy owns the rest.
SERVICE_PROXY_NAME = "weir"

#: Each proxy's word for what both can do.
Settings = dict[str, Any]


class ServiceProxy(ABC):
    """A proxy's process on a node. Its rules stay in the node's namespace when it ends, as in the kernel of a node.

    Both proxies know these settings: `nodeport_addresses` (a list of CIDRs, or `["primary"]`) and `detect_local`,
    which is false if packets of the node's pods shall not be told from others.
    """

    kind: str

    def __init__(self, node: Node, kubeconfig: Path, directory: Path, **settings: Any) -> None:
        self.node, self.kubeconfig, self.directory = node, kubeconfig, directory
        self.settings = settings
        self.log = directory / f"{self.kind}-{node.name}.log"
        self._process: Process | None = None

    def start(self, **settings: Any) -> None:
        """Starts it, with the settings it was made with and these. It is ready after `wait_ready`."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), **self.environment()}
        command = self.command({**self.settings, **settings})
        self._process = self.node.namespace.start(f"{self.kind} on {self.node.name}", command, self.log, environment)

    def wait_ready(self) -> None:
        """Returns after its first sync."""
        self.process.wait_ready(self.is_ready, START_SECONDS)

    def is_ready(self) -> bool:
        answer = get(self.node, LOOPBACK, self.healthz_port, "/healthz")
        return answer is not None and answer.status == 200

    def restart(self, **settings: Any) -> None:
        """Ends it in order and starts it again; without settings, as it was made."""
        self.stop()
        self.start(**settings)
        self.wait_ready()

    def stop(self) -> int:
        return self.process.terminate()

    def kill(self) -> None:
        """SIGKILL, between any two instructions of it."""
        self.process.kill()

    @property
    def process(self) -> Process:
        assert self._process, f"{self.kind} was not started"
        return self._process

    @property
    def healthz_port(self) -> int:
        return HEALTHZ_PORT

    @abstractmethod
    def command(self, settings: Settings) -> Sequence[str | Path]: ...

    def environment(self) -> dict[str, str]:
        return {}


class KubeProxy(ServiceProxy):
    """kube-proxy of the control plane's version. Setting besides the common ones: `mode` (nftables)."""

    kind = "kube-proxy"

    def command(self, settings: Settings) -> Sequence[str | Path]:
        mode = settings.get("mode", "nftables")
        masquerade_all = settings.get("masquerade_all", False)
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "hostnameOverride": self.node.name,
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 100, "burst": 200},
            "mode": mode,
            mode: {"syncPeriod": "30s", "minSyncPeriod": MIN_SYNC_PERIOD, "masqueradeAll": masquerade_all},
            "detectLocalMode": "InterfaceNamePrefix",
            "detectLocal": {"interfaceNamePrefix": POD_INTERFACES},
            "nodePortAddresses": settings.get("nodeport_addresses", ["primary"]),
            "healthzBindAddress": f"0.0.0.0:{HEALTHZ_PORT}",
            "metricsBindAddress": f"{LOOPBACK}:{METRICS_PORT}",
            # The host's own table sizes and timeouts are not ours to change.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        if not settings.get("detect_local", True):
            config |= {"detectLocalMode": "ClusterCIDR", "detectLocal": {}}
        path = self.directory / f"{self.kind}-{self.node.name}.json"
        path.write_text(json.dumps(config))
        return [Path(os.environ["WEIR_K8S_BIN"]) / "kube-proxy", f"--config={path}"]


class WeirNode(ServiceProxy):
    """`weir node`. Settings besides the common ones: `mode`, replace (the default) or beside, and `environment`."""

    kind = "weir"

    def command(self, settings: Settings) -> Sequence[str | Path]:
        beside = settings.get("mode") == "beside"
        healthz, metrics = (self.healthz_port, METRICS_PORT + 10000 * beside)
        flags = {
            "--node-name": self.node.name,
            "--mode": settings.get("mode", "replace"),
            "--service-proxy-name": SERVICE_PROXY_NAME,
            "--nodeport-addresses": ",".join(settings.get("nodeport_addresses", ["primary"])),
            "--healthz-address": f"0.0.0.0:{healthz}",
            "--metrics-address": f"{LOOPBACK}:{metrics}",
            "--min-sync-period": MIN_SYNC_PERIOD,
        }
        if settings.get("detect_local", True):
            flags["--pod-interface-prefixes"] = POD_INTERFACES
        switches = ["--masquerade-all"] if settings.get("masquerade_all") else []
        return [binary(), "node", *(f"{name}={value}" for name, value in flags.items()), *switches]

    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig), "RUST_BACKTRACE": "1", **self.settings.get("environment", {})}

    @property
    def healthz_port(self) -> int:
        # Beside kube-proxy, its ports are taken.
        return HEALTHZ_PORT + 10000 * (self.settings.get("mode") == "beside")


PROXIES: dict[str, type[ServiceProxy]] = {each.kind: each for each in (KubeProxy, WeirNode)}


@functools.cache
def missing(kind: str) -> str | None:
    """Why a proxy cannot run here, in words for a skipped test; `None` if it can."""
    if kind != WeirNode.kind:
        return None
    try:
        done = subprocess.run([binary(), "node", "--help"], capture_output=True, check=False)
    except FileNotFoundError:
        return f"{binary()} is not built"
    return None if done.returncode == 0 else f"{binary()} has no subcommand `node`"
