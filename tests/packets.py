"""IP packets made slowly and plainly, word by word: what the data plane's quick code is compared with.

A Segment is a TCP or UDP packet as values; `encode` makes it complete, `cut` is what a super-packet means on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TCP, UDP = 6, 17
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP or UDP packet; `ident`, `fragment` are IPv4's, the rest from `sequence` on TCP's."""

    payload: bytes = b""
    version: int = 4
    protocol: int = TCP
    source: int = 2
    destination: int = 2
    ports: tuple[int, int] = (40000, 5201)
    tos: int = 0
    ttl: int = 63
    ident: int = 7
    fragment: int = 0x4000
    sequence: int = 1000
    ack: int = 5
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b"\x01\x01\x08\x0a" + bytes(8)

    @property
    def network(self) -> int:
        """Bytes of the IP header."""
        return 20 if self.version == 4 else 40

    @property
    def header(self) -> int:
        """Bytes before the payload."""
        return self.network + (8 if self.protocol == UDP else 20 + len(self.options))

    def addresses(self) -> bytes:
        """Both addresses: 10.1.0.x to 10.2.0.x, or the like in IPv6."""
        if self.version == 4:
            return bytes((10, 1, 0, self.source, 10, 2, 0, self.destination))
        return bytes((0xFD, 1, *bytes(13), self.source, 0xFD, 2, *bytes(13), self.destination))


def words(data: bytes) -> int:
    """Return the one's-complement sum of 16 bit words, as RFC 1071 section 4.1 adds them."""
    total = 0
    for i in range(0, len(data), 2):
        total += data[i] << 8 | (data[i + 1] if i + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(segment: Segment, length: int) -> bytes:
    """Return the pseudo-header."""
    return segment.addresses() + length.to_bytes(4, "big") + bytes((0, 0, 0, segment.protocol))


def encode(segment: Segment, *, finished: bool = True) -> bytes:
    """Return the packet; unfinished, its checksum field holds the sum of the pseudo-header only."""
    ports = segment.ports[0].to_bytes(2, "big") + segment.ports[1].to_bytes(2, "big")
    if segment.protocol == UDP:
        at = 6
        body = ports + ((8 + len(segment.payload)) & 0xFFFF).to_bytes(2, "big") + bytes(2) + segment.payload
    else:
        at = 16
        numbers = segment.sequence.to_bytes(4, "big") + segment.ack.to_bytes(4, "big")
        control = bytes(((20 + len(segment.options)) << 2, segment.flags)) + segment.window.to_bytes(2, "big")
        body = ports + numbers + control + bytes(2) + segment.urgent.to_bytes(2, "big")
        body += segment.options + segment.payload
    head = pseudo(segment, len(body))
    value = 0xFFFF - words(head + body) if finished else words(head)
    if segment.protocol == UDP and not value:
        value = 0xFFFF
    return network_header(segment, len(body)) + body[:at] + value.to_bytes(2, "big") + body[at + 2 :]


def network_header(segment: Segment, length: int) -> bytes:
    """Return the IP header before `length` bytes."""
    if segment.version == 6:
        start = (6 << 28 | segment.tos << 20).to_bytes(4, "big") + length.to_bytes(2, "big")
        return start + bytes((segment.protocol, segment.ttl)) + segment.addresses()
    start = bytes((0x45, segment.tos)) + (20 + length).to_bytes(2, "big") + segment.ident.to_bytes(2, "big")
    start += segment.fragment.to_bytes(2, "big") + bytes((segment.ttl, segment.protocol))
    value = 0xFFFF - words(start + bytes(2) + segment.addresses())
    return start + value.to_bytes(2, "big") + segment.addresses()


def cut(segment: Segment, size: int) -> list[bytes]:
    """Return the packets that a super-packet stands for, `size` bytes of payload each (RFC 9293, linux TSO)."""
    starts = range(0, len(segment.payload), size)
    packets = []
    for number, start in enumerate(starts):
        flags = segment.flags
        if number:
            flags &= ~CWR
        if start != starts[-1]:
            flags &= ~(FIN | PSH)
        part = replace(
            segment,
            payload=segment.payload[start : start + size],
            ident=(segment.ident + number) & 0xFFFF,
            sequence=(segment.sequence + start) & 0xFFFFFFFF,
            flags=flags,
        )
        packets.append(encode(part))
    return packets


def sound(packet: bytes) -> bool:
    """Tell whether the IP header and the transport checksum of a TCP or UDP packet are right."""
    v4 = packet[0] >> 4 == 4
    at = 20 if v4 else 40
    if v4 and words(packet[:20]) != 0xFFFF:
        return False
    if (packet[2] << 8 | packet[3]) != len(packet) if v4 else (packet[4] << 8 | packet[5]) + 40 != len(packet):
        return False
    addresses, protocol = (packet[12:20], packet[9]) if v4 else (packet[8:40], packet[6])
    head = addresses + (len(packet) - at).to_bytes(4, "big") + bytes((0, 0, 0, protocol))
    return words(head + packet[at:]) == 0xFFFF
