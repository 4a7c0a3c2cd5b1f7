"""The container images, without a container engine: what the Dockerfile says, and what would be in them."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
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
    """An image as the Dockerfile's stage `target` would make it, but with this machine's binary, libraries and nft."""
    stage = stages()[target]
    base = {} if stage.base == "scratch" else foundation()
    user, _, group = stage.last("USER").partition(":")
    variables = [pair for line in stage.all("ENV") for pair in line.split()]
    environment = dict(pair.split("=", 1) for pair in variables)
    return Image({**base, **copies(stage)}, json.loads(stage.last("ENTRYPOINT")), environment, int(user), int(group))


def copies(stage: Stage) -> dict[str, str]:
    """What a stage copies out of the directory /image of the stage `build`."""
    found: dict[str, str] = {}
    for copy in stage.all("COPY"):
        origin, *sources, target = copy.split()
        assert origin == "--from=build", copy
        for source in sources:
            pattern = source.removeprefix("/image").lstrip("/")
            matches = list(assembled().glob(pattern)) if pattern else list(assembled().iterdir())
            assert matches, f"COPY finds nothing: {copy}"
            for match in matches:
                files = [match] if match.is_file() else [path for path in match.rglob("*") if path.is_file()]
                found |= {f"{target}{path.relative_to(match.parent)}": str(path) for path in files}
    return found


@cache
def assembled() -> Path:
    """The directory /image of the stage `build`, made by that stage's own commands. It goes with this process."""
    directory = Path(tempfile.mkdtemp(prefix="weir-image-"))
    atexit.register(shutil.rmtree, directory)
    stage = stages()["build"]
    [command] = [run for run in stage.all("RUN") if "mkdir /image" in run]
    command = command.removeprefix("--network=none ").replace("mkdir /image", "true")
    command = command.replace("target/release/weir", str(binary())).replace("/image/", f"{directory}/")
    subprocess.run(["bash", "-euc", command], check=True)
    for copy in stage.all("COPY"):
        source, _, target = copy.partition(" ")
        if target == "/image/":
            shutil.copy(ROOT / source, directory)
    return directory


def foundation() -> dict[str, str]:
    """What the node's base image has of what is needed: nft, and Debian's C library."""
    nft = Path(shutil.which("nft") or "/usr/sbin/nft")
    linked = {**libraries(nft), **libraries(binary())}
    return {"/usr/sbin/nft": str(nft), **{path: file for path, file in linked.items() if "libgcc_s" not in path}}


def libraries(program: Path) -> dict[str, str]:
    """What a program links, the loader included, at the paths where it looks for them."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {path: str(Path(path).resolve()) for path in re.findall(r"/\S+", said)}
