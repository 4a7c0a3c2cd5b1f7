"""One container of a pod, run without a container engine: its own root, its user, its capabilities, its variables.

What a kubelet and a container runtime would do with the pod's spec is done here by mounts and system calls, so that a
manifest that forbids too much, or forgets something, fails here as it would in a cluster. Two things are left out:
the seccomp profile, which is the runtime's, and limits on memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sandbox.cluster import ControlPlane
from sandbox.fabric import Host
from sandbox.image import Image
from sandbox.kube import Object
from sandbox.process import LOOPBACK, Process
from sandbox.wire import get

START_SECONDS = 30.0
ACCOUNT_FILES = "/var/run/secrets/kubernetes.io/serviceaccount"
#: What a kubelet puts into every container besides.
NAMES = ("/etc/hosts", "/etc/resolv.conf")
#: Numbers of the capabilities that a manifest of ours may name, from linux/capability.h.
CAPABILITIES = {"NET_ADMIN": 12}


class Container:
    """The container `weir` of a pod that `workload`, a Deployment or DaemonSet, makes on `host`. Starts at once.

    `api_port` is the loopback port of `host` that leads to the API server, where a pod has the Service `kubernetes`.
    `more` are variables that something else in a cluster would add: an IRSA webhook, for example.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        workload: Object,
        image: Image,
        host: Host,
        api_port: int,
        directory: Path,
        name: str,
        more: dict[str, str] | None = None,
    ) -> None:
        self.workload, self.host, self.name = workload, host, name
        self._pod: Object = workload["spec"]["template"]["spec"]
        containers = [*self._pod.get("initContainers", []), *self._pod["containers"]]
        [self._container] = [each for each in containers if each["name"] == "weir"]
        directory.mkdir(parents=True, exist_ok=True)
        mounts = [(each, each) for each in NAMES]
        if self._pod["automountServiceAccountToken"]:
            mounts.append((ACCOUNT_FILES, str(self._account_files(control_plane, directory))))
        variables = {"HOSTNAME": name, "KUBERNETES_SERVICE_HOST": LOOPBACK, "KUBERNETES_SERVICE_PORT": str(api_port)}
        mount_point = directory / f"{name}-root"
        mount_point.mkdir()
        plan = {
            "mount_point": str(mount_point),
            "root": [*image.files.items(), *mounts],
            "arguments": [*image.entrypoint, *self._container.get("args", [])],
            "environment": {**image.environment, **variables, **(more or {}), **self.environment},
            **self._security(image),
        }
        log = directory / f"{name}.log"
        command = [*host.namespace.prefix, sys.executable, "-m", "sandbox.container", json.dumps(plan)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = Process(name, command, log, environment)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the spec, with what the downward API gives."""
        metadata = self.workload["metadata"]
        fields = {"metadata.namespace": metadata["namespace"], "metadata.name": self.name, "spec.nodeName": self.name}
        return {
            each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] if "valueFrom" in each else each["value"]
            for each in self._container.get("env", [])
        }

    def wait_ready(self) -> None:
        """Returns when the readiness probe and the liveness probe of the spec succeed."""
        self.process.wait_ready(lambda: self.passes("readinessProbe") and self.passes("livenessProbe"), START_SECONDS)

    def passes(self, probe: str) -> bool:
        """Asks what the kubelet would ask, from the same place."""
        asked = self._container[probe]["httpGet"]
        port = self.ports[asked["port"]]
        answer = get(self.host, asked.get("host", LOOPBACK), port, asked["path"])
        return answer is not None and answer.status == 200

    @property
    def ports(self) -> dict[str, int]:
        """The container's ports by their names."""
        return {each["name"]: each["containerPort"] for each in self._container["ports"]}

    def stop(self) -> int:
        return self.process.terminate(self._pod["terminationGracePeriodSeconds"])

    def _account_files(self, control_plane: ControlPlane, directory: Path) -> Path:
        """What a kubelet mounts for the ServiceAccount: a token with its rights, and how to know the API server."""
        namespace, account = self.workload["metadata"]["namespace"], self._pod["serviceAccountName"]
        files = directory / f"{self.name}-account"
        files.mkdir(mode=0o755)
        (files / "token").write_text(control_plane.kube.service_account_token(namespace, account))
        (files / "ca.crt").write_bytes(control_plane.kube.ca.read_bytes())
        (files / "namespace").write_text(namespace)
        return files

    def _security(self, image: Image) -> Object:
        context = {**self._pod["securityContext"], **self._container["securityContext"]}
        user, group = context.get("runAsUser", image.user), context.get("runAsGroup", image.group)
        assert user != 0 or not context.get("runAsNonRoot"), "the kubelet refuses user 0 under runAsNonRoot"
        capabilities = context["capabilities"]
        assert capabilities["drop"] == ["ALL"], "only what is added is left"
        return {
            "user": user,
            "group": group,
            "groups": [context["fsGroup"]] if "fsGroup" in context else [],
            "capabilities": [CAPABILITIES[each] for each in capabilities.get("add", [])],
            "read_only": context.get("readOnlyRootFilesystem", False),
            "no_new_privileges": not context.get("allowPrivilegeEscalation", True),
        }


# --- in the child: from here on it is the container runtime

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38


def main() -> None:
    """Becomes the container that the plan in the first argument describes."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    parent = os.getppid()
    last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    _call(_LIBC.unshare, _CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    os.chroot(_root(plan))
    os.chdir("/")
    for capability in set(range(last_capability + 1)) - set(plan["capabilities"]):
        _call(_LIBC.prctl, _PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(plan["groups"])
    os.setgid(plan["group"])
    os.setuid(plan["user"])
    if plan["no_new_privileges"]:
        _call(_LIBC.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of the user has cleared what the parent asked for.
    _call(_LIBC.prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
    os.execve(plan["arguments"][0], plan["arguments"], plan["environment"])


def _root(plan: dict[str, Any]) -> Path:
    """A root file system with just what the plan names, and what every container has: /proc, /sys and three devices."""
    root = Path(plan["mount_point"])
    _mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for inside, outside in [*plan["root"], *((each, each) for each in ("/dev/null", "/dev/zero", "/dev/urandom"))]:
        _bind(Path(outside), root / inside.lstrip("/"), read_only=not inside.startswith("/dev/"))
    # As a runtime does it without privileges: the kernel's settings can be read only.
    _bind(Path("/proc"), root / "proc")
    _bind(Path("/proc/sys"), root / "proc/sys", read_only=True)
    _bind(Path("/sys"), root / "sys", read_only=True)
    if plan["read_only"]:
        _mount(None, root, None, _MS_REMOUNT | _MS_RDONLY, "mode=755")
    return root


def _bind(outside: Path, inside: Path, read_only: bool = False) -> None:
    if not inside.exists():
        inside.parent.mkdir(parents=True, exist_ok=True)
        if outside.is_dir():
            inside.mkdir()
        else:
            inside.touch()
    _mount(outside, inside, None, _MS_BIND)
    if read_only:
        _mount(None, inside, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _mount(what: str | Path | None, where: str | Path, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if each is None else os.fsencode(each) for each in (what, where, kind, data)]
    _call(_LIBC.mount, *words[:3], ctypes.c_ulong(flags), words[3])


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function.__name__}{arguments}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
