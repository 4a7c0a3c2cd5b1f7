"""Network namespaces: made under a name of their own, entered by sockets and processes, and always removed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sandbox.process import LOOPBACK, Process, free_port

T = TypeVar("T")

#: What a machine must have for namespaces with real forwarding in them.
COMMANDS = ("ip", "nft", "conntrack")

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_lock = threading.Lock()


def missing() -> str | None:
    """Why no namespace can be made here, in words for a skipped test; `None` if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [command for command in COMMANDS if shutil.which(command) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Namespace:
    """One network namespace. `title` is what people call it; its name in /run/netns is unique to this process."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._closed = False
        with _lock:
            self.name = f"weir{os.getpid()}-{next(_numbers)}-{title}"
        _run(["ip", "netns", "add", self.name])
        # Sockets must be made by a thread that has entered; one thread that stays saves the way there and back.
        self._inside = ThreadPoolExecutor(1, f"in-{title}", initializer=self._enter)
        self.ip("link set lo up")

    def close(self) -> None:
        """Removes it, with its interfaces, its rules, and what still runs in it. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._inside.shutdown(cancel_futures=True)
        for pid in _run(["ip", "netns", "pids", self.name]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)
        shutil.rmtree(f"/etc/netns/{self.name}", ignore_errors=True)

    def call(self, action: Callable[[], T]) -> T:
        """The result of `action`, run by a thread inside: the sockets it makes are the namespace's."""
        return self._inside.submit(action).result()

    def socket(self, family: int, kind: int, protocol: int = -1) -> socket.socket:
        """A socket of this namespace, which any thread may use."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def run(self, *command: str | Path, stdin: str | None = None) -> str:
        """Runs a command inside and returns its output; a failure raises with what it said."""
        return _run([*self.prefix, *command], stdin)

    def ip(self, *lines: str) -> None:
        """Runs lines of `ip`, without the word ip: `ns.ip("link set eth0 up", "route add default via 10.0.0.1")`."""
        _run(["ip", "-netns", self.name, "-batch", "-"], "".join(f"{line}\n" for line in lines))

    def sysctl(self, **values: int | str) -> None:
        """Sets values below /proc/sys/net; two underscores stand for a slash: `ipv4__ip_forward=1`."""
        for name, value in values.items():
            path = Path("/proc/sys/net", *name.split("__"))
            self.call(functools.partial(path.write_text, str(value)))

    def mac(self, interface: str) -> str:
        [link] = json.loads(_run(["ip", "-netns", self.name, "-json", "link", "show", "dev", interface]))
        return str(link["address"])

    def start(self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> Process:
        """Starts a process inside. Its id is that of the command itself: `ip` has replaced itself by it."""
        return Process(name, [*self.prefix, *command], log, env)

    @property
    def prefix(self) -> list[str]:
        """What before a command makes it run inside."""
        return ["ip", "netns", "exec", self.name]

    def hosts(self, names: Mapping[str, str]) -> None:
        """/etc/hosts of processes started inside from now on: name → address."""
        self._etc("hosts", "127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in names.items()))

    def resolver(self, server: str, search: Sequence[str] = ()) -> None:
        """/etc/resolv.conf of processes started inside from now on, as a kubelet would write it."""
        self._etc("resolv.conf", f"nameserver {server}\nsearch {' '.join(search)}\noptions ndots:5\n")

    def _etc(self, file: str, text: str) -> None:
        directory = Path("/etc/netns") / self.name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(text)

    def _enter(self) -> None:
        handle = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            # os.setns exists from Python 3.12 on; the call is the same.
            if _LIBC.setns(handle, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"entering {self.name}")
        finally:
            os.close(handle)

    def __repr__(self) -> str:
        return f"<{self.title}>"


class Relay:
    """Carries connections to a loopback port inside a namespace to a loopback port of the host, both ways.

    So a node reaches the API server without any route between the fabric and the host.
    """

    def __init__(self, namespace: Namespace, target: int) -> None:
        self._target = target
        self._paused = False
        self._listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind((LOOPBACK, free_port()))
        self._listener.listen(64)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name=f"relay-{namespace.title}", daemon=True).start()

    def close(self) -> None:
        """Stops listening and cuts what is connected."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def pause(self) -> None:
        """Cuts what is connected, and until `resume` whoever connects is cut at once."""
        self._paused = True
        self._cut()

    def resume(self) -> None:
        self._paused = False

    def _cut(self) -> None:
        for end in list(self._open):
            _shutdown(end)

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                if self._paused:
                    raise ConnectionRefusedError
                outer = socket.create_connection((LOOPBACK, self._target), timeout=5)
            except OSError:
                inner.close()  # the client sees what it would see of a dead API server
                continue
            outer.settimeout(None)
            self._open |= {inner, outer}
            for source, sink in ((inner, outer), (outer, inner)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while part := source.recv(1 << 16):
                sink.sendall(part)
        except OSError:
            pass
        # Either direction's end is the connection's end: HTTP/2 and TLS know no half-open one. The object is dropped
        # by both pumps before its number is free for another socket.
        _shutdown(source)
        _shutdown(sink)
        self._open -= {source, sink}


def connect(one: Namespace, name: str, other: Namespace, peer: str) -> None:
    """Joins two namespaces by a pair of interfaces, both up: `name` in the first, `peer` in the second."""
    ends = [name, "netns", one.name, "type", "veth", "peer", "name", peer, "netns", other.name]
    _run(["ip", "link", "add", *ends])
    one.ip(f"link set {name} up")
    other.ip(f"link set {peer} up")


def _shutdown(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:  # already ended
        pass


def _run(command: Sequence[Any], stdin: str | None = None) -> str:
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout
