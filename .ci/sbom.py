#!/usr/bin/env python3
"""Writes what the binary is made of, as a CycloneDX 1.6 document, to stdout.

    sbom.py > weir.cdx.json

Crates that are linked into weir on the platforms that images are made for, with their checksums from Cargo.lock. What
is used only to test or to build (macros among it) is left out. The same commit gives the same document. Needs no
network once the crates are fetched; runs on the system's Python with nothing but the standard library.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")

Package = dict[str, Any]


def main() -> None:
    json.dump(document(), sys.stdout, indent=2)
    print()


def document() -> dict[str, Any]:
    metadata = cargo_metadata()
    packages = {package["id"]: package for package in metadata["packages"]}
    edges = {node["id"]: sorted(linked(node, packages)) for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    parts = sorted(reachable(root, edges), key=lambda part: purl(packages[part]))
    lock = (ROOT / "Cargo.lock").read_text()
    checksums = {(each["name"], each["version"]): each.get("checksum") for each in tomllib.loads(lock)["package"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The document has no identity but its content.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {"component": component(packages[root], "application", checksums)},
        "components": [component(packages[part], "library", checksums) for part in parts if part != root],
        "dependencies": [
            {"ref": purl(packages[part]), "dependsOn": [purl(packages[other]) for other in edges[part]]}
            for part in parts
        ],
    }


def cargo_metadata() -> dict[str, Any]:
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--offline"]
    command += [f"--filter-platform={platform}" for platform in PLATFORMS]
    return json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)


def linked(node: dict[str, Any], packages: dict[str, Package]) -> Iterator[str]:
    """The dependencies of a package that end up in the same binary."""
    for dependency in node["deps"]:
        is_normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
        is_macro = any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
        if is_normal and not is_macro:
            yield dependency["pkg"]


def reachable(root: str, edges: dict[str, list[str]]) -> set[str]:
    found, ahead = {root}, [root]
    while ahead:
        fresh = set(edges[ahead.pop()]) - found
        found |= fresh
        ahead += fresh
    return found


def component(package: Package, kind: str, checksums: dict[tuple[str, str], str | None]) -> dict[str, Any]:
    described = {"type": kind, "bom-ref": purl(package), "name": package["name"], "version": package["version"]}
    if checksum := checksums[package["name"], package["version"]]:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["license"]:
        # Older crates write a slash where SPDX wants OR.
        described["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
    return {**described, "purl": purl(package)}


def purl(package: Package) -> str:
    return f"pkg:cargo/{package['name']}@{package['version'].replace('+', '%2B')}"


if __name__ == "__main__":
    main()
