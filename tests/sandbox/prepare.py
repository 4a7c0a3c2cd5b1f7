#!/usr/bin/env python3
"""Makes ready what the tests and the demo run on, once per change of its inputs.

    prepare.py               builds or finds the Kubernetes binaries and the Python environment of the AWS emulator
    prepare.py --print-env   the same, then prints `export NAME=path` lines for the shell

Progress goes to stderr. Results live under $WEIR_CACHE (default ~/.cache/weir), named by a hash of their inputs, and
several checkouts share them. Runs on the system's Python with nothing but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from kubernetes import build as control_plane

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = ROOT / "localstack" / "requirements.txt"
PLUGIN = ROOT / "localstack" / "plugin"
#: What an earlier installation by hand may have left in the plugin's directory; setuptools would install it again.
LEFTOVERS = {"build", "__pycache__"}

#: What the module in `helm` is there for.
HELM = "helm.sh/helm/v4/cmd/helm"

#: Where the definitions of ServiceMonitors and PrometheusRules are: a module, its version, its checksum as in a go.sum,
#: and files in it.
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
OPERATOR_VERSION = "v0.92.0"
OPERATOR_SUM = "h1:tAbsod3+9sQsxDeAvLP27dAe9terToht5M+YdDwLGP0="
OPERATOR_KINDS = ("servicemonitors", "prometheusrules")
OPERATOR_FILES = Path("example", "prometheus-operator-crd")

#: The emulator imports what 3.13 brought; its pinned dependencies have wheels up to 3.13.
PYTHONS = ("3.13",)

PROGRESS_SECONDS = 15.0

#: Commands that are neither built nor cached here, and the Debian package that brings each.
SYSTEM_COMMANDS = {"cc": "gcc libc6-dev"}
#: The same for tests with nodes in network namespaces. They need root; without it, they are skipped.
NODE_COMMANDS = {"ip": "iproute2", "nft": "nftables", "conntrack": "conntrack", "iptables": "iptables"}

HOW_TO_GET = {
    "cargo": "Install Rust with rustup (https://rustup.rs); rust-toolchain.toml then picks the version.",
    "go": "Install Go 1.26 or newer (https://go.dev/doc/install) and put its bin directory on PATH.",
    "python": (
        "Install one with pyenv (`pyenv install 3.13`), or with your distribution's python3.13 and python3.13-venv."
    ),
}


class Missing(Exception):
    """Something the machine lacks, said in a sentence with the way to get it."""


class Failed(Exception):
    """A command that ended badly, with the end of what it said."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-env", action="store_true", help="print export lines for the shell when done")
    options = parser.parse_args()
    cache = Path(os.environ.get("WEIR_CACHE") or Path.home() / ".cache" / "weir").resolve()
    try:
        require("cargo", "weir is written in Rust")
        with locked(cache):
            system_commands()
            binaries = step("Kubernetes control plane", lambda: kubernetes(cache))
            traffic = step("servers and clients", lambda: go_program(cache, HERE / "traffic"))
            dns = step("CoreDNS", lambda: go_program(cache, HERE / "coredns"))
            helm = step("Helm", lambda: go_program(cache, HERE / "helm", HELM))
            operator = step("definitions of the Prometheus Operator", lambda: operator_definitions(cache))
            base = step("Python packages", lambda: packages(cache))
            python = step("AWS emulator", lambda: emulator(cache, base))
    except (Missing, Failed) as error:
        say(f"error: {error}")
        return 1
    if options.print_env:
        print(f"export WEIR_K8S_BIN={shlex.quote(str(binaries))}")
        print(f"export WEIR_TRAFFIC={shlex.quote(str(traffic))}")
        print(f"export WEIR_COREDNS={shlex.quote(str(dns))}")
        print(f"export WEIR_HELM={shlex.quote(str(helm))}")
        print(f"export WEIR_OPERATOR_DEFINITIONS={shlex.quote(str(operator))}")
        print(f"export WEIR_PYTHON={shlex.quote(str(python))}")
    return 0


def kubernetes(cache: Path) -> Path:
    """The directory with etcd, kube-apiserver, kube-controller-manager, kube-proxy and kubectl."""
    home = cache / f"kubernetes-{digest(control_plane.INPUTS)}"
    binaries = home / "bin"
    if binaries.is_dir():
        return binaries
    require("go", "the Kubernetes control plane is built from source")
    for interrupted in cache.glob("building-*"):
        shutil.rmtree(interrupted)
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as scratch:
        out = Path(scratch) / "bin"
        out.mkdir()
        for name in control_plane.BINARIES:
            command = control_plane.command(name, out)
            run(f"building {name}", command, cwd=control_plane.HERE, env=control_plane.environment())
        home.mkdir(exist_ok=True)
        out.rename(binaries)  # a directory that exists is complete
    return binaries


def go_program(cache: Path, directory: Path, package: str = ".") -> Path:
    """The program of a Go module of ours, or of a package that it pins, called like the module's directory."""
    files = [path for path in sorted(directory.iterdir()) if path.suffix in {".go", ".mod", ".sum"}]
    program = cache / f"{directory.name}-{digest(files)}" / directory.name
    if program.is_file():
        return program
    require("go", f"{directory.name} is built from source")
    program.parent.mkdir(exist_ok=True)
    unfinished = program.with_suffix(".unfinished")
    flags = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"]
    command: list[str | Path] = ["go", "build", *flags, "-o", unfinished, package]
    run(f"building {directory.name}", command, cwd=directory, env=control_plane.environment())
    unfinished.rename(program)
    return program


def operator_definitions(cache: Path) -> Path:
    """The Prometheus Operator's definitions of what our manifests use, in one file."""
    definition = cache / f"prometheus-operator-{OPERATOR_VERSION}" / f"{'-'.join(OPERATOR_KINDS)}.yaml"
    if definition.is_file():
        return definition
    require("go", "it fetches the Prometheus Operator")
    with tempfile.TemporaryDirectory() as scratch:  # outside any module
        command = ["go", "mod", "download", "-json", f"{OPERATOR}@{OPERATOR_VERSION}"]
        done = subprocess.run(command, cwd=scratch, env=control_plane.environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"fetching the Prometheus Operator failed:\n{done.stderr.strip()}")
    module = json.loads(done.stdout)
    if module["Sum"] != OPERATOR_SUM:
        raise Failed(f"{OPERATOR} {OPERATOR_VERSION} has the checksum {module['Sum']}, not {OPERATOR_SUM}")
    definition.parent.mkdir(exist_ok=True)
    unfinished = definition.with_suffix(".unfinished")
    files = [Path(module["Dir"]) / OPERATOR_FILES / f"monitoring.coreos.com_{kind}.yaml" for kind in OPERATOR_KINDS]
    unfinished.write_text("\n---\n".join(file.read_text() for file in files))
    unfinished.rename(definition)
    return definition


def packages(cache: Path) -> Path:
    """The Python of a virtual environment with everything pinned in requirements.txt."""
    if not REQUIREMENTS.is_file():
        raise Missing(f"{REQUIREMENTS} does not exist: this checkout is incomplete.")

    def fill(home: Path) -> None:
        run("creating a virtual environment", [find_python(), "-m", "venv", home])
        pip: list[str | Path] = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
        run("installing the pinned packages", [*pip, "--require-hashes", "-r", REQUIREMENTS])

    return environment(cache / f"python-{digest([REQUIREMENTS])}", fill)


def emulator(cache: Path, base: Path) -> Path:
    """The Python of a thin environment over `base`, with our plugin: editing the plugin costs seconds, not minutes."""

    def fill(home: Path) -> None:
        run("creating a virtual environment", [base, "-m", "venv", "--without-pip", home])
        python = home / "bin" / "python"
        (site_packages(python) / "base.pth").write_text(f"{site_packages(base)}\n")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "plugin"  # setuptools writes build files beside the sources it is given
            shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns(*LEFTOVERS))
            pip: list[str | Path] = [base, "-m", "pip", "--python", python, "install", "--quiet"]
            run("installing the emulator's plugin", [*pip, "--no-build-isolation", "--no-deps", copy])

    return environment(cache / f"emulator-{digest([REQUIREMENTS, *sources(PLUGIN)])}", fill)


def environment(home: Path, fill: Callable[[Path], None]) -> Path:
    """The Python of the environment at `home`, made by `fill` unless a complete one is there.

    An environment holds its own path and cannot be moved into place, so a mark says that it is complete.
    """
    complete = home / "complete"
    if not complete.is_file():
        shutil.rmtree(home, ignore_errors=True)
        fill(home)
        complete.touch()
    return home / "bin" / "python"


def site_packages(python: Path) -> Path:
    """Where this Python looks for installed packages."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def find_python() -> str:
    """The newest supported Python that really starts and can make environments (a pyenv shim may do neither)."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in PYTHONS:
        installed = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
        for candidate in filter(None, [shutil.which(f"python{version}"), *map(str, installed)]):
            check = [candidate, "-c", "import ensurepip, ssl, sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(check, capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip() == version:
                return candidate
    raise Missing(f"Python {' or '.join(PYTHONS)} is missing: the AWS emulator runs on it. {HOW_TO_GET['python']}")


def require(command: str, why: str) -> None:
    if shutil.which(command) is None:
        raise Missing(f"`{command}` is missing: {why}. {HOW_TO_GET[command]}")


def system_commands() -> None:
    """Installs what Debian has and this machine lacks, if we may; otherwise says the command to run."""
    required, for_nodes = absent_packages(SYSTEM_COMMANDS), absent_packages(NODE_COMMANDS)
    if not required and not for_nodes:
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends"]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        if required:
            raise Missing(f"a system package is missing. As root, run: {' '.join([*install, *required])}")
        say(f"tests with nodes will be skipped; they need root and: {' '.join([*install, *for_nodes])}")
        return
    run("updating the package list", ["apt-get", "update", "--quiet"])
    run("installing system packages", [*install, *required, *for_nodes])


def absent_packages(commands: dict[str, str]) -> list[str]:
    """The packages of those commands that are not installed."""
    absent = [package for command, package in commands.items() if shutil.which(command) is None]
    return " ".join(absent).split()


def sources(directory: Path) -> list[Path]:
    """The files that decide what an installed package is."""
    found = [path for path in sorted(directory.rglob("*")) if path.suffix in {".py", ".toml"}]
    return [path for path in found if not LEFTOVERS.intersection(path.relative_to(directory).parts)]


def digest(files: Iterable[Path]) -> str:
    """A short name for the content of these files, the same in every checkout."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One preparation at a time per cache; the second waits, then finds everything done."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is preparing; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def step(name: str, action: Callable[[], T]) -> T:
    """Runs `action` and says how long it took."""
    started = time.monotonic()
    result = action()
    say(f"{name}: ready ({time.monotonic() - started:.1f} s)")
    return result


def run(what: str, command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Runs a command with a sign of life at least every 15 seconds; its output is shown only if it fails."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=env
        ) as child:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = child.wait(PROGRESS_SECONDS)
                    break
                say(f"  {what} … {time.monotonic() - started:.0f} s")
        if status != 0:
            output.seek(0)
            raise Failed(f"{what} failed:\n{output.read().decode(errors='replace')[-4000:].strip()}")
    say(f"  {what}: done ({time.monotonic() - started:.1f} s)")


def say(line: str) -> None:
    print(f"prepare: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
