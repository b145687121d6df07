"""Merge datagrams of one inner flow into super-packets for the TUN device: the receiving half of segment.py.

A run is: equal bytes before the inner packet, equal addresses, ports and everything else that the merged packet says
only once, TCP sequence numbers that continue; PSH may be anywhere, other flags but ACK nowhere. All datagrams have one
size, the last may be shorter. A merged packet gets new checksums, so those of each datagram are verified before: what
is corrupt ends the run and is written as it came, and whoever it is for drops it.

accelerator.c does the same, byte for byte (a test compares them), in 4 us for 64 KiB where this takes 400; `coalesce`
is the quicker one where it was built, `coalesce_in_python` is always there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from flanneld_py.encap.packet.checksum import complement, pseudo_sum, total
from flanneld_py.encap.packet.layout import Layout, put_lengths, read_layout
from flanneld_py.encap.packet.partial import Write, single
from flanneld_py.encap.packet.virtio import ACK, NEEDS_CSUM, PSH, TCP, UDP, VNET

try:
    from flanneld_py.encap.packet import accelerator
except ImportError:
    accelerator = None  # type: ignore[assignment]

MAX_PACKET = 65535
"""Bytes; the most that an IPv4 total length can say."""

MOST_SEGMENTS = 64
"""Datagrams in a UDP packet: the kernel's UDP_MAX_SEGMENTS, above which a TUN device answers EINVAL.

It is 128 since Linux 6.9; more than 64 in one bought nothing measurable. TCP has no such limit.
"""

Coalesce = Callable[[memoryview, int, int, int, bool], list[Write]]


def coalesce_in_python(buffer: memoryview, size: int, offset: int, mtu: int, udp: bool) -> list[Write]:
    """Return what to write to the TUN device, in order. A merged datagram has the first one's headers.

    `buffer` holds datagrams of `size` bytes, the last may be shorter; the inner packets begin at `offset` in each.
    Datagrams are merged only if their bytes before `offset`, their addresses and their ports are equal: so checking
    a merged one (encap/datapath/forward.py) decides for all. `mtu` is the TUN device's; `udp` allows UDP_L4 packets.
    The buffer is
    written to: what is merged is moved together.
    """
    writes: list[Write] = []
    at = 0
    while at < len(buffer):
        run = _merge(buffer, at, size, offset, udp)
        if run is None:
            stop = min(at + size, len(buffer))
            writes.append((single(buffer[at + offset : stop], mtu), at, stop))
            at += size
        else:
            end, length, header = run
            writes.append((header, at, at + offset + length))
            at = end
    return writes


coalesce: Coalesce = coalesce_in_python if accelerator is None else accelerator.coalesce


def _merge(buffer: memoryview, at: int, size: int, offset: int, udp: bool) -> tuple[int, int, bytes] | None:
    """Merge the run that begins at `at` in place; return its end, the super-packet's length and virtio header.

    None, and nothing is changed, if the first two datagrams are no run.
    """
    first, end = buffer[at + offset : at + size], at + size
    layout = _mergeable(first, udp) if len(buffer) > end and size > offset else None
    if layout is None:
        return None
    length, said, sequence, push = len(first), _said_once(first, layout), _sequence(first, layout), 0
    while end < len(buffer):
        packet = buffer[end + offset : end + size]
        payload = len(packet) - layout.header
        if payload <= 0 or length + payload > MAX_PACKET or buffer[end : end + offset] != buffer[at : at + offset]:
            break
        if layout.protocol == UDP and end - at >= MOST_SEGMENTS * size:
            break
        if _mergeable(packet, udp) != layout or _said_once(packet, layout) != said:
            break
        if layout.protocol == TCP:
            if _sequence(packet, layout) != sequence + length - layout.header & 0xFFFFFFFF:
                break
            push |= packet[layout.transport + 13] & PSH
        end += offset + len(packet)
        start = at + offset + length
        buffer[start : start + payload] = bytes(packet[layout.header :])
        length += payload
    if end == at + size:
        return None
    return end, length, _complete(buffer[at + offset :], layout, length, size - offset - layout.header, push)


def _mergeable(packet: memoryview, udp: bool) -> Layout | None:
    """Return where things are in a packet with payload, right checksums, and nothing that a merged one cannot say."""
    layout = read_layout(packet)
    if layout is None or len(packet) <= layout.header:
        return None
    at = layout.transport
    if layout.protocol == UDP:
        if not udp or not packet[at + 6] | packet[at + 7]:
            return None
    elif packet[at + 13] & ~PSH != ACK or packet[at + 12] & 15:
        return None
    if layout.version == 4 and complement(total(packet, 0, at)):
        return None
    pseudo = pseudo_sum(layout.addresses(packet), layout.protocol, len(packet) - at)
    return None if complement(total(packet, at, len(packet)) + pseudo) else layout


def _said_once(packet: memoryview, layout: Layout) -> tuple[bytes, ...]:
    """Return what must be equal: all but lengths, checksums, TCP's sequence number and PSH, and IPv4's identification.

    The identification of packets that are not fragments may do as it likes (RFC 6864).
    """
    at = layout.transport
    network = (packet[:2], packet[6:10], packet[12:20]) if layout.version == 4 else (packet[:4], packet[6:40])
    if layout.protocol == UDP:
        return tuple(map(bytes, (*network, packet[at : at + 4])))
    rest = (packet[at : at + 4], packet[at + 8 : at + 13], packet[at + 14 : at + 16], packet[at + 18 : layout.header])
    return tuple(map(bytes, (*network, *rest)))


def _sequence(packet: memoryview, layout: Layout) -> int:
    return int.from_bytes(packet[layout.transport + 4 : layout.transport + 8], "big")


def _complete(packet: memoryview, layout: Layout, length: int, payload: int, push: int) -> bytes:
    """Make the packet at the beginning a super-packet of `length` bytes; return its virtio header."""
    at = layout.transport
    put_lengths(packet, layout, length)
    if layout.protocol == TCP:
        packet[at + 13] |= push
    pseudo = pseudo_sum(layout.addresses(packet), layout.protocol, length - at)
    struct.pack_into("!H", packet, layout.checksum, pseudo % 0xFFFF)
    return VNET.pack(NEEDS_CSUM, layout.gso_type, layout.header, payload, at, layout.checksum - at)
