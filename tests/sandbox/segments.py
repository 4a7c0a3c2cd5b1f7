"""TCP segments as they are on the wire, and one that no TCP would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.fabric import Host

_ETH_P_IP = 0x0800
_PSH_ACK = 0x18


@dataclass(frozen=True)
class Segment:
    source: str
    source_port: int
    destination: str
    target: int
    """The port it is sent to."""
    sequence: int
    acknowledged: int
    payload: int
    """Bytes."""

    def answer(self, beyond: int) -> Segment:
        """A segment the other way that acknowledges so many bytes more than were sent."""
        acknowledged = (self.sequence + self.payload + beyond) % 2**32
        return Segment(
            self.destination, self.target, self.source, self.source_port, self.acknowledged, acknowledged, 1
        )

    def packet(self) -> bytes:
        header = struct.pack(
            "!HHIIBBHHH", self.source_port, self.target, self.sequence, self.acknowledged, 5 << 4, _PSH_ACK, 1000, 0, 0
        )
        body = header + b"x" * self.payload
        ends = socket.inet_aton(self.source) + socket.inet_aton(self.destination)
        sum_ = _checksum(ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(body)) + body)
        body = body[:16] + struct.pack("!H", sum_) + body[18:]
        # The kernel fills in length and checksum of the IP header.
        return struct.pack("!BBHHHBBH", 0x45, 0, 0, 1, 0, 64, socket.IPPROTO_TCP, 0) + ends + body


def sniffer(host: Host) -> socket.socket:
    """Hears every IPv4 packet of a host from now on."""
    heard = host.namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    heard.bind(("eth0", _ETH_P_IP))
    heard.setblocking(False)
    return heard


def seen(heard: socket.socket) -> list[Segment]:
    """What arrived since this was asked last."""
    return list(_arrivals(heard))


def send(host: Host, segment: Segment) -> None:
    with host.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(segment.packet(), (segment.destination, 0))


def _arrivals(heard: socket.socket) -> Iterator[Segment]:
    while True:
        try:
            packet, (_, _, kind, *_) = heard.recvfrom(65535)
        except BlockingIOError:
            return
        start = (packet[0] & 15) * 4
        if kind == socket.PACKET_OUTGOING or packet[9] != socket.IPPROTO_TCP:
            continue
        ports = struct.unpack("!HHII", packet[start : start + 12])
        payload = struct.unpack("!H", packet[2:4])[0] - start - (packet[start + 12] >> 4) * 4
        ends = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        yield Segment(ends[0], ports[0], ends[1], ports[1], ports[2], ports[3], payload)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
