"""A UDP super-packet that arrives inside one datagram, because no NIC was on the way to cut it. Pure.

Between network namespaces a kernel VXLAN sender hands a socket with UDP_GRO its whole tunnel super-packet, and the
control message tells the size of the *inner* segments, as if the buffer were outer datagrams of that size:

    told       | size | size | size | ...
    there      | VXLAN 22 | IP, UDP 28 | payload: size | size | ...        one datagram; its checksum is not finished

The inner lengths say which of the two it is. (An uncut TCP super-packet is told as one datagram: see merge.py.)
"""

from __future__ import annotations

from flanneld_py.encap.checksum import complement, pseudo_sum
from flanneld_py.encap.merge import Write, read_layout
from flanneld_py.encap.virtio import GSO_UDP_L4, NEEDS_CSUM, UDP, VNET


def uncut(buffer: memoryview, size: int, offset: int) -> Write | None:
    """Return the write to the TUN device if the buffer is one datagram with a super-packet of segments of `size`.

    None if it holds datagrams of `size` bytes, as told. The inner packet begins at `offset`.
    """
    packet = buffer[offset:]
    layout = read_layout(packet) if len(buffer) > size else None
    if layout is None or layout.protocol != UDP:
        return None
    start, field = layout.transport, layout.checksum
    addresses = packet[12:20] if layout.version == 4 else packet[8:40]
    pseudo = pseudo_sum(addresses, UDP, len(packet) - start)
    if complement((packet[field] << 8 | packet[field + 1]) - pseudo):
        return None
    return VNET.pack(NEEDS_CSUM, GSO_UDP_L4, layout.header, size, start, field - start), [packet], buffer
