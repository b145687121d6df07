"""Super-packets: cut what the TUN device hands over, merge what the wire brings. (First version: signatures only.)"""

from __future__ import annotations

VNET_HEADER = 10
"""Bytes of struct virtio_net_hdr before every packet on the TUN device (linux/virtio_net.h, TUNSETVNETHDRSZ)."""

Buffer = bytes | bytearray | memoryview


def segment(header: Buffer, packet: Buffer, prefix: bytes) -> tuple[bytes, int]:
    """Return (datagrams back to back, their size in bytes; the last may be shorter); (b"", 0) if it cannot be cut.

    `header` is the virtio header, `packet` what follows it on the TUN device, `prefix` what goes before each inner
    packet on the wire. The caller cuts the result at multiples of the size if it is too much for one UDP_SEGMENT send
    (64 segments, 65507 bytes).
    """
    return prefix + bytes(packet), len(prefix) + len(packet)


def coalesce(
    buffer: memoryview, size: int, offset: int, mtu: int, *, udp: bool = False
) -> list[tuple[bytes, list[memoryview | bytes], memoryview]]:
    """Return what to write to the TUN device: (virtio header, parts of the packet, the first datagram merged in it).

    `buffer` holds datagrams of `size` bytes, the last may be shorter; the inner packets begin at `offset` in each.
    Datagrams are merged only if their bytes before `offset`, their addresses and their ports are equal: so checking
    the first datagram (parse_vxlan, inbound) decides for all. `mtu` is the TUN device's; `udp` allows UDP_L4 packets.
    """
    return [
        (bytes(VNET_HEADER), [buffer[at + offset : at + size]], buffer[at : at + size])
        for at in range(0, len(buffer), size)
    ]
