"""The virtio header before every packet on a TUN device with IFF_VNET_HDR (linux/virtio_net.h, struct virtio_net_hdr).

    | flags 1 | gso_type 1 | hdr_len 2 | gso_size 2 | csum_start 2 | csum_offset 2 |     in the machine's byte order

Not here: the device (encap/datapath/tun.py) and what becomes of super-packets (segment.py, coalesce.py).
"""

from __future__ import annotations

import struct

VNET = struct.Struct("=BBHHHH")

VNET_HEADER = VNET.size
"""10 bytes, as TUNSETVNETHDRSZ is told."""

PLAIN = bytes(VNET_HEADER)
"""A packet that is complete."""

NEEDS_CSUM = 1
"""flags: the checksum at csum_start + csum_offset holds the sum of the pseudo-header and is to be finished."""

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""gso_type; ECN is a flag beside it: the super-packet's first segment carries CWR."""

TCP = 6
UDP = 17
"""IANA protocol numbers."""

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
"""TCP flags (RFC 9293 section 3.1)."""


def segments(header: bytes, length: int) -> int:
    """Return how many packets a packet of `length` bytes stands for, by its virtio header."""
    _, gso_type, network, size, _, _ = VNET.unpack(header)
    return pieces(length - network, size) if gso_type else 1


def largest(train: bytes | bytearray | memoryview) -> int:
    """Return the bytes of the largest packet that a super-packet stands for, its virtio header in front."""
    size: int
    start: int
    _, gso_type, _, size, start, _ = VNET.unpack_from(train)
    length = len(train) - VNET_HEADER
    header = start + 8
    if gso_type != GSO_UDP_L4 and start + 12 < length:
        header = start + (train[VNET_HEADER + start + 12] >> 4 << 2)
    return min(header + size, length)


CELL = 1 << 10
"""Bytes: a datagram takes at least as long as so many bytes do."""


def cost(length: int, size: int) -> int:
    """Return what `length` bytes of packets of `size` bytes count against a turn's share, in bytes; size 0: one."""
    return max(length, CELL * pieces(length, size))


def pieces(total: int, size: int) -> int:
    """Return how many pieces of `size` bytes make `total` bytes, the last of them shorter; nothing is one."""
    return -(-total // size) if total and size else 1
