"""Whether a datagram may come in, decided once per flow of addresses and remembered.

frame.py checks the encapsulation and forward.py the inner packet. What they say depends on few bytes: who sent the
datagram, the bytes before the inner packet, and the inner addresses. So an admitted triple is remembered, and a packet
of it needs only what is its own to be checked: version, lengths, TTL. Only IPv4 without options is remembered; all
else, and all that is refused, takes the long way each time. Pure but for its memory.
"""

from __future__ import annotations

import struct

from flanneld_py.encap.forward import Drop, Own, Remote, Table, inbound
from flanneld_py.encap.frame import VXLAN_LENGTH, Refused, parse_vxlan

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
        self._head = struct.Struct(f"!{self.offset}sBxH4xB3x8s")
        self._admitted: dict[tuple[bytes, bytes, bytes], Remote] = {}

    def forget(self) -> None:
        """Decide anew: the table has changed."""
        self._admitted.clear()

    def admit(self, source: bytes, datagram: memoryview) -> Remote | Refused:
        """Return who sent a datagram that came from an underlay address (packed), or why it is refused."""
        if len(datagram) < self._head.size:
            return self._decide(source, datagram)
        prefix, version, length, ttl, addresses = self._head.unpack_from(datagram)
        if version != 0x45 or length != len(datagram) - self.offset or not ttl:
            return self._decide(source, datagram)
        flow = (source, prefix, addresses)
        remote = self._admitted.get(flow)
        if remote is not None:
            return remote
        verdict = self._decide(source, datagram)
        if not isinstance(verdict, Refused):
            if len(self._admitted) >= MOST:
                self._admitted.clear()
            self._admitted[flow] = verdict
        return verdict

    def _decide(self, source: bytes, datagram: memoryview) -> Remote | Refused:
        if self._vxlan is not None:
            start = parse_vxlan(datagram, *self._vxlan)
            if isinstance(start, Refused):
                return start
        decision = inbound(self._table, source, datagram[self.offset :], self._own)
        return decision.reason if isinstance(decision, Drop) else decision.remote
