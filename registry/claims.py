"""Claims: that of two leases which share a subnet or an address one is made, though their keys differ.

    ext/subnets/<subnet>       one for each family: 10.5.1.0-24 and 10.5.1.0-24&fd00:5:0:1::-64 share a subnet
    ext/addresses/<address>    one for the address that the host is known by

Each names the lease it was taken with, is written with it, and counts for nothing when that is gone. Taking one means
expectations of the transaction that writes the lease: claimed a moment ago by somebody else, it fails.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanneld_py.registry import codec
from flanneld_py.registry.model import Lease
from flanneld_py.registry.store import Conflict, Expect, KeyValue, Put, Store


class AddressTaken(Conflict):
    """Another lease has the address that this one would have."""


class Claims:
    """The claims under one prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    async def of_subnet(self, subnet: IPv4Network | IPv6Network, ours: Collection[str]) -> list[Expect]:
        """Return what has to hold for a subnet to be had: no claim on it, or one of a lease that is ours or gone."""
        claim = codec.claim_key(self._prefix, subnet)
        entry = await self._store.get(claim)
        if entry is None:
            return [Expect(claim, 0)]
        holder = self._holder(entry)
        unchanged = Expect(claim, entry.mod_revision)
        return [unchanged] if holder in ours else [unchanged, Expect(holder, 0)]

    async def of_address(
        self, address: IPv4Address | IPv6Address, ours: Collection[str], dead: Collection[Lease]
    ) -> list[Expect]:
        """Return what has to hold for no other host to be known by an address; `dead` leases with it count for nothing.

        Raises AddressTaken.
        """
        claim = codec.address_key(self._prefix, address)
        entry = await self._store.get(claim)
        if entry is None or (holder := self._holder(entry)) in ours:
            return [Expect(claim, entry.mod_revision if entry is not None else 0)]
        unchanged = Expect(claim, entry.mod_revision)
        for lease in dead:
            if codec.lease_key(self._prefix, lease.subnets) == holder:
                return [unchanged, Expect(holder, lease.mod_revision)]  # Still dead: to find out takes a while.
        held = await self._store.get(holder)
        if held is None:
            return [unchanged, Expect(holder, 0)]
        record = codec.decode_record(self._prefix, held)
        if isinstance(record, Lease) and record.address == address:
            raise AddressTaken(f"{record.subnets} has our address {address}")
        return [unchanged, Expect(holder, held.mod_revision)]  # That host has another one by now.

    def puts(self, key: str, lease: Lease) -> list[Put]:
        """Return the claims of a lease, which is at that key."""
        claims = [codec.claim_key(self._prefix, subnet) for subnet in lease.subnets.families]
        claims.append(codec.address_key(self._prefix, lease.address))
        name = key.removeprefix(codec.subnets_prefix(self._prefix)).encode()
        return [Put(claim, name, lease.lease_id) for claim in claims]

    def _holder(self, claim: KeyValue) -> str:
        return codec.subnets_prefix(self._prefix) + claim.value.decode(errors="replace")
