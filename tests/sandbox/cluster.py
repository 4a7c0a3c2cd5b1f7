"""A Kubernetes control plane of real parts on loopback ports: etcd, kube-apiserver, kube-controller-manager.

There are no kubelets: Nodes and Pods are objects that a test writes, with the status it wants them to have.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox import certificates
from sandbox.kube import Kube, Object
from sandbox.process import LOOPBACK, Process, free_port

#: A Service gets an IPv4 address unless it asks for more.
SERVICE_RANGES = ("10.96.0.0/16", "fd00:96::/108")
START_SECONDS = 60.0

CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "garbage-collector-controller",
)

#: ServiceAccount would make each Pod wait for a token mount that nobody uses; TaintNodesByCondition taints every
#: new Node as not ready and leaves it to the (absent) node lifecycle controller to take that back.
DISABLED_ADMISSION = ("ServiceAccount", "TaintNodesByCondition")


class ControlPlane:
    """Context manager: everything is up inside it, and gone after it. `directory` holds its state and its logs.

    What the users named in `audited` ask of the API server can be read by `audit`.
    """

    def __init__(self, directory: Path, binaries: Path | None = None, audited: Sequence[str] = ()) -> None:
        self.directory = directory
        self.binaries = binaries or Path(os.environ["WEIR_K8S_BIN"])
        self.server = f"https://{LOOPBACK}:{free_port()}"
        self.token = secrets.token_hex(16)
        self._audited = audited
        self._etcd = f"http://{LOOPBACK}:{free_port()}"
        self._etcd_peers = f"http://{LOOPBACK}:{free_port()}"
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
        self._processes = ExitStack()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._certificates = certificates.generate(
            self.directory / "pki", [LOOPBACK, "10.96.0.1"], ["localhost", "kubernetes.default.svc"]
        )
        self.kube = Kube(self.server, self.token, self._certificates.ca)
        self.kubeconfig = self.write_kubeconfig("admin", self.token)
        try:
            # All three at once: each retries until the one before it answers.
            self._start_etcd()
            api_server = self._start_api_server()
            controllers = self._start_controller_manager()
            api_server.wait_ready(self.kube.ready, START_SECONDS)
            controllers.wait_ready(self._controllers_run, START_SECONDS)
        except BaseException:
            self._processes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.close()

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Runs kubectl as cluster admin and returns its output; a failure raises with what it said."""
        done = subprocess.run(
            [str(self.binaries / "kubectl"), *map(str, arguments)],
            env={**self._environment, "KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def audit(self) -> list[Object]:
        """The requests of the audited users so far that have been answered, or are watches, oldest first."""
        return [json.loads(line) for line in (self.directory / "audit.log").read_text().splitlines()]

    def write_kubeconfig(self, name: str, token: str, server: str | None = None) -> Path:
        """A kubeconfig that verifies the API server and carries `token`; `server` if it is reached by another way."""
        authority = base64.b64encode(self._certificates.ca.read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "sandbox",
                    "cluster": {"server": server or self.server, "certificate-authority-data": authority},
                }
            ],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "sandbox", "user": name}}],
            "current-context": name,
        }
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def _start_etcd(self) -> Process:
        return self._start(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={self._etcd_peers}",
            f"--initial-advertise-peer-urls={self._etcd_peers}",
            f"--initial-cluster=default={self._etcd_peers}",
            "--unsafe-no-fsync",  # its data never has to survive a power cut
            "--log-level=warn",
        )

    def _start_api_server(self) -> Process:
        tokens = self.directory / "tokens.csv"
        tokens.write_text(f"{self.token},admin,admin,system:masters\n")
        keys = self._certificates
        return self._start(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            f"--bind-address={LOOPBACK}",
            f"--advertise-address={LOOPBACK}",
            f"--secure-port={self.server.rpartition(':')[2]}",
            f"--tls-cert-file={keys.server}",
            f"--tls-private-key-file={keys.server_key}",
            f"--service-account-key-file={keys.service_accounts}",
            f"--service-account-signing-key-file={keys.service_accounts}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            f"--service-cluster-ip-range={','.join(SERVICE_RANGES)}",
            "--endpoint-reconciler-type=none",
            f"--disable-admission-plugins={','.join(DISABLED_ADMISSION)}",
            "--allow-privileged=true",
            *self._audit_flags(),
        )

    def _audit_flags(self) -> list[str]:
        if not self._audited:
            return []
        rules = [{"level": "Metadata", "users": list(self._audited)}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        path = self.directory / "audit-policy.json"
        path.write_text(json.dumps(policy))
        return [f"--audit-policy-file={path}", f"--audit-log-path={self.directory / 'audit.log'}"]

    def _start_controller_manager(self) -> Process:
        return self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self._certificates.service_accounts}",
            f"--controllers={','.join(CONTROLLERS)}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )

    def _start(self, name: str, *flags: str) -> Process:
        log = self.directory / f"{name}.log"
        process = Process(name, [self.binaries / name, *flags], log, self._environment, self.directory)
        self._processes.callback(process.terminate)
        return process

    def _controllers_run(self) -> bool:
        # Made by the ServiceAccount controller, so all of the manager's start-up lies behind it.
        return self.kube.find("/api/v1/namespaces/default/serviceaccounts/default") is not None
