"""Datagrams on their way to the wire, gathered until one send is full.

A TCP super-packet of 64 KiB is 46 datagrams over VXLAN, and a send takes 44 (65507 bytes): sent one by one, each leaves
a rest that costs as much as a full send, here and at the receiver, which is handed what was sent together. So the
rest waits for the next packet to the same peer with datagrams of the same size, and small packets ride together.
Nothing waits longer than until the TUN device is drained: then whoever adds must flush.
"""

from __future__ import annotations

from collections.abc import Callable

from flanneld_py.encap.datapath.peertable import Endpoint
from flanneld_py.encap.datapath.wire import Wire
from flanneld_py.encap.packet.virtio import pieces


class Batch:
    """The datagrams for one endpoint with one ECN codepoint, equal in size but for the last.

    `lost` is told why how many were not sent.
    """

    def __init__(self, wire: Wire, lost: Callable[[OSError, int], None]) -> None:
        self._wire = wire
        self._lost = lost
        self._parts: list[bytes | memoryview] = []
        self._filled = 0
        self._size = 1
        self._capacity = 0
        self._to: tuple[Endpoint, int] = (("", 0), 0)

    def add(self, datagrams: bytes, size: int, endpoint: Endpoint, codepoint: int) -> None:
        """Add datagrams of `size` bytes, back to back; the last may be shorter."""
        length, to = len(datagrams), (endpoint, codepoint)
        if self._filled and (to != self._to or (size != self._size and not length == size < self._size)):
            self.flush()
        if not self._filled:
            self._to, self._size, self._capacity = to, size, self._wire.capacity(size)
        if self._filled + length <= self._capacity:
            self._parts.append(datagrams)
            self._filled += length
        else:
            self._split(memoryview(datagrams))
        if self._filled == self._capacity or self._filled % self._size:
            self.flush()

    def _split(self, rest: memoryview) -> None:
        while rest:
            part = rest[: self._capacity - self._filled]
            self._parts.append(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if rest:
                self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        if not self._filled:
            return
        parts, count = self._parts, pieces(self._filled, self._size)
        self._parts, self._filled = [], 0
        try:
            self._wire.send(parts, self._size, *self._to)
        except OSError as error:
            self._lost(error, count)
