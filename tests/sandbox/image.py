"""The container images, without a container engine: what the Dockerfile says, and what would be in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.weir import ROOT, binary

DOCKERFILE = ROOT / "Dockerfile"


@dataclass
class Stage:
    """One stage: what it starts from, and its instructions as (word, rest), options included."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        """The rest of each instruction of this word."""
        return [rest for each, rest in self.instructions if each == word]

    def last(self, word: str) -> str:
        return self.all(word)[-1]


@dataclass(frozen=True)
class Image:
    """What a runtime takes from an image. `files` are paths in it, with files of this machine that stand for them."""

    files: dict[str, str]
    entrypoint: list[str]
    environment: dict[str, str]
    user: int
    group: int


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile, by name."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
        elif word:
            stage.instructions.append((word, rest))
    return found


def image(target: str) -> Image:
    """An image as the Dockerfile's stage `target` would make it, from this machine's binary, libraries and nft."""
    stage = stages()[target]
    files = {"/weir": str(binary()), **libraries(binary())}
    if target == "controller":
        copied = re.findall(r"cp --parents --dereference (/\S+) /image/", " ".join(stages()["build"].all("RUN")))
        files |= {path: str(Path(path).resolve()) for path in copied}
    if target == "node":
        nft = Path(shutil.which("nft") or "/usr/sbin/nft")
        files |= {"/usr/sbin/nft": str(nft), **libraries(nft)}
    user, _, group = stage.last("USER").partition(":")
    variables = [pair for line in stage.all("ENV") for pair in line.split()]
    environment = dict(pair.split("=", 1) for pair in variables)
    return Image(files, json.loads(stage.last("ENTRYPOINT")), environment, int(user), int(group))


def libraries(program: Path) -> dict[str, str]:
    """What a program links, the loader included, at the paths where it looks for them."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {path: str(Path(path).resolve()) for path in re.findall(r"/\S+", said)}
