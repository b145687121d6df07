"""ICMP errors about packets that the userspace data plane cannot carry: RFC 792 and 1812, RFC 4443.

They come from the address that the packet was for, as those of the kernel's own tunnels do. From the TUN device's
address they would be lost: a packet that comes in with a local source is a martian to the kernel.

Not here: when one is due (encap/datapath/forward.py), and how many a second (encap/datapath/relay.py). They go to the
kernel that the packet came
from, and never to the wire.
"""

from __future__ import annotations

import struct
from enum import Enum

from flanneld_py.encap.packet.checksum import Buffer, complement, pseudo_sum

ICMP, ICMPV6 = 1, 58
_ERRORS4 = frozenset((3, 4, 5, 11, 12))
_REDIRECT6 = 137
_EXTENSIONS = frozenset((0, 43, 60))
"""Hop-by-hop options, routing, destination options: all of one form (RFC 8200 section 4)."""

_FRAGMENT = 44
_TTL = 64
_MOST4 = 576
"""Bytes in all that an ICMPv4 error may have (RFC 1812 section 4.3.2.3)."""
_MOST6 = 1280
"""Bytes in all: the least IPv6 MTU (RFC 4443 section 2.4 c)."""


class Error(Enum):
    """What to say: type and code in ICMP, type and code in ICMPv6."""

    NO_ROUTE = (3, 0, 1, 0)
    TOO_BIG = (3, 4, 2, 0)


def error(kind: Error, packet: Buffer, mtu: int = 0) -> bytes | None:
    """Return the ICMP packet to the sender of a packet with a whole IP header, None where the RFCs forbid one.

    `mtu` in bytes goes into a TOO_BIG. Forbidden are errors about errors and redirects, non-first fragments, multicast
    and broadcast, and senders that are no single host.
    """
    if packet[0] >> 4 == 4:
        return _error4(kind, bytes(packet[:_MOST4]), mtu)
    return _error6(kind, bytes(packet[:_MOST6]), mtu)


def _error4(kind: Error, packet: bytes, mtu: int) -> bytes | None:
    network = (packet[0] & 15) << 2
    if packet[6] & 0x1F or packet[7] or packet[16] >= 224 or packet[12] in (0, 127) or packet[12] >= 224:
        return None
    if packet[9] == ICMP and (len(packet) <= network or packet[network] in _ERRORS4):
        return None
    quoted = packet[: _MOST4 - 28]
    body = struct.pack("!BBHHH", kind.value[0], kind.value[1], 0, 0, mtu) + quoted
    body = body[:2] + _field(_sum(body)) + body[4:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0xC0, 20 + len(body), 0, 0, _TTL, ICMP, 0, packet[16:20], packet[12:16])
    return header[:10] + _field(_sum(header)) + header[12:] + body


def _error6(kind: Error, packet: bytes, mtu: int) -> bytes | None:
    # RFC 4443 section 2.4 e: a Packet Too Big may be about multicast; no container's path needs that.
    if packet[24] == 0xFF or packet[8] == 0xFF or not any(packet[8:23]) or not _allowed6(packet):
        return None
    quoted = packet[: _MOST6 - 48]
    body = struct.pack("!BBHI", kind.value[2], kind.value[3], 0, mtu) + quoted
    total = _sum(body) + pseudo_sum(packet[8:40], ICMPV6, len(body))
    header = struct.pack("!IHBB16s16s", 6 << 28, len(body), ICMPV6, _TTL, packet[24:40], packet[8:24])
    return header + body[:2] + _field(total) + body[4:]


def _allowed6(packet: bytes) -> bool:
    """Tell whether a packet is no non-first fragment, ICMPv6 error or redirect; what cannot be told is not allowed."""
    following, at = packet[6], 40
    while following in _EXTENSIONS or following == _FRAGMENT:
        if at + 8 > len(packet):
            return False
        if following == _FRAGMENT and (packet[at + 2] or packet[at + 3] & 0xF8):
            return False
        length = 8 if following == _FRAGMENT else 8 + (packet[at + 1] << 3)
        following, at = packet[at], at + length
    return following != ICMPV6 or (at < len(packet) and packet[at] >= 128 and packet[at] != _REDIRECT6)


def _sum(data: bytes) -> int:
    return int.from_bytes(data + bytes(len(data) & 1), "big")


def _field(total: int) -> bytes:
    return complement(total).to_bytes(2, "big")
