"""Where things are in an inner TCP or UDP packet: what cutting and merging have in common. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from flanneld_py.encap.packet.checksum import Buffer, complement, total
from flanneld_py.encap.packet.virtio import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, TCP, UDP


@dataclass(frozen=True, slots=True)
class Layout:
    """IP version, protocol, and where the transport header and the payload (`header`) begin, in bytes."""

    version: int
    protocol: int
    transport: int
    header: int

    @property
    def checksum(self) -> int:
        """Where the transport checksum is."""
        return self.transport + (16 if self.protocol == TCP else 6)

    @property
    def gso_type(self) -> int:
        """How the virtio header names super-packets of this kind."""
        if self.protocol == UDP:
            return GSO_UDP_L4
        return GSO_TCPV4 if self.version == 4 else GSO_TCPV6

    def addresses(self, packet: Buffer) -> Buffer:
        """Return both addresses of a packet, packed."""
        return packet[12:20] if self.version == 4 else packet[8:40]


def read_layout(packet: Buffer) -> Layout | None:
    """Return where things are in a whole TCP or UDP packet without IP options and extension headers, else None."""
    if len(packet) < 28:
        return None
    version = packet[0] >> 4
    if packet[0] == 0x45:
        protocol, at = packet[9], 20
        whole = not (packet[6] & 0x3F or packet[7]) and packet[2] << 8 | packet[3]
    elif version == 6:
        protocol, at = packet[6], 40
        whole = 40 + (packet[4] << 8 | packet[5])
    else:
        return None
    if whole != len(packet) or protocol not in (TCP, UDP) or at + 8 > whole:
        return None
    if protocol == UDP:
        return Layout(version, UDP, at, at + 8) if at + (packet[at + 4] << 8 | packet[at + 5]) == whole else None
    header = at + (packet[at + 12] >> 4 << 2) if at + 20 <= whole else 0
    return Layout(version, TCP, at, header) if at + 20 <= header <= whole else None


def put_lengths(head: bytearray | memoryview, layout: Layout, length: int) -> None:
    """Write the length of a packet of `length` bytes wherever its headers say it, and IPv4's header checksum."""
    if layout.version == 4:
        struct.pack_into("!H", head, 2, length)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, complement(total(head, 0, layout.transport)))
    else:
        struct.pack_into("!H", head, 4, length - 40)
    if layout.protocol == UDP:
        struct.pack_into("!H", head, layout.transport + 4, length - layout.transport)
