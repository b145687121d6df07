"""From leases to peers: which records we use, and why not the others.

A record is checked alone first (is it a lease of our backend, inside Network, with addresses that can be), then
against the others. Every host reaches the same verdict from the same registry:

    subnets overlap      one as small as SubnetLen says, or smaller, goes before a wider one; then the one created first
    same VTEP            the one written last wins: a host that moved leaves its old lease behind for a day
    overlaps our own     never used

Incremental: a change costs the change and what it conflicts with, whatever the number of peers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flanneld_py.encap.family import Family, IPAddress, Network
from flanneld_py.encap.state import Entry
from flanneld_py.registry.allocate import LONGEST
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, Record, Rejected, Subnets

K = TypeVar("K")


class Unusable(Exception):
    """A lease that this host cannot use; the text says why, for the log."""


@dataclass(frozen=True, slots=True)
class Own:
    """Ourselves: our key in the registry, our subnets, the address we advertise, and (behind NAT another) our own.

    `broadcasts` are addresses on our link that are no host's.
    """

    key: str
    subnets: Subnets
    public_ip: IPAddress
    address: IPAddress
    broadcasts: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class Peer:
    """A lease that is fine by itself: what it needs in the kernel, and the VTEP that only one lease can have."""

    lease: Lease
    vtep: bytes | None
    entries: tuple[Entry, ...]


class PeerBackend(Protocol):
    """The part of a backend that turns leases into peers."""

    family: Family

    def peer(self, lease: Lease) -> Peer:
        """Return what the lease needs in the kernel. Raises Unusable."""
        ...


class Peers:
    """All leases of the others, sorted into used and rejected. See the module's docstring for the rules."""

    def __init__(self, config: NetworkConfig, backend: PeerBackend, own: Own) -> None:
        self._family = backend.family
        self._bits = backend.family.bits
        family_config, own_subnet = self._family.config(config), self._family.subnet(own.subnets)
        assert family_config is not None
        assert own_subnet is not None
        self._network: Network = family_config.network
        self._subnet_len, self._longest = family_config.subnet_len, LONGEST[self._network.version]
        self._backend = backend
        self._own = own
        self._own_subnet = own_subnet
        self._network_span, self._own_span = _span(self._network), _span(own_subnet)
        self._candidates: dict[str, Peer] = {}
        self._by_subnet: dict[tuple[int, int], list[str]] = {}
        self._lengths: Counter[int] = Counter()
        self._by_vtep: dict[bytes, list[str]] = {}
        self.rejected: dict[str, str] = {}
        self.used: set[str] = set()

    def update(self, changes: Iterable[tuple[str, Record | None]]) -> dict[str, tuple[Entry, ...]]:
        """Take in changed records; return, for every key whose verdict may have changed, what it needs now."""
        affected: dict[str, None] = {}
        for key, record in changes:
            affected[key] = None
            self._drop(key, affected)
            if record is None or key == self._own.key:
                self.rejected.pop(key, None)
                continue
            try:
                self._insert(key, self._examine(record), affected)
            except Unusable as error:
                self.rejected[key] = str(error)
        return {key: self._judge(key) for key in affected}

    def peer(self, key: str) -> Peer | None:
        """Return the peer at a key, if it is used."""
        return self._candidates[key] if key in self.used else None

    def _examine(self, record: Record) -> Peer:
        """Check a record by itself. Raises Unusable."""
        if isinstance(record, Rejected):
            raise Unusable(record.reason)
        subnet, public_ip = self._family.subnet(record.subnets), self._family.public(record.attrs)
        if subnet is None or public_ip is None:
            name, lacking = self._family.name, "subnet" if subnet is None else "underlay address"
            raise Unusable(f"it has no {name} {lacking}, so no {name} packets go to its host")
        span = _span(subnet)
        if not (self._network_span[0] <= span[0] and span[1] <= self._network_span[1]):
            raise Unusable(f"subnet {subnet} is outside Network {self._network}")
        if span[0] <= self._own_span[1] and self._own_span[0] <= span[1]:
            raise Unusable(f"subnet {subnet} overlaps our own {self._own_subnet}")
        if public_ip in (self._own.public_ip, self._own.address):
            raise Unusable(
                f"{self._family.field} {public_ip} is our own: "
                "two hosts advertise one address, or the lease is an old one"
            )
        if public_ip in self._own.broadcasts:
            raise Unusable(f"{self._family.field} {public_ip} is the broadcast address of the underlay, and no host's")
        if not is_host_address(public_ip):
            raise Unusable(f"{self._family.field} {public_ip} is no address of a host")
        if self._network_span[0] <= (number := int(public_ip)) <= self._network_span[1]:
            # The underlay may be in Network, beside what is leased (flannel's own example); not in what a route covers.
            for whose, (first, last) in (("its own", span), ("our own", self._own_span)):
                if first <= number <= last:
                    within = subnet if whose == "its own" else self._own_subnet
                    raise Unusable(
                        f"{self._family.field} {public_ip} is inside {whose} subnet {within}: "
                        "the tunnel would lead into itself"
                    )
        return self._backend.peer(record)

    def _subnet(self, peer: Peer) -> Network:
        # A candidate has this family, and this runs several times for each of ten thousand: Family is not asked.
        subnets = peer.lease.subnets
        return subnets.v4 if self._bits == 32 or subnets.v6 is None else subnets.v6

    def _insert(self, key: str, peer: Peer, affected: dict[str, None]) -> None:
        subnet = self._subnet(peer)
        affected.update(dict.fromkeys(self._overlapping(subnet)))
        self._candidates[key] = peer
        self._by_subnet.setdefault(_identity(subnet), []).append(key)
        self._lengths[subnet.prefixlen] += 1
        if peer.vtep is not None:
            rivals = self._by_vtep.setdefault(peer.vtep, [])
            affected.update(dict.fromkeys(rivals))
            rivals.append(key)

    def _drop(self, key: str, affected: dict[str, None]) -> None:
        peer = self._candidates.pop(key, None)
        if peer is None:
            return
        subnet = self._subnet(peer)
        _discard(self._by_subnet, _identity(subnet), key)
        self._lengths[subnet.prefixlen] -= 1
        if not self._lengths[subnet.prefixlen]:
            del self._lengths[subnet.prefixlen]
        affected.update(dict.fromkeys(self._overlapping(subnet)))
        if peer.vtep is not None:
            _discard(self._by_vtep, peer.vtep, key)
            affected.update(dict.fromkeys(self._by_vtep.get(peer.vtep, ())))

    def _judge(self, key: str) -> tuple[Entry, ...]:
        """Decide on one key against all others; record the verdict and return its entries."""
        peer = self._candidates.get(key)
        reason = self._beaten(key, peer) if peer is not None else None
        if peer is None or reason is not None:
            self.used.discard(key)
            if reason is not None:
                self.rejected[key] = reason
            return ()
        self.rejected.pop(key, None)
        self.used.add(key)
        return peer.entries

    def _beaten(self, key: str, peer: Peer) -> str | None:
        """Return why another candidate goes before this one, None if none does."""
        subnet = self._subnet(peer)
        senior = min(self._overlapping(subnet), key=self._seniority)
        if senior != key:
            return f"subnet {subnet} overlaps {self._name(senior)}, which goes first"
        newest = max(self._by_vtep[peer.vtep], key=self._recency) if peer.vtep is not None else key
        if newest != key:
            return f"its VTEP has a newer lease, {self._name(newest)}: the host has moved, or is a clone"
        return None

    def _seniority(self, key: str) -> tuple[bool, int, str]:
        peer = self._candidates[key]
        return (not self._subnet_len <= self._subnet(peer).prefixlen <= self._longest, peer.lease.create_revision, key)

    def _recency(self, key: str) -> tuple[int, str]:
        return (self._candidates[key].lease.mod_revision, key)

    def _name(self, key: str) -> str:
        peer = self._candidates[key]
        return f"{self._subnet(peer)} of {self._family.public(peer.lease.attrs)}"

    def _overlapping(self, subnet: Network) -> list[str]:
        """All candidates whose subnet shares an address with this one."""
        found: list[str] = []
        base, length = _identity(subnet)
        for other in self._lengths:
            if other <= length:
                wider = base >> (self._bits - other) << (self._bits - other)
                found += self._by_subnet.get((wider, other), ())
            elif 1 << (other - length) <= self._lengths[other]:
                step = 1 << (self._bits - other)
                for narrower in range(base, base + (1 << (self._bits - length)), step):
                    found += self._by_subnet.get((narrower, other), ())
            else:
                for (narrower, size), keys in self._by_subnet.items():
                    if size == other and narrower >> (self._bits - length) == base >> (self._bits - length):
                        found += keys
        return found


def is_host_address(address: IPAddress) -> bool:
    """Tell whether an underlay address can be that of another host: unicast, and not this-host or loopback.

    Nor IPv6 link-local, which means something on one link only, or IPv4 in the form of IPv6, which is on no wire.
    """
    number = int(address)
    if address.version == 6:
        return number >> 32 not in (0, 0xFFFF) and number >> 118 != 0xFE80 >> 6 and number >> 120 != 0xFF
    return number >> 24 not in (0, 127) and number >> 28 not in (0xE, 0xF)  # this-host, loopback; multicast, reserved


def _span(subnet: Network) -> tuple[int, int]:
    """Return the first and the last address of a subnet: ten times quicker to compare than the subnets themselves."""
    first = int(subnet.network_address)
    return first, first + (1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1


def _identity(subnet: Network) -> tuple[int, int]:
    return int(subnet.network_address), subnet.prefixlen


def _discard(index: dict[K, list[str]], at: K, key: str) -> None:
    keys = index[at]
    keys.remove(key)
    if not keys:
        del index[at]
