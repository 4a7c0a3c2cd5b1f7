"""The images and what is told about them, as far as that can be known without a container engine.

That the binary runs with the root, the user and the variables of its image is shown by tests/test_manifests.py.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib

import yaml

from sandbox.image import stages
from sandbox.manifests import MANIFESTS
from sandbox.weir import ROOT

CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())
LOCK = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]


def test_base_images_are_pinned_by_digest_and_rust_is_the_repositorys() -> None:
    bases = [stage.base for stage in stages().values() if stage.base not in stages()]
    pinned = {base for base in bases if re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", base)}
    assert set(bases) - pinned == {"scratch"}
    [rust] = [base for base in pinned if base.startswith("rust:")]
    channel = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    assert rust.startswith(f"rust:{channel}-slim-")


def test_only_crates_come_from_the_network_and_only_those_of_the_lock() -> None:
    runs = [(stage.name, run) for stage in stages().values() for run in stage.all("RUN")]
    online = [(name, run) for name, run in runs if not run.startswith("--network=none ")]
    assert [name for name, _ in online] == ["crates"]
    assert online[0][1].endswith("cargo fetch --locked")
    assert "cargo build --frozen --release" in " ".join(stages()["build"].all("RUN"))
    assert not [stage.name for stage in stages().values() if stage.all("ADD")]


def test_what_is_copied_exists_and_is_in_the_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    context = {pattern.removeprefix("!") for pattern in ignored if pattern.startswith("!")}
    assert ignored[0] == "*" and all((ROOT / each).exists() for each in context)
    for stage in stages().values():
        for copy in stage.all("COPY"):
            options = re.findall(r"--(\w+)=(\S+)", copy)
            sources = [word for word in copy.split() if not word.startswith("--")][:-1]
            if origin := dict(options).get("from"):
                assert list(stages()).index(origin) < list(stages()).index(stage.name)
            else:
                assert set(sources) <= context


def test_users_are_numbers_and_those_of_the_manifests() -> None:
    """A kubelet can judge runAsNonRoot by a number only."""
    users = {stage.name: stage.last("USER") for stage in stages().values() if stage.all("USER")}
    told = {}
    for role, file in (("controller", "deployment"), ("node", "daemonset")):
        objects = yaml.safe_load_all((MANIFESTS / "base" / role / f"{file}.yaml").read_text())
        pod = next(objects)["spec"]["template"]["spec"]
        context = {**pod["securityContext"], **pod["containers"][0]["securityContext"]}
        told[role] = f"{context['runAsUser']}:{context['runAsGroup']}"
    assert users == told


def test_one_version_is_told_everywhere() -> None:
    version = CARGO["package"]["version"]
    chart = yaml.safe_load((MANIFESTS / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    texts = [*MANIFESTS.rglob("*.yaml"), ROOT / "Dockerfile", ROOT / "docs" / "install.md"]
    tags = [tag for path in texts for tag in re.findall(r"\bweir(?:-node)?:(\d[\w.]*)", path.read_text())]
    assert len(tags) >= 8 and set(tags) == {version}


def test_the_sbom_names_what_is_linked_and_nothing_else() -> None:
    first, second = (
        subprocess.run([sys.executable, ROOT / ".ci" / "sbom.py"], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    document = json.loads(first)
    parts = {(part["name"], part["version"]): part for part in document["components"]}
    assert len(parts) == len(document["components"])
    locked = {(each["name"], each["version"]): each.get("checksum") for each in LOCK}
    for part, described in parts.items():
        assert described["hashes"] == [{"alg": "SHA-256", "content": locked[part]}]
        assert described["purl"].startswith(f"pkg:cargo/{part[0]}@") and described["licenses"]
    names = {name for name, _ in parts}
    assert set(CARGO["dependencies"]) <= names
    assert not set(CARGO["dev-dependencies"]) & names
    assert not {name for name in names if fnmatch.fnmatch(name, "windows*") or name.endswith(("_derive", "-macros"))}
    known = {document["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in parts.values())}
    assert {each["ref"] for each in document["dependencies"]} == known
    assert {other for each in document["dependencies"] for other in each["dependsOn"]} <= known
