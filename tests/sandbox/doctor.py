"""`weir doctor` as a short-lived process, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.weir import REGION, binary

Finding = dict[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """What it said, and its exit code."""

    code: int
    findings: list[Finding]
    fine: list[str]
    skipped: dict[str, str]
    """Why a check could not look, by the check's id."""

    @property
    def ids(self) -> list[str]:
        return [finding["id"] for finding in self.findings]

    def first(self, check: str, *words: str, severity: str = "error") -> Finding:
        """The first finding, which has to be of this check and severity and to name all of `words`."""
        assert self.findings, "nothing was found"
        first = self.findings[0]
        assert (first["id"], first["severity"]) == (check, severity), json.dumps(self.findings, indent=1)
        assert self.code == (1 if severity == "error" else 0)
        for word in words:
            assert word in first["finding"], first["finding"]
        assert first["why"] and first["remedy"]
        return first


def run(*arguments: str, prefix: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs weir with these arguments and an environment of these variables and PATH alone."""
    return subprocess.run(
        [*prefix, str(binary()), *arguments],
        env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def read(done: subprocess.CompletedProcess[str]) -> Diagnosis:
    """The diagnosis that a run with `--output=json` printed."""
    assert "panicked" not in done.stderr, done.stderr
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    report = json.loads(done.stdout)
    skipped = {row["id"]: row["reason"] for row in report["notLookedAt"]}
    return Diagnosis(done.returncode, report["findings"], report["fine"], skipped)


def environment(kubeconfig: Path, endpoint: str, key: str) -> dict[str, str]:
    """What a command for people needs to see a cluster and an account of the emulator."""
    return {
        "HOME": str(kubeconfig.parent),
        "KUBECONFIG": str(kubeconfig),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def node(prefix: Sequence[str], *flags: str, **variables: str) -> Diagnosis:
    """What `weir doctor node` says where `prefix` makes it run."""
    return read(run("doctor", "node", "--output=json", *flags, prefix=prefix, **variables))
