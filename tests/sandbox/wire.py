"""What goes over the wire: servers in namespaces, single questions to them, and load.

A server answers with its name and the client's address it saw, so one exchange tells who was chosen and whether the
client's address was kept.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sandbox.fabric import Fabric, Host, family_of
from sandbox.process import Process, wait_for

Protocol = Literal["TCP", "UDP"]
PROTOCOLS: tuple[Protocol, ...] = ("TCP", "UDP")

START_SECONDS = 10.0
#: A packet of this fabric takes less than a millisecond; the rest is for a busy machine.
PATIENCE = 1.0

_numbers = itertools.count(1)
_REQUEST = b"GET / HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n\r\n"


class Reply(NamedTuple):
    """Who answered, and whose address it saw."""

    server: str
    client: str


#: In the place of a reply: an answer that says no, at once.
REFUSED = Reply("refused", "")
#: In the place of a reply: there is no way to the address.
UNREACHABLE = Reply("unreachable", "")
#: In the place of a reply: nothing came back.
DROPPED = Reply("dropped", "")


def traffic_binary() -> Path:
    """The program of `sandbox/traffic`, built by prepare.py."""
    return Path(os.environ["WEIR_TRAFFIC"])


class Server:
    """A real server in a namespace, ready when made. On every port it answers as the module says."""

    def __init__(
        self,
        host: Host,
        directory: Path,
        *,
        name: str | None = None,
        tcp: tuple[int, ...] = (8080, 8081),
        udp: tuple[int, ...] = (8080, 8081),
        delay: str = "0s",
    ) -> None:
        self.name = name or host.name
        ports = [f"-tcp={','.join(map(str, tcp))}", f"-udp={','.join(map(str, udp))}", f"-delay={delay}"]
        command: list[str | Path] = [traffic_binary(), "serve", f"-name={self.name}", *ports]
        log = directory / f"server-{self.name}-{next(_numbers)}.log"
        self._process = host.namespace.start("server", command, log, {})
        self._process.wait_ready(lambda: "ready" in self._process.tail(), START_SECONDS)

    def stop(self) -> int:
        """SIGTERM: requests under way end first."""
        return self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class Question:
    """How a client asks: from which host, and from which of its addresses and ports if that matters."""

    def __init__(
        self, fabric: Fabric, source: Host, protocol: Protocol = "TCP", address: str | None = None, port: int = 0
    ) -> None:
        self._fabric, self.source, self.protocol = fabric, source, protocol
        self._bound = (address, port)

    def ask(self, address: str, port: int, patience: float = PATIENCE) -> Reply:
        """One new connection, or one datagram of a new flow."""
        try:
            with self.open(address, port, patience) as flow:
                return self._reply(flow)
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return DROPPED
        except OSError as error:
            if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                raise
            return UNREACHABLE

    def many(self, count: int, address: str, port: int) -> Counter[Reply]:
        """The replies of so many new flows."""
        return Counter(self.ask(address, port) for _ in range(count))

    def open(self, address: str, port: int, patience: float = PATIENCE) -> socket.socket:
        """A connected socket, for tests that keep a flow. Refusal and silence raise."""
        family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
        kind = socket.SOCK_STREAM if self.protocol == "TCP" else socket.SOCK_DGRAM
        flow = self.source.namespace.socket(family, kind)
        try:
            source, source_port = self._bound
            if source or source_port:
                flow.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                flow.bind((source or "", source_port))
            _connect(flow, (address, port), patience)
        except BaseException:
            flow.close()
            raise
        return flow

    def on(self, flow: socket.socket) -> Reply:
        """One more question on an open flow. A TCP flow must have been opened for several: it is kept alive."""
        try:
            return self._reply(flow, _REQUEST.replace(b"Connection: close\r\n", b""))
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return DROPPED

    def _reply(self, flow: socket.socket, request: bytes = _REQUEST) -> Reply:
        if self.protocol == "UDP":
            # A rule of this very host says no to the call itself, whether it refuses or drops; a refusal then follows.
            with contextlib.suppress(PermissionError):
                flow.send(b"?")
            text = flow.recv(1500)
        else:
            flow.sendall(request)
            response = http.client.HTTPResponse(flow)
            response.begin()
            text = response.read()
        server, client, _port = text.decode().split()
        return Reply(server, self._fabric.owner(client))


def _connect(flow: socket.socket, target: tuple[str, int], patience: float) -> None:
    """`connect`, which also hears a refusal that is there before the call returns.

    Between namespaces the answer arrives while the kernel still works on the call. It then only takes note of the error
    (LockDroppedIcmps counts it) and would tell it after sending a second time, a second later.
    """
    flow.setblocking(False)
    error = flow.connect_ex(target)
    deadline = time.monotonic() + patience
    while error == errno.EINPROGRESS:
        connected = select.select([], [flow], [], 0.02)[1]
        error = flow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and not connected:
            if time.monotonic() > deadline:
                raise TimeoutError
            error = errno.EINPROGRESS
    if error:
        raise OSError(error, os.strerror(error))
    flow.settimeout(patience)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of a node's health endpoints."""

    status: int
    headers: Mapping[str, str]
    body: Any


def get(
    source: Host, address: str, port: int, path: str = "/", method: str = "GET", patience: float = PATIENCE
) -> Answer | None:
    """One HTTP request; `None` if nobody listens or answers. `body` is parsed JSON if it is JSON, text otherwise."""
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    with source.namespace.socket(family, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, (address, port), patience)
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            text = response.read().decode()
        except (OSError, http.client.HTTPException):
            return None
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    return Answer(response.status, response.headers, body)


@dataclass(frozen=True)
class Report:
    """What became of a load's requests. `slow` were answered, but late; latencies are milliseconds."""

    sent: int
    failed: int
    slow: int
    answers: dict[str, int]
    errors: dict[str, int] | None
    median_ms: float
    p99_ms: float
    max_ms: float
    seconds: float


class Load:
    """Requests from a host to one address, from now until `finish`. The flags are those of `traffic load`."""

    def __init__(self, source: Host, address: str, port: int, directory: Path, **flags: str | int | float) -> None:
        target = f"[{address}]:{port}" if family_of(address) == 6 else f"{address}:{port}"
        chosen = {"seconds": "60s", **flags}
        command: list[str | Path] = [traffic_binary(), "load", f"-address={target}"]
        command += [f"-{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        log = directory / f"load-{next(_numbers)}.log"
        self._process: Process = source.namespace.start("load", command, log, {})

    def wait(self, timeout: float) -> Report:
        """Lets it come to its own end, after its `rounds` or `seconds`."""
        wait_for(lambda: not self._process.alive, timeout, "the load to end")
        return self.finish()

    def finish(self) -> Report:
        """Ends it, lets what is under way be answered, and says how it went."""
        self._process.terminate(timeout=30)
        return Report(**json.loads(self._process.tail(1)))


def is_silent(flow: socket.socket, seconds: float = 0.3) -> bool:
    """Whether nothing arrives on a flow for this long."""
    return not select.select([flow], [], [], seconds)[0]


def chi_square_exceeds(counts: list[int], limit: float) -> bool:
    """Whether counts that should be equal differ by more than a chi-square of `limit`."""
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 / mean for count in counts) > limit
