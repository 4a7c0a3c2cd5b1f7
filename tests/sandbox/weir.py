"""The controller under test, as a process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from sandbox.process import LOOPBACK, Process, free_port

REGION = "us-east-1"
START_SECONDS = 30.0
STOP_SECONDS = 15.0

ROOT = Path(__file__).resolve().parents[2]

_http = requests.Session()
_http.trust_env = False  # a developer's proxy must not stand between us and the loopback


def binary() -> Path:
    """`$WEIR_BIN`, or the debug build of this repository."""
    if chosen := os.environ.get("WEIR_BIN"):
        return Path(chosen)
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug" / "weir"


class Weir:
    """`weir controller`, started and ready. `flags` replace the defaults they name.

    The environment is built from nothing: no credential, profile or region of the developer can reach the process,
    and so none of its calls can reach a real AWS account. `environment` adds to it or replaces parts; an empty value
    takes one away.
    """

    def __init__(
        self,
        directory: Path,
        kubeconfig: Path,
        endpoint: str,
        account: str,
        name: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.address = f"{LOOPBACK}:{free_port()}"
        defaults = {
            "--cluster-name": name,
            "--listen": self.address,
            "--leader-elect": "false",
            "--log-format": "json",
        }
        self._process = Process(
            "weir",
            [binary(), "controller", *_flags(defaults, flags)],
            directory / f"weir-{self.address.rpartition(':')[2]}.log",
            _without_empty(
                {
                    "PATH": os.environ["PATH"],
                    "HOME": str(directory),
                    "RUST_BACKTRACE": "1",
                    "KUBECONFIG": str(kubeconfig),
                    "AWS_ENDPOINT_URL": endpoint,
                    "AWS_REGION": REGION,
                    "AWS_ACCESS_KEY_ID": account,  # the emulator takes a key of 12 digits as the account's id
                    "AWS_SECRET_ACCESS_KEY": "test",
                    "AWS_EC2_METADATA_DISABLED": "true",
                    **(environment or {}),
                }
            ),
        )

    def wait_ready(self) -> None:
        self._process.wait_ready(lambda: self.get("/readyz") == 200, START_SECONDS)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.alive

    def get(self, path: str) -> int | None:
        """Status of a path of its own endpoint, or `None` while nothing listens."""
        try:
            return _http.get(f"http://{self.address}{path}", timeout=5).status_code
        except requests.ConnectionError:
            return None

    def metrics(self) -> str:
        """The body of /metrics."""
        response = _http.get(f"http://{self.address}/metrics", timeout=5)
        response.raise_for_status()
        return response.text

    def signal(self, number: signal.Signals) -> None:
        """To the process alone: SIGSTOP and SIGCONT, say."""
        os.kill(self.pid, number)

    def wait_end(self, timeout: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended by itself."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """SIGTERM; the exit code, which is 0 only for an orderly end."""
        return self._process.terminate(STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL, between any two instructions of it."""
        self._process.kill()

    def log(self) -> list[dict[str, Any]]:
        """Its log lines; what is not JSON (a panic, say) comes as `{"text": line}`."""
        return [_parsed(line) for line in self._process.log.read_text(errors="replace").splitlines()]

    def tail(self, lines: int = 40) -> str:
        return self._process.tail(lines)

    def assert_no_panic(self) -> None:
        panics = [line["text"] for line in self.log() if "panicked at" in line.get("text", "")]
        assert not panics, f"weir panicked: {panics}"


def _without_empty(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if value}


def _flags(defaults: dict[str, str], flags: tuple[str, ...]) -> list[str]:
    """The defaults that `flags` (written `--name=value` or `--name value`) do not name, then `flags`."""
    named = {flag.partition("=")[0] for flag in flags}
    return [f"{name}={value}" for name, value in defaults.items() if name not in named] + list(flags)


def _parsed(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {"text": line}
    return value if isinstance(value, dict) else {"text": line}
