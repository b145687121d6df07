"""Read what waits in a queue of the TUN device, and tell where packets of one fate follow each other.

    | virtio header, packet | virtio header, packet | ...        a train: equal sizes, equal virtio headers,
    | start                                      stop |          one destination, sound IP headers, nothing to cut

Such packets are decided on, encapsulated and sent together. A super-packet is a train of its own.
accelerator.c does the same (a test compares them); `gather` is the quicker one where it was built.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from flanneld_py.encap.virtio import GSO_NONE, VNET_HEADER

try:
    from flanneld_py.encap import accelerator
except ImportError:
    accelerator = None  # type: ignore[assignment]

LARGEST = VNET_HEADER + 65535
"""Bytes of the largest read."""

Train = tuple[int, int, int]
"""Where it begins and ends in the buffer, and the size of each packet with its virtio header, in bytes."""


def gather_in_python(fd: int, buffer: memoryview, most: int) -> list[Train]:
    """Read up to `most` packets, as long as the buffer has room for the largest. Raises OSError if it read none.

    Nothing waiting is no error: there is no train then.
    """
    trains: list[Train] = []
    at = 0
    for _ in range(most):
        if len(buffer) - at < LARGEST:
            break
        try:
            size = os.readv(fd, (buffer[at : at + LARGEST],))
        except BlockingIOError:
            break
        except OSError:
            if trains:
                break  # it will be there the next time
            raise
        start, _, each = trains[-1] if trains else (0, 0, 0)
        if size == each and _same_fate(buffer[start : start + size], buffer[at : at + size]):
            trains[-1] = (start, at + size, each)
        elif size:
            trains.append((at, at + size, size))
        else:
            break
        at += size
    return trains


gather: Callable[[int, memoryview, int], list[Train]]
gather = gather_in_python if accelerator is None else accelerator.gather


def _same_fate(a: memoryview, b: memoryview) -> bool:
    x, y = a[VNET_HEADER:], b[VNET_HEADER:]
    size = len(x)
    if size < 20 or a[:VNET_HEADER] != b[:VNET_HEADER] or a[1] != GSO_NONE or x[0] != y[0]:
        return False
    if x[0] == 0x45:
        length, lives, destination = slice(2, 4), 8, slice(16, 20)
    elif x[0] >> 4 == 6 and size >= 40:
        size, length, lives, destination = size - 40, slice(4, 6), 7, slice(24, 40)
    else:
        return False
    right = all(int.from_bytes(packet[length], "big") == size and packet[lives] for packet in (x, y))
    return right and x[destination] == y[destination]
