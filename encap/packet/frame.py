"""Wire formats of the userspace data plane, and why a packet is refused.

    RAW      the inner IP packet is the UDP payload (flannel's `udp` backend)
    VXLAN    RFC 7348, 22 bytes before the inner packet:

             | flags (0x08) 1 | reserved 3 | VNI 3 | reserved 1 | destination MAC 6 | source MAC 6 | ethertype 2 |

Not here: what is inside the inner packet (encap/datapath/forward.py decides on its addresses, segment.py on its
transport).
A VXLAN datagram is checked in the order of its bytes: length, flags, VNI, destination MAC, type against IP version.
"""

from __future__ import annotations

import struct
from enum import Enum

VXLAN_LENGTH = 22
"""Bytes before the inner packet: VXLAN 8 and Ethernet 14."""

FLAG_VNI = 0x08
"""The I flag: the VNI is valid (RFC 7348 section 5)."""

ETHERTYPE = {4: 0x0800, 6: 0x86DD}

_HEADER = struct.Struct("!II6s6sH")


class DropReason(Enum):
    """Why a packet is not carried; the value names its counter."""

    SHORT = "short"
    VNI = "vni"
    MAC = "mac"
    ETHERTYPE = "ethertype"
    VERSION = "version"
    LENGTH = "length"
    UNKNOWN_PEER = "unknown-peer"
    SOURCE = "source"
    DESTINATION = "destination"
    NO_ROUTE = "no-route"
    MULTICAST = "multicast"
    TTL = "ttl"
    TOO_BIG = "too-big"
    CHECKSUM = "checksum"
    OFFLOAD = "offload"
    ECN = "ecn"


def vxlan_header(vni: int, destination: bytes, source: bytes, version: int) -> bytes:
    """Return the 22 bytes before an inner packet of this IP version (4 or 6) between two VTEP MACs."""
    return _HEADER.pack(FLAG_VNI << 24, vni << 8, destination, source, ETHERTYPE[version])


def parse_vxlan(datagram: memoryview, vni: int, mac: bytes) -> int | DropReason:
    """Return the offset of the inner packet in a datagram for our VNI and our VTEP's MAC.

    Flags and reserved bits other than I are ignored, as RFC 7348 section 5 asks of a receiver.
    """
    if len(datagram) <= VXLAN_LENGTH:
        return DropReason.SHORT
    flags, number, destination, _, ethertype = _HEADER.unpack_from(datagram)
    if not flags >> 24 & FLAG_VNI or number >> 8 != vni:
        return DropReason.VNI
    if destination != mac:
        return DropReason.MAC
    if ETHERTYPE.get(datagram[VXLAN_LENGTH] >> 4) != ethertype:
        return DropReason.ETHERTYPE if ethertype not in ETHERTYPE.values() else DropReason.VERSION
    return VXLAN_LENGTH
