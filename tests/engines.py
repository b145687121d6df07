"""Both ways to read, to cut and to merge: in Python, and in C where it was built."""

from __future__ import annotations

from collections.abc import Callable

from flanneld_py.encap.datapath.gather import Train, gather, gather_in_python
from flanneld_py.encap.packet.checksum import Buffer
from flanneld_py.encap.packet.coalesce import Coalesce, coalesce, coalesce_in_python
from flanneld_py.encap.packet.segment import segment, segment_in_python

Cutter = Callable[[Buffer, int, bytes], tuple[bytes, int]]

CUTTERS: tuple[Cutter, ...] = tuple({segment_in_python: 0, segment: 0})
COALESCERS: tuple[Coalesce, ...] = tuple({coalesce_in_python: 0, coalesce: 0})
GATHERERS: tuple[Callable[[int, memoryview, int, int], list[Train]], ...] = tuple({gather_in_python: 0, gather: 0})


def alone(header: Buffer, packet: Buffer) -> tuple[memoryview, int]:
    """A train of one packet, as `segment` wants it."""
    train = memoryview(bytearray(bytes(header) + bytes(packet)))
    return train, len(train)
