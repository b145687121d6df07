"""Read what waits in a queue of the TUN device, and tell where packets of one fate follow each other.

    | virtio header, packet | virtio header, packet | ...        a train: equal sizes, equal virtio headers,
    | start                                      stop |          sound IP headers, nothing to cut,
                                                                 one destination, one ECN codepoint

Such packets are decided on, encapsulated and sent together. A super-packet is a train of its own.
encap/packet/accelerator.c does the same (a test compares them); `gather` is the quicker one where it was built.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from flanneld_py.encap.packet.ecn import marking
from flanneld_py.encap.packet.virtio import GSO_NONE, VNET, VNET_HEADER, cost

try:
    from flanneld_py.encap.packet import accelerator
except ImportError:
    accelerator = None  # type: ignore[assignment]

LARGEST = VNET_HEADER + 65535
"""Bytes of the largest read."""

Train = tuple[int, int, int, int, bytes]
"""Where it begins and ends in the buffer, and the size of each packet with its virtio header, in bytes; the gso_size of
a super-packet, else 0; the destination, packed, if the IP headers are sound, else b""."""


def gather_in_python(fd: int, buffer: memoryview, most: int, have: int) -> list[Train]:
    """Read up to `most` packets, as long as the buffer has room for the largest. Raises OSError if it read none.

    And no more than a turn's share, which is as large as the buffer: little datagrams count for more
    (encap/packet/virtio.py).
    `have` bytes are the first packet, read before, 0 if there is none. Nothing waiting is no error: there is no train.
    """
    trains: list[Train] = []
    at = charged = 0
    for _ in range(most):
        if len(buffer) - at < LARGEST or charged >= len(buffer):
            break
        try:
            size = have or os.readv(fd, (buffer[at : at + LARGEST],))
        except BlockingIOError:
            break
        except OSError:
            if trains:
                break  # it will be there the next time
            raise
        have = 0
        if not size:
            break
        packet = buffer[at : at + size]
        start, _, each, _, to = trains[-1] if trains else (0, 0, 0, 0, b"")
        if to and size == each and _alike(buffer[start : start + size], packet) and to == _destination(packet):
            trains[-1] = (start, at + size, each, 0, to)
        else:
            trains.append((at, at + size, size, _gso_size(packet), _destination(packet)))
        charged += cost(size, _gso_size(packet))
        at += size
    return trains


gather: Callable[[int, memoryview, int, int], list[Train]]
gather = gather_in_python if accelerator is None else accelerator.gather


def _alike(a: memoryview, b: memoryview) -> bool:
    same = a[: VNET_HEADER + 1] == b[: VNET_HEADER + 1] and marking(a[VNET_HEADER:]) == marking(b[VNET_HEADER:])
    return same and a[1] == GSO_NONE


def _gso_size(packet: memoryview) -> int:
    if len(packet) <= VNET_HEADER or packet[1] == GSO_NONE:
        return 0
    size: int = VNET.unpack_from(packet)[3]
    return size


def _destination(packet: memoryview) -> bytes:
    packet = packet[VNET_HEADER:]
    length = len(packet)
    version = packet[0] >> 4 if length >= 20 else 0
    if version == 4:
        sound = 20 <= (packet[0] & 15) << 2 <= length and (packet[2] << 8 | packet[3]) == length and packet[8]
        return bytes(packet[16:20]) if sound else b""
    sound = version == 6 and length >= 40 and (packet[4] << 8 | packet[5]) + 40 == length and packet[7]
    return bytes(packet[24:40]) if sound else b""
