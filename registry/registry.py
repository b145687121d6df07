"""The registry: network config, leases and owners, in flannel's format on any Store.

On etcd, under the prefix (`/coreos.com/network` unless told otherwise):

    config                  the network config, written by the operator
    subnets/<subnet>        leases, and nothing else ever: one other key there makes flannel drop all its peers
    ext/hosts/<identity>    who holds a lease: ours alone, written in the same transaction and with the same TTL
    ext/subnets/<subnet>    for each family the lease that took the subnet: two different lease keys can share a subnet
    ext/addresses/<address> the lease of the host that is known by it: two hosts may advertise one
    ext/alive/<identity>    that the holder of a reservation lives: with a TTL, which the reservation itself has not

Nothing here waits, retries or decides; the store's errors pass through.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from dataclasses import replace

from flanneld_py.registry import codec
from flanneld_py.registry.claims import Claims
from flanneld_py.registry.config import NetworkConfig, parse_config
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Delta, Lease, LeaseAttrs, Owner, Page, Record, Stamp, Subnets
from flanneld_py.registry.store import (
    Delete,
    Deleted,
    Expect,
    KeyValue,
    LeaseGone,
    Put,
    RegistryError,
    Store,
)

_INDEX_PAGE = 2000
"""Keys at once without values: 130 kB."""


class ConfigMissing(RegistryError):
    """There is no network config yet; the text says at which key and how to write one."""


class Registry:
    """Flannel's registry for one prefix; `ttl` in seconds is how long our leases last without a renewal."""

    def __init__(self, store: Store, prefix: str, ttl: int = TTL) -> None:
        self.ttl = ttl
        self._store = store
        self._prefix = prefix
        self._granted = 0
        """The etcd lease that was made for a write that failed, or whose answer was lost."""
        self.subnets_prefix = codec.subnets_prefix(prefix)
        self._claims = Claims(store, prefix)

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

    async def index(self, since: int = 0) -> AsyncGenerator[tuple[dict[str, Stamp], int], None]:
        """List what was written after `since` without values, with the registry's revision. Raises HistoryLost."""
        parts = self._store.pages(self.subnets_prefix, _INDEX_PAGE, since, keys_only=True)
        async with aclosing(parts):
            async for part in parts:
                stamps = {kv.key: Stamp(kv.create_revision, kv.mod_revision, kv.lease_id) for kv in part.entries}
                yield stamps, part.revision

    async def count(self, revision: int = 0) -> tuple[int, int]:
        """Count the keys of leases, as of `revision`; return also the registry's revision now. Raises HistoryLost."""
        return await self._store.count(self.subnets_prefix, revision)

    async def record(self, key: str, revision: int = 0) -> Record | None:
        """Read what is at the key of a lease, or was at `revision`. Raises HistoryLost."""
        entry = await self._store.get(key, revision)
        return codec.decode_record(self._prefix, entry) if entry is not None else None

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
        self,
        subnets: Subnets,
        attrs: LeaseAttrs,
        owner: Owner,
        replaces: Lease | None = None,
        over: int = 0,
        dead: Collection[Lease] = (),
    ) -> Lease:
        """Take a lease for `ttl` seconds, if nobody has that key, in place of another lease of ours if given.

        `over` is the revision of something unreadable at our own key, to be written over; `dead` are leases with our
        address that count for nothing. In place of a reservation there will be one again. Raises Conflict if somebody
        was first in either family or `replaces` has changed, AddressTaken if another lease has our address.
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
            expect += await self._claims.of_subnet(subnet, ours)
        expect += await self._claims.of_address(Lease(subnets, attrs).address, ours, dead)
        lease_id = 0 if replaces is not None and replaces.lease_id == 0 else await self._grant()
        operations += await self._puts(subnets, attrs, owner, lease_id)
        revision = await self._commit(expect, operations)
        return Lease(subnets, attrs, revision, revision, lease_id)

    async def update(
        self, lease: Lease, attrs: LeaseAttrs, owner: Owner, dead: Collection[Lease] | None = None
    ) -> Lease:
        """Write new attributes to a lease of ours, if nobody changed it since it was read.

        It becomes ours by that if `dead` are given: leases with our address that count for nothing. Its etcd lease
        stays if it still lives, else it gets a new one; a reservation stays a reservation. Raises Conflict,
        AddressTaken if another lease has the address that it gets.
        """
        key = self.key(lease.subnets)
        expect = [Expect(key, lease.mod_revision)]
        address = Lease(lease.subnets, attrs).address
        if dead is not None or address != lease.address:
            expect += await self._claims.of_address(address, [key], dead or ())
        lease_id = await self._living(lease.lease_id)
        operations = await self._puts(lease.subnets, attrs, owner, lease_id)
        revision = await self._commit(expect, operations)
        return Lease(lease.subnets, attrs, lease.create_revision, revision, lease_id)

    async def overwrite(self, lease: Lease, over: Record, owner: Owner, dead: Collection[Lease] | None = None) -> Lease:
        """Write our own lease again where somebody wrote something else; see `update`. Raises Conflict."""
        known = over if isinstance(over, Lease) else lease
        seen = Lease(lease.subnets, lease.attrs, known.create_revision, over.mod_revision, known.lease_id)
        return await self.update(seen, lease.attrs, owner, dead)

    async def release(self, lease: Lease, identity: str) -> None:
        """Give a lease of ours back, with all that is beside it. Raises Conflict if somebody wrote to it."""
        key = self.key(lease.subnets)
        owner = codec.owner_key(self._prefix, identity)
        await self._store.commit([Expect(key, lease.mod_revision)], [Delete(key), Delete(owner)])
        with suppress(RegistryError):  # Its claims count for nothing without it, and end with it.
            await self._store.revoke(lease.lease_id)

    async def lease(self, subnets: Subnets) -> Lease | None:
        """Read the lease of these subnets; None if there is none, or an unreadable one."""
        entry = await self._store.get(self.key(subnets))
        record = codec.decode_record(self._prefix, entry) if entry is not None else None
        return record if isinstance(record, Lease) else None

    async def owner(self, identity: str) -> Owner | None:
        """Read who a host said it is; None if unknown or unreadable."""
        entry = await self._store.get(codec.owner_key(self._prefix, identity))
        return _owner(identity, entry) if entry is not None else None

    async def owner_of(self, subnets: Subnets) -> Owner | None:
        """Find the host that holds a lease, by reading all owners; for the rare case that it may not be us.

        Of several that say so the last one does: the record of a host whose lease another one took over may still be
        there.
        """
        prefix = codec.owners_prefix(self._prefix)
        found: Owner | None = None
        async with aclosing(self._store.pages(prefix)) as listings:
            async for listing in listings:
                for entry in listing.entries:
                    owner = _owner(entry.key.removeprefix(prefix), entry)
                    if owner is not None and owner.subnets == subnets:
                        found = max(found or owner, owner, key=lambda each: each.mod_revision)
        return found

    async def keepalive(self, lease: Lease, owner: Owner) -> None:
        """Give a lease its full TTL again, without an event to anybody. Raises LeaseGone.

        A reservation has none: what is renewed then is the sign that its holder lives.
        """
        if lease.lease_id:
            await self._store.keepalive(lease.lease_id)
            return
        try:
            await self._store.keepalive(await self._alive(owner))
        except LeaseGone:
            await self._commit([], await self._sign_of_life(owner))

    async def time_to_live(self, lease: Lease, holder: Owner) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease, or of its holder's sign of life. Raises LeaseGone."""
        return await self._store.time_to_live(lease.lease_id or await self._alive(holder))

    async def lasts(self, lease: Lease) -> bool:
        """Tell whether a lease of ours lasts as long as it is to: another TTL was asked for before a restart."""
        try:
            return lease.lease_id == 0 or (await self._store.time_to_live(lease.lease_id))[1] == self.ttl
        except LeaseGone:
            return False

    async def reconnect(self) -> None:
        """Go on over new connections: the host has another address."""
        await self._store.reconnect()

    async def close(self) -> None:
        """Let go of the store's connections."""
        await self._store.close()

    async def _puts(self, subnets: Subnets, attrs: LeaseAttrs, owner: Owner, lease_id: int) -> list[Put | Delete]:
        """Return what there is of a lease: itself, whose it is, and its claims."""
        key = self.key(subnets)
        return [
            Put(key, codec.encode_attrs(attrs), lease_id),
            Put(codec.owner_key(self._prefix, owner.identity), codec.encode_owner(owner), lease_id),
            *self._claims.puts(key, Lease(subnets, attrs, lease_id=lease_id)),
            *(await self._sign_of_life(owner) if not lease_id else ()),
        ]

    async def _sign_of_life(self, owner: Owner) -> list[Put | Delete]:
        """Return what has to be written so that the holder of a reservation is seen to live."""
        try:
            alive = await self._living(await self._alive(owner))
        except LeaseGone:
            alive = await self._grant()
        return [Put(codec.alive_key(self._prefix, owner.identity), b"", alive)]

    async def _alive(self, holder: Owner) -> int:
        """Return the etcd lease that a reservation's holder renews. Raises LeaseGone if there is none."""
        entry = await self._store.get(codec.alive_key(self._prefix, holder.identity))
        if entry is None or not entry.lease_id:
            raise LeaseGone(f"host {holder.hostname!r} gives no sign of life")
        return entry.lease_id

    async def _living(self, lease_id: int) -> int:
        """Return the etcd lease if it lives with our TTL, or is none; else a new one."""
        if lease_id == 0:
            return 0
        try:
            _, granted = await self._store.time_to_live(lease_id)
        except LeaseGone:
            granted = 0
        return lease_id if granted == self.ttl else await self._grant()

    async def _grant(self) -> int:
        """Return an etcd lease to write with: what an attempt before was given, if that failed, else a new one.

        Otherwise an etcd that answers too late would be given one more at every attempt, to keep for a day. If the
        answer alone was lost it is in use already; then by us, for this.
        """
        self._granted = self._granted or await self._store.grant(self.ttl)
        return self._granted

    async def _commit(self, expect: list[Expect], operations: list[Put | Delete]) -> int:
        """Write, and be done with the etcd lease that was made for it. Raises what Store.commit does."""
        try:
            revision = await self._store.commit(expect, operations)
        except LeaseGone:
            self._granted = 0
            raise
        self._granted = 0
        return revision


def _owner(identity: str, entry: KeyValue) -> Owner | None:
    try:
        return replace(codec.decode_owner(identity, entry.value), mod_revision=entry.mod_revision)
    except ValueError:
        return None
