"""The tutorial: everything at once, as `make demo` shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import netns

HERE = Path(__file__).resolve().parent


def test_the_tutorial_holds_from_start_to_end() -> None:
    if reason := netns.missing():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, HERE / "demo.py"],
        env={**os.environ, "KEEP": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Everything was as promised." in done.stdout
