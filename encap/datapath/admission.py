"""Whether a datagram may come in, decided once per flow of addresses and remembered.

encap/packet/frame.py checks the encapsulation and forward.py the inner packet. What they say depends on few bytes: who
sent the
datagram, the bytes before the inner packet, and the inner addresses. So an admitted triple is remembered, and a packet
of it needs only what is its own to be checked: version, lengths, TTL. IPv4 with options, and all that is refused, takes
the long way each time. Pure but for its memory.
"""

from __future__ import annotations

import struct

from flanneld_py.encap.datapath.forward import Drop, Own, Remote, Table, inbound
from flanneld_py.encap.packet.frame import VXLAN_LENGTH, DropReason, parse_vxlan

MOST = 8192
"""Triples that are remembered; when there are more, all are forgotten."""


class Admission:
    """Admit datagrams from the peers of a table to our own subnets.

    `vxlan` is our VNI and our VTEP's MAC, None if datagrams hold nothing but the inner packet. Whoever changes the
    table has to call `forget`.
    """

    def __init__(self, table: Table, own: Own, vxlan: tuple[int, bytes] | None) -> None:
        self._table = table
        self._own = own
        self._vxlan = vxlan
        self.offset = VXLAN_LENGTH if vxlan else 0
        """Where the inner packet begins in a datagram."""
        self._head4 = struct.Struct(f"!{self.offset}s2xH4xB3x8s")
        self._head6 = struct.Struct(f"!{self.offset}s4xHxB32s")
        self.admitted: dict[tuple[bytes, bytes, bytes], Remote] = {}
        """What is remembered; fastpath.c looks into it too."""

    def forget(self) -> None:
        """Decide anew: the table has changed."""
        self.admitted.clear()

    def admit(self, source: bytes, datagram: memoryview) -> Remote | DropReason:
        """Return who sent a datagram that came from an underlay address (packed), or why it is refused."""
        size = len(datagram) - self.offset
        first = datagram[self.offset] if size > 0 else 0
        if first == 0x45 and size >= 20:
            prefix, length, ttl, addresses = self._head4.unpack_from(datagram)
        elif first >> 4 == 6 and size >= 40:
            prefix, length, ttl, addresses = self._head6.unpack_from(datagram)
            length += 40
        else:
            return self._decide(source, datagram)
        if length != size or not ttl:
            return self._decide(source, datagram)
        flow = (source, prefix, addresses)
        remote = self.admitted.get(flow)
        if remote is not None:
            return remote
        verdict = self._decide(source, datagram)
        if not isinstance(verdict, DropReason):
            if len(self.admitted) >= MOST:
                self.admitted.clear()
            self.admitted[flow] = verdict
        return verdict

    def _decide(self, source: bytes, datagram: memoryview) -> Remote | DropReason:
        if self._vxlan is not None:
            start = parse_vxlan(datagram, *self._vxlan)
            if isinstance(start, DropReason):
                return start
        decision = inbound(self._table, source, datagram[self.offset :], self._own)
        return decision.reason if isinstance(decision, Drop) else decision.remote
