"""`weir plan` and `weir gc`: short-lived processes that see one cluster and one account."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.aws import Account
from sandbox.cluster import ControlPlane
from sandbox.weir import REGION, binary

NOTHING, FAILED, PENDING = 0, 1, 2
"""Exit codes."""

#: An environment in which every use of a network fails.
ISOLATED = {"KUBECONFIG": "/nonexistent", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": REGION}


@dataclass(frozen=True)
class Answer:
    """What one run printed, and its exit code."""

    code: int
    text: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        """What a run with `--output=json` says."""
        parsed: dict[str, Any] = json.loads(self.text)
        return parsed

    def service(self, name: str) -> dict[str, Any]:
        """A Service's part of the report of a plan."""
        [found] = [line for line in self.report["services"] if line["service"].rpartition("/")[2] == name]
        return dict(found)


class Asker:
    """Runs `weir` for a person who may look at this cluster and this account."""

    def __init__(self, control_plane: ControlPlane, account: Account, directory: Path) -> None:
        self._directory = directory
        self._variables = {
            "KUBECONFIG": str(control_plane.kubeconfig),
            "AWS_ENDPOINT_URL": account.localstack.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": account.id,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ask(self, *arguments: str, stdin: str = "", **variables: str) -> Answer:
        """`variables` replace those of the environment, which has no others."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "RUST_BACKTRACE": "1"}
        done = subprocess.run(
            [str(binary()), *arguments],
            env=environment | self._variables | variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "panicked" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)
