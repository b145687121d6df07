"""The registry: network config, leases and owners, in flannel's format on any Store.

On etcd, under the prefix (`/coreos.com/network` unless told otherwise):

    config                  the network config, written by the operator
    subnets/<subnet>        leases, and nothing else ever: one other key there makes flannel drop all its peers
    ext/hosts/<identity>    who holds a lease: ours alone, written in the same transaction and with the same TTL
    ext/subnets/<subnet>    for each family the lease that took the subnet: two different lease keys can share a subnet

Nothing here waits, retries or decides; the store's errors pass through.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from ipaddress import IPv4Network, IPv6Network

from flanneld_py.registry import codec
from flanneld_py.registry.config import NetworkConfig, parse_config
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Delta, Lease, LeaseAttrs, Owner, Page, Record, Subnets
from flanneld_py.registry.store import (
    Delete,
    Deleted,
    Denied,
    Expect,
    KeyValue,
    LeaseGone,
    Put,
    RegistryError,
    Store,
    Unavailable,
)


class ConfigMissing(RegistryError):
    """There is no network config yet; the text says at which key and how to write one."""


class Registry:
    """Flannel's registry for one prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self.subnets_prefix = codec.subnets_prefix(prefix)

    def key(self, subnets: Subnets) -> str:
        """Return the key at which a lease of these subnets is kept."""
        return codec.lease_key(self._prefix, subnets)

    async def config(self) -> NetworkConfig:
        """Read the network config. Raises ConfigMissing and ConfigInvalid."""
        key = codec.config_key(self._prefix)
        entry = await self._store.get(key)
        if entry is None:
            raise ConfigMissing(
                f"no network config at key {key}; write one, for example: "
                f"""etcdctl put {key} '{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan"}}}}'"""
            )
        return parse_config(entry.value)

    async def pages(self) -> AsyncGenerator[Page, None]:
        """List all leases page by page. Raises HistoryLost if that takes so long that etcd compacts meanwhile."""
        async with aclosing(self._store.pages(self.subnets_prefix)) as listings:
            async for listing in listings:
                records = {entry.key: codec.decode_record(self._prefix, entry) for entry in listing.entries}
                yield Page(records, listing.revision)

    async def written_since(self, revision: int) -> list[Lease]:
        """List the readable leases that were written after `revision` and are there now."""
        leases: list[Lease] = []
        async with aclosing(self._store.pages(self.subnets_prefix, since=revision)) as listings:
            async for listing in listings:
                records = (codec.decode_record(self._prefix, entry) for entry in listing.entries)
                leases += (record for record in records if isinstance(record, Lease))
        return leases

    async def deltas(self, revision: int) -> AsyncGenerator[Delta, None]:
        """Stream all changes after `revision`; the first delta is empty and says that the watch stands."""
        async with aclosing(self._store.watch(self.subnets_prefix, revision + 1)) as batches:
            async for batch in batches:
                yield Delta(tuple(map(self._change, batch.events)), batch.revision)

    def _change(self, event: KeyValue | Deleted) -> tuple[str, Record | None]:
        if isinstance(event, Deleted):
            return event.key, None
        return event.key, codec.decode_record(self._prefix, event)

    async def create(
        self, subnets: Subnets, attrs: LeaseAttrs, owner: Owner, replaces: Lease | None = None, over: int = 0
    ) -> Lease:
        """Take a lease for TTL seconds, if nobody has that key, in place of another lease of ours if given.

        `over` is the revision of something unreadable at our own key, to be written over. In place of a reservation
        there will be one again. Raises Conflict if somebody was first in either family or `replaces` has changed.
        """
        key = self.key(subnets)
        expect = [Expect(key, over)]
        operations: list[Put | Delete] = []
        ours = [key]
        if replaces is not None and replaces.subnets != subnets:
            old = self.key(replaces.subnets)
            expect.append(Expect(old, replaces.mod_revision))
            operations.append(Delete(old))
            ours.append(old)
        for subnet in subnets.families:
            expect += await self._unclaimed(subnet, ours)
        lease_id = 0 if replaces is not None and replaces.lease_id == 0 else await self._store.grant(TTL)
        for subnet in subnets.families:
            claim = codec.claim_key(self._prefix, subnet)
            operations.append(Put(claim, key.removeprefix(self.subnets_prefix).encode(), lease_id))
        try:
            revision = await self._store.commit(expect, [*operations, *self._puts(key, attrs, owner, lease_id)])
        except RegistryError as error:
            if lease_id:
                await self._let_go(lease_id, error)
            raise
        return Lease(subnets, attrs, revision, revision, lease_id)

    async def _unclaimed(self, subnet: IPv4Network | IPv6Network, ours: Collection[str]) -> list[Expect]:
        """Return what has to hold for a subnet to be free: no claim on it, or one with a lease that is ours or gone."""
        claim = codec.claim_key(self._prefix, subnet)
        entry = await self._store.get(claim)
        if entry is None:
            return [Expect(claim, 0)]
        holder = self.subnets_prefix + entry.value.decode(errors="replace")
        unchanged = Expect(claim, entry.mod_revision)
        return [unchanged] if holder in ours else [unchanged, Expect(holder, 0)]

    async def update(self, lease: Lease, attrs: LeaseAttrs, owner: Owner) -> Lease:
        """Write new attributes to a lease of ours, if nobody changed it since it was read.

        Its etcd lease stays if it still lives, else it gets a new one; a reservation stays a reservation.
        Raises Conflict.
        """
        key = self.key(lease.subnets)
        lease_id = await self._living(lease.lease_id)
        expect = [Expect(key, lease.mod_revision)]
        try:
            revision = await self._store.commit(expect, self._puts(key, attrs, owner, lease_id))
        except RegistryError as error:
            if lease_id != lease.lease_id:
                await self._let_go(lease_id, error)
            raise
        return Lease(lease.subnets, attrs, lease.create_revision, revision, lease_id)

    async def overwrite(self, lease: Lease, over: Record, owner: Owner) -> Lease:
        """Write our own lease again where somebody wrote something else, if it is still that. Raises Conflict."""
        known = over if isinstance(over, Lease) else lease
        seen = Lease(lease.subnets, lease.attrs, known.create_revision, over.mod_revision, known.lease_id)
        return await self.update(seen, lease.attrs, owner)

    async def owner(self, identity: str) -> Owner | None:
        """Read who a host said it is; None if unknown or unreadable."""
        entry = await self._store.get(codec.owner_key(self._prefix, identity))
        try:
            return codec.decode_owner(identity, entry.value) if entry is not None else None
        except ValueError:
            return None

    async def owner_of(self, subnets: Subnets) -> Owner | None:
        """Find the host that holds a lease, by reading all owners; for the rare case that it may not be us."""
        prefix = codec.owners_prefix(self._prefix)
        async with aclosing(self._store.pages(prefix)) as listings:
            async for listing in listings:
                for entry in listing.entries:
                    try:
                        owner = codec.decode_owner(entry.key.removeprefix(prefix), entry.value)
                    except ValueError:
                        continue
                    if owner.subnets == subnets:
                        return owner
        return None

    async def keepalive(self, lease: Lease) -> None:
        """Give a lease its full TTL again, without an event to anybody. Raises LeaseGone."""
        await self._store.keepalive(lease.lease_id)

    async def time_to_live(self, lease: Lease) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease. Raises LeaseGone."""
        return await self._store.time_to_live(lease.lease_id)

    async def reconnect(self) -> None:
        """Go on over new connections: the host has another address."""
        await self._store.reconnect()

    async def close(self) -> None:
        """Let go of the store's connections."""
        await self._store.close()

    def _puts(self, key: str, attrs: LeaseAttrs, owner: Owner, lease_id: int) -> list[Put]:
        return [
            Put(key, codec.encode_attrs(attrs), lease_id),
            Put(codec.owner_key(self._prefix, owner.identity), codec.encode_owner(owner), lease_id),
        ]

    async def _living(self, lease_id: int) -> int:
        """Return the etcd lease if it lives with our TTL, or is none; else a new one."""
        if lease_id == 0:
            return 0
        try:
            _, granted = await self._store.time_to_live(lease_id)
        except LeaseGone:
            granted = 0
        return lease_id if granted == TTL else await self._store.grant(TTL)

    async def _let_go(self, lease_id: int, error: RegistryError) -> None:
        """Revoke a lease that was granted in vain. After Unavailable it may be in use, so it is left to expire."""
        if isinstance(error, Unavailable):
            return
        with suppress(Unavailable, Denied):  # It holds no key and expires by itself.
            await self._store.revoke(lease_id)
