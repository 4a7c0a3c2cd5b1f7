"""A collector that takes OTLP over HTTP, and the few fields of its protobuf that tests look at.

opentelemetry/proto/trace/v1/trace.proto and common.proto give the numbers of the fields.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from sandbox.process import LOOPBACK

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
ERROR = 2


@dataclass(frozen=True)
class Span:
    trace: str
    id: str
    parent: str
    name: str
    attributes: dict[str, str | int]
    is_error: bool
    #: Attributes of the process that sent it.
    resource: dict[str, str | int]


class Collector:
    """Listens from the beginning of the block to its end."""

    def __init__(self, port: int) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                is_traces = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                if is_traces:
                    collector.spans += spans(body)
                self.send_response(200 if is_traces else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def spans(request: bytes) -> Iterator[Span]:
    """What an ExportTraceServiceRequest holds."""
    for of_resource in every(request, 1):
        resource = attributes(next(every(of_resource, 1), b""), 1)
        for of_scope in every(of_resource, 2):
            for span in every(of_scope, 2):
                yield Span(
                    trace=next(every(span, 1)).hex(),
                    id=next(every(span, 2)).hex(),
                    parent=next(every(span, 4), b"").hex(),
                    name=next(every(span, 5)).decode(),
                    attributes=attributes(span, 9),
                    is_error=any(code == ERROR for status in every(span, 15) for code in numbers(status, 3)),
                    resource=resource,
                )


def attributes(message: bytes, number: int) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for pair in every(message, number):
        value = next(every(pair, 2), b"")
        texts = [text.decode() for text in every(value, 1)]
        found[next(every(pair, 1)).decode()] = texts[0] if texts else next(numbers(value, 3), 0)
    return found


def every(message: bytes, number: int) -> Iterator[bytes]:
    return (value for field, value in fields(message) if field == number and isinstance(value, bytes))


def numbers(message: bytes, number: int) -> Iterator[int]:
    return (value for field, value in fields(message) if field == number and isinstance(value, int))


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of a message's fields (protobuf.dev, "Encoding")."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        size = 8 if kind == FIXED64 else 4
        if kind == BYTES:
            size, at = varint(message, at)
        elif kind not in (FIXED64, FIXED32):
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(message)}")
        yield key >> 3, message[at : at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
