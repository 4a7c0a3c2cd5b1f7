"""How the test control plane is built from the modules pinned in `go.mod` and `go.sum` beside this file."""

from __future__ import annotations

import os
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: What a test cluster needs, and the service proxy that weir's is compared with.
BINARIES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}

#: Everything that decides what the binaries are: the name of the cached result is a hash of these.
INPUTS = (HERE / "go.mod", HERE / "go.sum", Path(__file__).resolve())


def kubernetes_version() -> str:
    """The pinned version, without the leading v."""
    return re.findall(r"^\s*k8s\.io/kubernetes v(\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)[0]


def command(name: str, out: Path) -> list[str]:
    """The command, run in this directory, that builds one of `BINARIES` into `out`."""
    return ["go", "build", *_flags(), "-o", str(out / name), BINARIES[name]]


def environment() -> dict[str, str]:
    """No C compiler is needed, and neither an enclosing workspace nor a cross target may change the result."""
    return {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "", "GOOS": "", "GOARCH": ""}


def _flags() -> list[str]:
    """Stamps the version as a release build does; without it /version would say v0.0.0-master."""
    version = kubernetes_version()
    major, minor, _patch = version.split(".")
    stamps = {
        "gitVersion": f"v{version}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    values = [
        f"-X {package}.{key}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in stamps.items()
    ]
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", " ".join(["-s -w", *values])]
