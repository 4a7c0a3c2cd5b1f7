"""Child processes that never outlive the test run, and the waiting around them."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
#: Below the kernel's ephemeral range, so that no outgoing connection takes a port between our look and its use.
PORTS = range(20000, 30000)

_PR_SET_PDEATHSIG = 1
# Loaded here because the code between fork and exec must not import or allocate more than it has to.
_LIBC = ctypes.CDLL(None, use_errno=True)


class StartError(Exception):
    """A process that died or stayed silent; the message ends with its last log lines."""


def free_port() -> int:
    """A loopback port nobody listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError("100 random loopback ports are all in use")


def wait_for(check: Callable[[], T | None], timeout: float, what: str, pause: float = 0.05) -> T:
    """Calls `check` until it returns something true, and returns that. `what` completes "timed out waiting for …"."""
    deadline = time.monotonic() + timeout
    while True:
        if value := check():
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"timed out after {timeout:g} s waiting for {what}")
        time.sleep(pause)


class Process:
    """A child with its own process group and log file, killed by the kernel if its parent dies first."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self.name = name
        self.log = log
        parent = os.getpid()
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C reaches pytest only; it then stops the children in order
                preexec_fn=lambda: _die_with(parent),
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def wait_ready(self, ready: Callable[[], object], timeout: float) -> None:
        """Returns when `ready()` is true; otherwise raises with the end of the log."""

        def check() -> bool:
            if not self.alive:
                raise StartError(self._report(f"exited with {self._child.returncode}"))
            return bool(ready())

        try:
            wait_for(check, timeout, self.name)
        except TimeoutError:
            raise StartError(self._report(f"was not ready after {timeout:g} s")) from None

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended by itself."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(self._report(f"did not end within {timeout:g} s")) from None

    def terminate(self, timeout: float = 10.0) -> int:
        """SIGTERM, then SIGKILL to its process group after `timeout`. Returns the exit code."""
        self._signal(signal.SIGTERM)
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL to the process group, as a crash would look from outside."""
        self._signal(signal.SIGKILL)
        return self._child.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        # Only while the child is not reaped: afterwards its id may belong to somebody else.
        if self.alive:
            os.killpg(self.pid, number)

    def _report(self, problem: str) -> str:
        return f"{self.name} {problem}; the end of {self.log}:\n{self.tail()}"


def _die_with(parent: int) -> None:
    """Runs in the child before exec: the kernel shall kill it when its parent ends, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the line above took effect
        os._exit(1)
