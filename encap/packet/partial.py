"""What comes in one datagram and not as a NIC would have cut and finished it: packets of another namespace's kernel.

Between network namespaces nobody computes checksums or cuts super-packets. Then a checksum field is exactly the sum of
the pseudo-header, and the virtio header passes on to the TUN device what the datagram cannot say. Pure.

A UDP super-packet is the hard case: a kernel VXLAN sender hands a socket with UDP_GRO its whole tunnel super-packet,
and the control message tells the size of the *inner* segments, as if the buffer were outer datagrams of that size:

    told       | size | size | size | ...
    there      | VXLAN 22 | IP, UDP 28 | payload: size | size | ...        one datagram; its checksum is not finished

The inner lengths say which of the two it is. (An uncut TCP super-packet is told as one datagram.) TUN devices take such
packets since Linux 6.2; for older ones they are cut here, as a NIC would have done.
"""

from __future__ import annotations

import struct

from flanneld_py.encap.packet.checksum import complement, pseudo_sum, total
from flanneld_py.encap.packet.layout import Layout, put_lengths, read_layout
from flanneld_py.encap.packet.segment import segment
from flanneld_py.encap.packet.virtio import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, PLAIN, TCP, UDP, VNET

SMALLEST = 1280
"""Bytes: containers may have a smaller MTU than the device, in dual stack that of IPv6: this or more (RFC 8200)."""

Write = tuple[bytes, int, int]
"""A virtio header, and where the datagram begins and ends whose inner packet goes to the TUN device with it."""


def uncut(buffer: memoryview, size: int, offset: int) -> Write | None:
    """Return the write to the TUN device if the buffer is one datagram with a super-packet of segments of `size`.

    None if it holds datagrams of `size` bytes, as told. The inner packet begins at `offset`.
    """
    packet = buffer[offset:]
    if len(buffer) <= size or len(packet) < 28 or UDP not in (packet[9], packet[6]):
        return None
    layout = read_layout(packet)
    if layout is None or layout.protocol != UDP or complement(_check(packet, layout) - _pseudo(packet, layout)):
        return None
    start, field = layout.transport, layout.checksum
    return VNET.pack(NEEDS_CSUM, GSO_UDP_L4, layout.header, size, start, field - start), 0, len(buffer)


def tells_length(packet: memoryview, length: int) -> bool:
    """Tell whether an IP header says that the packet is of `length` bytes: then it is one, whatever it is told as."""
    if length <= 20:
        return False
    said = packet[2] << 8 | packet[3] if packet[0] >> 4 == 4 else 40 + (packet[4] << 8 | packet[5])
    return said == length


def cut(buffer: memoryview, whole: Write, offset: int) -> tuple[memoryview, int]:
    """Return the datagrams that a NIC would have made of a super-packet, and their size in bytes (the last: or less).

    `whole` is what `uncut` has made of the buffer. The size is 0 if there is nothing in it to be cut.
    """
    train = whole[0] + buffer[offset:]
    datagrams, size = segment(train, len(train), bytes(buffer[:offset]))
    return memoryview(bytearray(datagrams)), size


def single(packet: memoryview, mtu: int) -> bytes:
    """Return the virtio header of one packet as it came; what a namespace's kernel left unfinished is declared so.

    A TCP packet larger than the TUN device's `mtu` is an uncut super-packet; then its headers are completed in place.
    Nothing says how large its segments were.
    """
    layout = read_layout(packet)
    if layout is None:
        return PLAIN
    at, field, check = layout.transport, layout.checksum, _check(packet, layout)
    pseudo = _pseudo(packet, layout)
    unfinished = check != 0 and not complement(check - pseudo)
    if layout.protocol == TCP and len(packet) > mtu > layout.header:
        right = unfinished or not complement(total(packet, at, len(packet)) + pseudo)
        if right and (layout.version == 6 or not complement(total(packet, 0, at))):
            put_lengths(packet, layout, len(packet))
            struct.pack_into("!H", packet, field, pseudo % 0xFFFF)
            size = min(mtu, SMALLEST) - layout.header
            return VNET.pack(NEEDS_CSUM, layout.gso_type, layout.header, size, at, field - at)
    elif unfinished:
        return VNET.pack(NEEDS_CSUM, GSO_NONE, layout.header, 0, at, field - at)
    return PLAIN


def _check(packet: memoryview, layout: Layout) -> int:
    return packet[layout.checksum] << 8 | packet[layout.checksum + 1]


def _pseudo(packet: memoryview, layout: Layout) -> int:
    return pseudo_sum(layout.addresses(packet), layout.protocol, len(packet) - layout.transport)
