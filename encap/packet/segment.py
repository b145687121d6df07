"""Super-packets, cut: what the TUN device hands over becomes the datagrams that a host without offloads would send.

    TUN   | virtio header | headers |           64 KiB of payload           |      one read, one write
                          segment()  |          ^  coalesce(), in coalesce.py
                                     v          |
    wire  | prefix | headers | payload | prefix | headers | payload | ...          one sendmsg, one recvmsg

Every datagram is complete: own lengths, IPv4 identification, sequence number and checksums; CWR only on the first
segment, FIN and PSH only on the last.

accelerator.c does the same, byte for byte (a test compares them), in 5 us for 64 KiB where this takes 300;
`segment` is the quicker one where it was built, `segment_in_python` is always there.
Not here: whether a packet may pass (frame.py, encap/datapath/forward.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import chain

from flanneld_py.encap.packet.checksum import Buffer, complement, pseudo_sum, total
from flanneld_py.encap.packet.layout import Layout, put_lengths
from flanneld_py.encap.packet.virtio import (
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

try:
    from flanneld_py.encap.packet import accelerator
except ImportError:
    accelerator = None  # type: ignore[assignment]

__all__ = ["accelerator", "segment", "segment_in_python"]

_KIND = {(GSO_TCPV4, 4): TCP, (GSO_TCPV6, 6): TCP, (GSO_UDP_L4, 4): UDP, (GSO_UDP_L4, 6): UDP}


def segment_in_python(train: Buffer, each: int, prefix: bytes) -> tuple[bytes, int]:
    """Return (datagrams back to back, their size in bytes; the last may be shorter), (b"", 0) if it cannot be cut.

    `train` is a super-packet, or packets of one fate (encap/datapath/gather.py), `each` bytes with its virtio header;
    `prefix` goes
    before each inner packet on the wire. The caller cuts the result at multiples of the size if it is too much for one
    UDP_SEGMENT send (64 segments, 65507 bytes). The packets are the kernel's own: what is checked is that nothing is
    read beyond them.
    """
    flags, gso_type, _, size, start, offset = VNET.unpack_from(train)
    gso_type &= ~GSO_ECN  # says the same as CWR in the TCP header
    if gso_type == GSO_NONE:
        packets = (train[at + VNET_HEADER : at + each] for at in range(0, len(train), each))
        if flags & NEEDS_CSUM:
            return _finished(packets, each - VNET_HEADER, prefix, start, start + offset)
        return b"".join(chain.from_iterable((prefix, packet) for packet in packets)), len(prefix) + each - VNET_HEADER
    packet = train[VNET_HEADER:]
    layout = _read(packet, gso_type, start) if size else None
    if layout is None:
        return b"", 0
    head = bytes(packet[: layout.header])
    datagrams = bytearray()
    for number, at in enumerate(range(layout.header, len(packet), size)):
        payload = packet[at : at + size]
        datagrams += prefix
        datagrams += _head(head, layout, number, at, payload, last=at + size >= len(packet))
        datagrams += payload
    return bytes(datagrams), len(prefix) + min(layout.header + size, len(packet))


segment: Callable[[Buffer, int, bytes], tuple[bytes, int]]
segment = segment_in_python if accelerator is None else accelerator.segment


def _finished(packets: Iterable[Buffer], length: int, prefix: bytes, start: int, at: int) -> tuple[bytes, int]:
    """Return datagrams whose checksum is completed: the field at `at` holds the sum of the pseudo-header already."""
    if at > length - 2:
        return b"", 0
    datagrams = bytearray()
    for packet in packets:
        field = len(datagrams) + len(prefix) + at
        datagrams += prefix
        datagrams += packet
        # To UDP 0 means "no checksum"; to all others 0xffff is the same number.
        struct.pack_into("!H", datagrams, field, complement(total(packet, start, length)) or 0xFFFF)
    return bytes(datagrams), len(prefix) + length


def _read(packet: Buffer, gso_type: int, transport: int) -> Layout | None:
    """Return where things are, None if the virtio header and the packet do not fit together or there is no payload."""
    version = packet[0] >> 4 if packet else 0
    protocol = _KIND.get((gso_type, version))
    least = 8 if protocol == UDP else 20
    if protocol is None or transport < 20 or transport + least > len(packet):
        return None
    header = transport + (8 if protocol == UDP else packet[transport + 12] >> 4 << 2)
    fits = transport == (packet[0] & 15) << 2 if version == 4 else transport >= 40
    return Layout(version, protocol, transport, header) if fits and transport + least <= header < len(packet) else None


def _head(whole: bytes, layout: Layout, number: int, at: int, payload: Buffer, *, last: bool) -> bytearray:
    """Return the headers of segment `number`, whose payload begins at `at` in the super-packet."""
    head = bytearray(whole)
    transport = layout.transport
    if layout.version == 4:
        struct.pack_into("!H", head, 4, int.from_bytes(whole[4:6], "big") + number & 0xFFFF)
    put_lengths(head, layout, len(head) + len(payload))
    if layout.protocol == TCP:
        sequence = int.from_bytes(whole[transport + 4 : transport + 8], "big") + at - layout.header
        struct.pack_into("!I", head, transport + 4, sequence & 0xFFFFFFFF)
        head[transport + 13] &= ~((CWR if number else 0) | (0 if last else FIN | PSH))
    struct.pack_into("!H", head, layout.checksum, 0)
    pseudo = pseudo_sum(layout.addresses(head), layout.protocol, len(head) - transport + len(payload))
    checksum = complement(pseudo + total(head, transport, len(head)) + total(payload, 0, len(payload)))
    struct.pack_into("!H", head, layout.checksum, checksum or (0xFFFF if layout.protocol == UDP else 0))
    return head
