"""Explicit congestion notification through the tunnel (RFC 6040): what the underlay marks, the inner packet says. Pure.

    outward   outer = inner (section 4.1, normal mode)
    inward    outer CE: the inner packet becomes CE; one that cannot be marked (Not-ECT) is dropped   (section 4.2)
              outer ECT(1): an inner ECT(0) becomes ECT(1); else the inner packet stays

packet.h does the same, byte for byte.
"""

from __future__ import annotations

from flanneld_py.encap.packet.checksum import Buffer

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
"""The codepoints of RFC 3168."""


def marking(packet: Buffer) -> int:
    """Return the codepoint of a packet that has an IP header, 0 of anything else."""
    if len(packet) < 20:
        return NOT_ECT
    return packet[1] & 3 if packet[0] >> 4 == 4 else packet[1] >> 4 & 3


def combine(datagrams: memoryview, size: int, offset: int, outer: int) -> tuple[memoryview, int]:
    """Put the outer codepoint, CE or ECT(1), into the inner packets, in place; return the datagrams without those that
    have to be dropped, and how many these were.

    The datagrams are of `size` bytes, the last may be shorter; the inner packets begin at `offset` in each.
    """
    kept = lost = 0
    for at in range(0, len(datagrams), size):
        datagram = datagrams[at : at + size]
        if _mark(datagram[offset:], outer):
            if kept < at:
                datagrams[kept : kept + len(datagram)] = bytes(datagram)
            kept += len(datagram)
        else:
            lost += 1
    return datagrams[:kept], lost


def _mark(packet: memoryview, outer: int) -> bool:
    """Mark one packet; return whether it may go on. What is no IP packet is left to others to refuse."""
    inner, version = marking(packet), packet[0] >> 4 if len(packet) >= 20 else 0
    if version not in (4, 6):
        return True
    if inner == NOT_ECT:
        return outer != CE
    if outer == CE or inner == ECT0:
        change = inner ^ outer
        if version == 6:
            packet[1] ^= change << 4
            return True
        before = packet[0] << 8 | packet[1]
        packet[1] ^= change
        # RFC 1624: a header checksum that was wrong stays so.
        total = (0xFFFF ^ (packet[10] << 8 | packet[11])) + (0xFFFF ^ before) + (before ^ change)
        total = (total & 0xFFFF) + (total >> 16)
        total = 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))
        packet[10], packet[11] = total >> 8, total & 0xFF
    return True
