"""Who is where, for one data plane: the peers as sending and admitting need them, and what was counted for each.

Fed with messages.Peer; asked by every Relay. Not here: packets (relay.py), decisions on them (forward.py,
admission.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice
from struct import Struct
from sys import byteorder

from flanneld_py.encap.datapath.admission import Admission
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.counters import Counters
from flanneld_py.encap.datapath.forward import MOST, Own, Remote, Table
from flanneld_py.encap.packet.frame import vxlan_header

LEAST_MTU = 1280
"""Bytes that every path carries, if need be in fragments, whatever is told of it: IPv6's least (RFC 8200)."""

PATH_SECONDS = 600.0
"""How long a path is believed to be narrow, as the kernel believes it (RFC 8201 section 4)."""

# linux/in.h, linux/in6.h; the family is in the machine's byte order. No flow label, no scope.
_SOCKADDR4, _SOCKADDR6 = Struct("!2sH4s8x"), Struct("!2sH4x16s4x")

Endpoint = tuple[str, int]
"""Address and UDP port, as sockets show them."""


@dataclass(frozen=True, slots=True)
class Hop(Remote):
    """A peer with what sending to it takes, made once: socket address, bytes before an inner packet, counters.

    fastpath.c reads these by name. `socket_address` is the endpoint as struct sockaddr_in or sockaddr_in6.
    """

    endpoint: Endpoint
    socket_address: bytes
    prefix4: bytes
    prefix6: bytes
    tally: Counters = field(compare=False)


class PeerTable:
    """The peers that were put.

    `table` says who is behind a destination, `sources` which packed address a sender's text is, `admission` who may
    send what; `drops` counts what did not pass, by reason.
    """

    def __init__(self, wanted: messages.Configure) -> None:
        self.table = Table()
        self.sources: dict[str, bytes] = {}
        self.drops: Counter[str] = Counter()
        self._peers: dict[str, messages.Peer] = {}
        self._tallies: dict[str, Counters] = {}
        self._departed = Counters()
        self._paths: dict[bytes, tuple[int, float]] = {}
        self._vxlan: tuple[int, bytes] | None = None
        self.configure(wanted)

    def configure(self, wanted: messages.Configure) -> None:
        """Take in a configuration with the same fixed part."""
        self.wanted = wanted
        self.mtu = wanted.mtu
        vxlan = (wanted.vni, wanted.mac) if wanted.mode is messages.Mode.VXLAN else None
        bases = {subnet.version: subnet.network_address.packed for subnet in reversed(wanted.subnets)}
        subnets = tuple((subnet.network_address.packed, subnet.prefixlen) for subnet in wanted.subnets)
        self.admission = Admission(self.table, Own(subnets, bases.get(4), bases.get(6)), vxlan)
        if vxlan != self._vxlan:
            self._vxlan = vxlan
            for peer in self._peers.values():
                self._install(peer)

    def __len__(self) -> int:
        return len(self._peers)

    def keys(self) -> set[str]:
        """Return the keys of all peers."""
        return set(self._peers)

    def put(self, peers: Iterable[messages.Peer]) -> None:
        """Add peers, or change them: their counters stay."""
        for peer in peers:
            before = self._peers.get(peer.key)
            if before != peer:
                self._peers[peer.key] = peer
                self._tallies.setdefault(peer.key, Counters())
                self._install(peer)
                if before is not None and before.address != peer.address:
                    self._forget_source(before.address)

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self.table.remove(key)
            self.admission.forget()
            self._departed.add(self._tallies.pop(key))
            self._forget_source(peer.address)

    def narrow(self, host: str, path_mtu: int, now: float) -> None:
        """Believe that packets of `path_mtu` bytes are the largest on the way to a host of the underlay."""
        address = self.sources.get(host, b"")
        headers = (20 if len(address) == 4 else 40) + 8 + self.admission.offset
        mtu = max(LEAST_MTU, path_mtu - headers)
        if address and mtu < min(self.mtu, self._paths.get(address, (self.mtu, now))[0]):
            self._paths[address] = (mtu, now + PATH_SECONDS)
            self._reinstall(address)

    def widen(self, now: float) -> None:
        """Believe no longer what was learned of paths too long ago."""
        for address in [address for address, (_, until) in self._paths.items() if until <= now]:
            del self._paths[address]
            self._reinstall(address)

    def total(self) -> Counters:
        """Return what all peers together sent and received."""
        total = Counters()
        total.add(self._departed)
        for tally in self._tallies.values():
            total.add(tally)
        return total

    def traffic(self, first: int, most: int) -> messages.Traffic:
        """Return the counters of up to `most` peers from a position on."""
        rows = tuple(
            messages.PeerTraffic(key, tally.sent, tally.sent_bytes, tally.received, tally.received_bytes)
            for key, tally in islice(self._tallies.items(), first, first + most)
        )
        following = first + len(rows)
        return messages.Traffic(following if following < len(self._tallies) else 0, rows)

    def _reinstall(self, address: bytes) -> None:
        for peer in self._peers.values():
            if peer.address == address:
                self._install(peer)

    def _install(self, peer: messages.Peer) -> None:
        host = str(ip_address(peer.address))
        prefixes = (b"", b"")
        if self._vxlan is not None:
            vni, own_mac = self._vxlan
            prefixes = (vxlan_header(vni, peer.mac, own_mac, 4), vxlan_header(vni, peer.mac, own_mac, 6))
        endpoint = (host, self.wanted.port)
        tally = self._tallies[peer.key]
        to = _socket_address(peer.address, self.wanted.port)
        mtu, _ = self._paths.get(peer.address, (MOST, 0.0))
        hop = Hop(peer.subnet, peer.prefix_length, peer.address, peer.mac, endpoint, to, *prefixes, tally, mtu=mtu)
        self.table.set(peer.key, hop)
        self.admission.forget()
        self.sources[host] = peer.address

    def _forget_source(self, address: bytes) -> None:
        if not self.table.from_address(address):
            self.sources.pop(str(ip_address(address)), None)
            self._paths.pop(address, None)


def _socket_address(address: bytes, port: int) -> bytes:
    layout, family = (_SOCKADDR4, 2) if len(address) == 4 else (_SOCKADDR6, 10)
    return layout.pack(family.to_bytes(2, byteorder), port, address)
