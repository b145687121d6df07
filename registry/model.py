"""The values the registry speaks in: frozen, comparable, without I/O.

A lease as the cluster sees it, top down:

    Lease                     one key under <prefix>/subnets/
      subnets   Subnets       the address space leased; it is also the key
      attrs     LeaseAttrs    where that space lives and how to get packets there
      create_revision, mod_revision, lease_id      etcd's bookkeeping, no part of equality:
                                                   a renewal is not a change

A record under that prefix that is no lease becomes `Rejected`, with the reason: one bad record
is never a reason to doubt the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, Union

NO_IPV4 = IPv4Network("0.0.0.0/31")
"""What stands for the IPv4 subnet of a lease that has none: flannel's keys cannot do without, and no packet goes there.

Not 0.0.0.0/0, which overlaps every subnet there is: flannel's daemon would find none free, and route everything there.
"""

Json = Union[None, bool, int, float, str, "list[Json]", "Mapping[str, Json]"]
"""Parsed JSON. Treated as immutable wherever it is part of a frozen value."""


@dataclass(frozen=True, slots=True)
class Subnets:
    """The address space of one lease: an IPv4 subnet, an IPv6 subnet, or both; `v4` is NO_IPV4 where there is none."""

    v4: IPv4Network
    v6: IPv6Network | None = None

    @property
    def families(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The subnets that are really leased, one for each family."""
        v4 = () if self.v4 == NO_IPV4 else (self.v4,)
        return v4 if self.v6 is None else (*v4, self.v6)

    def overlaps(self, other: Subnets) -> bool:
        """Tell whether the two share an address, in either family."""
        if self.v4.overlaps(other.v4) and self.v4 != NO_IPV4:
            return True
        return self.v6 is not None and other.v6 is not None and self.v6.overlaps(other.v6)

    def __str__(self) -> str:
        return " and ".join(map(str, self.families))


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """What a host publishes with its lease (flannel: `LeaseAttrs`).

    A lease without IPv4 has a `stand_in` as its `public_ip`: what flannel's daemons tell hosts apart by.
    `backend_data` and `backend_v6_data` are opaque here; each backend parses its own. `extra` holds
    fields that flannel does not know, so that a record is written back as rich as it was read.
    """

    public_ip: IPv4Address
    public_ip6: IPv6Address | None = None
    backend_type: str = ""
    backend_data: Json = None
    backend_v6_data: Json = None
    extra: Mapping[str, Json] = field(default_factory=dict)


def stand_in(public_ip6: IPv6Address) -> IPv4Address:
    """Return what an IPv6-only host publishes as its PublicIP: a reserved address (RFC 1112), one for each host.

    Were it 0.0.0.0, as with flannel, a flannel daemon without IPv4 would find its own there and take the lease over.
    """
    return IPv4Address(0xF0000000 | int.from_bytes(sha256(public_ip6.packed).digest()[:4]))


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease. `lease_id` 0 is a reservation: a key that never expires."""

    subnets: Subnets
    attrs: LeaseAttrs
    create_revision: int = field(default=0, compare=False)
    mod_revision: int = field(default=0, compare=False)
    lease_id: int = field(default=0, compare=False)

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """Where the host is: its PublicIP, or without IPv4 its PublicIPv6."""
        return (self.subnets.v4 == NO_IPV4 and self.attrs.public_ip6) or self.attrs.public_ip


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that could not be read as a lease, and why; `subnets` where at least its key could be read."""

    reason: str
    mod_revision: int = field(default=0, compare=False)
    subnets: Subnets | None = field(default=None, compare=False)
    create_revision: int = field(default=0, compare=False)
    lease_id: int = field(default=0, compare=False)


Record = Lease | Rejected


class Stamp(NamedTuple):
    """What etcd says of a key besides its value. Equal ones with a lease mean an equal value, in one history."""

    create_revision: int
    mod_revision: int
    lease_id: int


def stamp_of(record: Record) -> Stamp:
    """Return what etcd said of a key when the record was read."""
    return Stamp(record.create_revision, record.mod_revision, record.lease_id)


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a listing. All pages of one listing have the same `revision`.

    `records` maps the full etcd key to what was found there.
    """

    records: Mapping[str, Record]
    revision: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Changes since the listing, in order: key -> record, or None where the key was deleted.

    An empty delta means that nothing changed; it never means that nothing is there.
    (flannel's worst fault was to let the two be the same value.)
    """

    changes: tuple[tuple[str, Record | None], ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease: kept under <prefix>/ext/hosts/<identity>, because a lease names no host.

    `identity` is stable over restarts, reboots and address changes; `boot_id` tells one boot of a
    machine from the next and from a clone. `public_ip` is IPv6 where the lease has no IPv4.
    `made` is when the lease was, in seconds since that boot (0: unknown). `mod_revision` is that of the
    lease as well, as long as nobody else has written to it.
    """

    identity: str
    subnets: Subnets
    public_ip: IPv4Address | IPv6Address
    hostname: str = ""
    boot_id: str = ""
    made: int = field(default=0, compare=False)
    mod_revision: int = field(default=0, compare=False)
