"""Super-packets: cut what the TUN device hands over into datagrams, merge datagrams into what it takes.

    TUN   | virtio header | headers |           64 KiB of payload           |      one read, one write
                          segment()  |          ^  coalesce(), in merge.py
                                     v          |
    wire  | prefix | headers | payload | prefix | headers | payload | ...          one sendmsg, one recvmsg

Every datagram is complete, as a host without offloads sends it: own lengths, IPv4 identification, sequence number
and checksums; CWR only on the first segment, FIN and PSH only on the last. The fields are laid out in columns, so that
one call of struct writes all equal segments. 45 segments of 1398 bytes take 55 us with GMP's sums, 180 us without.

Not here: whether a packet may pass (frame.py, forward.py); the sums themselves (checksum.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat

from flanneld_py.encap.checksum import FASTEST, Buffer, Sums, complement, pseudo_sum
from flanneld_py.encap.merge import coalesce
from flanneld_py.encap.virtio import (
    CWR,
    FIN,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PSH,
    TCP,
    UDP,
    VNET,
    VNET_HEADER,
)

__all__ = ["VNET_HEADER", "coalesce", "segment"]

_PROTOCOL = {GSO_TCPV4: (4, TCP), GSO_TCPV6: (6, TCP)}


def segment(header: Buffer, packet: Buffer, prefix: bytes, sums: Sums = FASTEST) -> tuple[bytes, int]:
    """Return (datagrams back to back, their size in bytes; the last may be shorter), (b"", 0) if it cannot be cut.

    `header` is the virtio header, `packet` what follows it on the TUN device, `prefix` what goes before each inner
    packet on the wire. The caller cuts the result at multiples of the size if it is too much for one UDP_SEGMENT send
    (64 segments, 65507 bytes). The packet is the kernel's own: what is checked is that nothing is read beyond it.
    """
    flags, gso_type, _, size, start, offset = VNET.unpack_from(header)
    gso_type &= ~GSO_ECN  # says the same as CWR in the TCP header
    if gso_type == GSO_NONE:
        if flags & NEEDS_CSUM:
            return _finished(packet, prefix, start, start + offset, sums)
        return prefix + packet, len(prefix) + len(packet)
    whole = _read(packet, gso_type, start, size)
    if whole is None:
        return b"", 0
    equal, rest = divmod(len(packet) - whole.header, whole.payload)
    datagrams = _run(whole, packet, prefix, 0, equal, whole.payload, sums)
    if rest:
        datagrams += _run(whole, packet, prefix, equal, 1, rest, sums)
    return datagrams, len(prefix) + whole.header + whole.payload


def _finished(packet: Buffer, prefix: bytes, start: int, at: int, sums: Sums) -> tuple[bytes, int]:
    """Return one datagram whose checksum is completed: the field at `at` holds the sum of the pseudo-header already."""
    if not start <= at <= len(packet) - 2:
        return b"", 0
    datagram = bytearray(prefix)
    datagram += packet
    # To UDP 0 means "no checksum"; to all others 0xffff is the same number.
    struct.pack_into("!H", datagram, len(prefix) + at, complement(sums.total(packet, start, len(packet))) or 0xFFFF)
    return bytes(datagram), len(datagram)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Where things are in a super-packet: transport header, payload (`header`); and how much payload a segment has."""

    version: int
    protocol: int
    transport: int
    header: int
    payload: int


def _read(packet: Buffer, gso_type: int, transport: int, size: int) -> _Whole | None:
    """Return where things are, None if the virtio header and the packet do not fit together or there is no payload."""
    if not size or transport < 20 or transport + (8 if gso_type == GSO_UDP_L4 else 20) > len(packet):
        return None
    version = packet[0] >> 4
    found, protocol = _PROTOCOL.get(gso_type, (version, UDP if gso_type == GSO_UDP_L4 else 0))
    header = transport + (8 if protocol == UDP else packet[transport + 12] >> 4 << 2)
    network = (packet[0] & 15) << 2 if version == 4 else 40
    fits = transport == network >= 20 if version == 4 else version == 6 and transport >= network
    if not protocol or version != found or not fits or not transport + 8 <= header < len(packet):
        return None
    if protocol == TCP and header < transport + 20:
        return None
    return _Whole(version, protocol, transport, header, min(size, len(packet) - header))


Column = tuple[str, Iterable[int | bytes]]
"""One field of every datagram: its format in struct, and its values."""


def _run(whole: _Whole, packet: Buffer, prefix: bytes, first: int, count: int, length: int, sums: Sums) -> bytes:
    """Return `count` datagrams of `length` bytes of payload each, from segment number `first` on."""
    at, start = whole.transport, whole.header + first * whole.payload
    addresses = packet[12:20] if whole.version == 4 else packet[8:40]
    base = pseudo_sum(addresses, whole.protocol, whole.header - at + length)
    ports = bytes(packet[at : at + 4])
    values = sums.each(packet, start, length, length, count)
    if whole.protocol == UDP:
        ports += (8 + length).to_bytes(2, "big")
        base += int.from_bytes(ports, "big")
        transport: list[Column] = [("H", [-(base + value) % 0xFFFF or 0xFFFF for value in values])]
    else:
        base += int.from_bytes(ports, "big")
        transport = _tcp(whole, packet, start, count, length, base, values)
    payloads: Column = (f"{length}s", _struct(f"{length}s", count).unpack_from(packet, start))
    columns = [*_network(whole, packet, prefix, first, count, length, ports), *transport, payloads]
    fields = zip(*[values for _, values in columns], strict=False)
    return _struct("".join([form for form, _ in columns]), count).pack(*chain.from_iterable(fields))


def _tcp(
    whole: _Whole, packet: Buffer, start: int, count: int, length: int, base: int, values: list[int]
) -> list[Column]:
    """Return TCP's columns after the ports; `base` is the sum of what is before, `values` are those of the payloads."""
    at, header = whole.transport, whole.header
    flags = packet[at + 13]
    common = flags & ~(CWR | FIN | PSH)
    before, after = bytes(packet[at + 8 : at + 13]), bytes(packet[at + 14 : at + 16])
    middle, tail = before + bytes((common,)) + after, bytes(packet[at + 18 : header])
    base += int.from_bytes(middle, "big") + int.from_bytes(tail, "big")
    sequence = int.from_bytes(packet[at + 4 : at + 8], "big") + start - header
    sequences: Iterable[int] = range(sequence, sequence + count * length, length)
    if sequence + count * length > 1 << 32:
        sequences = [number & 0xFFFFFFFF for number in sequences]
    checks = [-(base + number + value) % 0xFFFF for number, value in zip(sequences, values, strict=True)]
    middles = [middle] * count
    for which, extra in ((0, flags & CWR if start == header else 0), (-1, flags & (FIN | PSH))):
        if extra and (which == 0 or start + count * length == len(packet)):
            middles[which] = before + bytes((middles[which][5] | extra,)) + after
            checks[which] = (checks[which] - extra) % 0xFFFF
    return [("I", sequences), ("8s", middles), ("H", checks), (f"{len(tail)}s", repeat(tail))]


def _network(
    whole: _Whole, packet: Buffer, prefix: bytes, first: int, count: int, length: int, ports: bytes
) -> list[Column]:
    """Return the columns from the prefix to the ports (and the UDP length)."""
    size = whole.header + length
    if whole.version == 6:
        head = prefix + packet[:4] + (size - 40).to_bytes(2, "big") + packet[6 : whole.transport] + ports
        return [(f"{len(head)}s", repeat(head))]
    head = bytes(packet[:2]) + size.to_bytes(2, "big")
    fragment, rest = bytes(packet[6:10]), bytes(packet[12 : whole.transport])
    base = int.from_bytes(head + fragment + rest, "big")
    number = int.from_bytes(packet[4:6], "big") + first
    numbers = [value & 0xFFFF for value in range(number, number + count)]
    checks = [-(base + value) % 0xFFFF for value in numbers]
    return [
        (f"{len(prefix) + 4}s", repeat(prefix + head)),
        ("H", numbers),
        ("4s", repeat(fragment)),
        ("H", checks),
        (f"{len(rest) + len(ports)}s", repeat(rest + ports)),
    ]


@lru_cache(2048)
def _struct(form: str, count: int) -> struct.Struct:
    return struct.Struct("!" + form * count)
