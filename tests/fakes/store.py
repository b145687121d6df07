"""MemoryStore: etcd's semantics in memory, with faults on demand. For tests, and for trying things without etcd.

It passes the contract suite that the real stores pass. Not here: authentication, several endpoints, persistence.

    commit, revoke, expiry --> one revision each --> History (history.py), cut off by compact()
    watch                  --> reads it from its own position, woken by every change

Time is what `now()` says. Leases are looked at on every call; `tick()` looks at them without a call, and lets calls
and watches notice that they have waited too long on a frozen store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

from flanneld_py.registry.store import (
    Batch,
    Conflict,
    Delete,
    Denied,
    Expect,
    HistoryLost,
    KeyValue,
    LeaseGone,
    Listing,
    Put,
    RegistryError,
    StoreReplaced,
    Unavailable,
)
from tests.fakes.history import History

# etcd's --max-txn-ops.
_MOST_OPERATIONS = 128
_FIRST_LEASE_ID = 0x1000


@dataclass(frozen=True, slots=True)
class _EtcdLease:
    ttl: int
    expires: float


class MemoryStore:
    """The store in memory. See `registry.store.Store`.

    `now` returns seconds on any monotonic scale. `timeout` (seconds by `now`) is how long a call waits on a frozen
    store before it raises Unavailable; a watch waits twice as long.
    """

    def __init__(self, now: Callable[[], float], *, timeout: float = 5.0) -> None:
        self._now = now
        self._timeout = timeout
        self._history = History()
        self._leases: dict[int, _EtcdLease] = {}
        self._next_lease_id = _FIRST_LEASE_ID
        self._nothing_expires_before = 0.0
        self._faults: list[RegistryError] = []
        self._frozen_at: float | None = None
        self._stranded = False
        self._generation = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def revision(self) -> int:
        """The store's revision now."""
        return self._history.revision

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """Read one key, linearizable; see Store. Raises HistoryLost."""
        await self._admit()
        if revision:
            self._require_readable(revision)
        return (self._history.at(revision) if revision else self._history.keys).get(key)

    async def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        """List the keys that start with `prefix`; see Store. Raises HistoryLost."""
        await self._admit()
        revision, keys = self._history.revision, self._history.keys.values()
        written = (kv for kv in keys if kv.key.startswith(prefix) and kv.mod_revision > since)
        found = sorted((kv._replace(value=b"") if keys_only else kv for kv in written), key=_etcd_order)
        yield Listing(tuple(found[:page_size]), revision)
        for first in range(page_size, len(found), page_size):
            await self._admit()
            self._require_readable(revision)
            yield Listing(tuple(found[first : first + page_size]), revision)

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        """Count the keys that start with `prefix`; see Store. Raises HistoryLost."""
        await self._admit()
        if revision:
            self._require_readable(revision)
        keys = self._history.at(revision) if revision else self._history.keys
        return sum(key.startswith(prefix) for key in keys), self.revision

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        """Do all operations if every expectation holds, else none. Raises Conflict, LeaseGone, Denied."""
        await self._admit()
        keys = [operation.key for operation in operations]
        if len(set(keys)) < len(keys):
            raise Denied("a transaction must not change the same key twice")
        if len(keys) > _MOST_OPERATIONS:
            raise Denied(f"a transaction has at most {_MOST_OPERATIONS} operations, this one has {len(keys)}")
        for want in expect:
            have = self._history.keys.get(want.key)
            if want.mod_revision != (have.mod_revision if have else 0):
                raise Conflict(f"{want.key} is not at revision {want.mod_revision}; somebody else was first")
        for operation in operations:
            if isinstance(operation, Put) and operation.lease_id and operation.lease_id not in self._leases:
                raise LeaseGone(f"etcd lease {operation.lease_id:x} does not exist (any more)")
        self._apply(operations)
        return self._history.revision

    async def grant(self, ttl: int) -> int:
        """Create an etcd lease of `ttl` seconds and return its id."""
        await self._admit()
        lease_id = self._next_lease_id
        self._next_lease_id += 1
        lease = _EtcdLease(ttl, self._now() + ttl)
        self._leases[lease_id] = lease
        self._nothing_expires_before = min(self._nothing_expires_before, lease.expires)
        return lease_id

    async def keepalive(self, lease_id: int) -> int:
        """Set the lease back to its full TTL; return that TTL in seconds. Raises LeaseGone."""
        lease = await self._lease(lease_id)
        self._leases[lease_id] = replace(lease, expires=self._now() + lease.ttl)
        return lease.ttl

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease. Raises LeaseGone."""
        lease = await self._lease(lease_id)
        return int(lease.expires - self._now()), lease.ttl

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        await self._admit()
        self._end_lease(lease_id)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        """Stream every change under `prefix` from `start_revision` on. Raises Unavailable, HistoryLost."""
        generation = self._generation
        await self._admit()
        if self.revision < start_revision - 1:
            raise StoreReplaced(
                f"the store is at revision {self.revision} and we know {start_revision - 1}; list again"
            )
        yield Batch((), start_revision - 1)
        position = start_revision
        while True:
            changed = self._changed
            if self._closed or generation != self._generation:
                raise Unavailable(f"the watch on {prefix} was cut")
            if self._frozen_at is not None:
                if self._now() >= self._frozen_at + 2 * self._timeout:
                    raise Unavailable(f"the watch on {prefix} fell silent")
                await changed.wait()
                continue
            if position < self._history.compacted:
                raise HistoryLost(f"the changes before revision {self._history.compacted} are compacted; list again")
            events, position = self._history.since(prefix, position)
            if events:
                yield Batch(events, events[-1].mod_revision)
            elif position > self.revision:
                await changed.wait()

    async def reconnect(self) -> None:
        """End running watches with Unavailable; a stranded store answers again."""
        if self._stranded:
            self._stranded = False
            self.thaw()
        self.cut_watches()

    async def close(self) -> None:
        """End running watches with Unavailable, and every later call."""
        self._closed = True
        self._wake()

    def tick(self) -> None:
        """Let the time that `now` tells take effect: leases expire, and who waited too long is told so."""
        self._expire()
        self._wake()

    def compact(self, revision: int) -> None:
        """Forget the changes before `revision`. Raises ValueError if that is ahead of the store."""
        self._history.compact(revision)

    def fail(self, count: int = 1, error: RegistryError | None = None) -> None:
        """Let the next `count` calls (a page and the start of a watch are calls) raise `error`, or Unavailable."""
        self._faults += [error or Unavailable("the store fails on demand")] * count

    def recover(self) -> None:
        """Be well again: no more failures."""
        self._faults.clear()

    def cut_watches(self) -> None:
        """Let every running watch raise Unavailable; new ones are served."""
        self._generation += 1
        self._wake()

    def replace(self) -> None:
        """Become an empty store at its first revision, as though etcd was set up anew; running watches are cut."""
        self._history, self._leases = History(), {}
        self.cut_watches()

    def snapshot(self) -> Callable[[], None]:
        """Make a backup of all there is; what is returned restores it, as with etcd under the same cluster id."""
        history, leases = self._history.copy(), dict(self._leases)

        def restore() -> None:
            self._history, self._leases = history.copy(), dict(leases)
            self._nothing_expires_before = 0.0
            self.cut_watches()

        return restore

    def wipe_unnoticed(self) -> None:
        """Lose every key and lease, with the revision kept: a wiped store that has caught up again; watches go on."""
        revision = self.revision
        self._history, self._leases = History(), {}
        self._history.revision = revision

    def freeze(self) -> None:
        """Answer nobody until `thaw`. Leases go on expiring."""
        self._frozen_at = self._now()

    def strand(self) -> None:
        """Answer nobody until somebody reconnects: all connections are bound to an address that is gone."""
        self._stranded = True
        self.freeze()

    def thaw(self) -> None:
        """Answer again."""
        self._frozen_at = None
        self._wake()

    async def _admit(self) -> None:
        """Let a call in: time first, then freezing and faults. Raises what the fault says, or Unavailable."""
        asked = self._now()
        self._expire()
        while self._frozen_at is not None and not self._closed:
            if self._now() >= asked + self._timeout:
                raise Unavailable(f"the store did not answer within {self._timeout:.0f} s")
            await self._changed.wait()
        if self._closed:
            raise Unavailable("the store is closed")
        if self._faults:
            raise self._faults.pop(0)

    async def _lease(self, lease_id: int) -> _EtcdLease:
        await self._admit()
        if lease_id not in self._leases:
            raise LeaseGone(f"etcd lease {lease_id:x} does not exist (any more)")
        return self._leases[lease_id]

    def _expire(self) -> None:
        now = self._now()
        if now < self._nothing_expires_before:
            return
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.expires <= now]:
            self._end_lease(lease_id)
        self._nothing_expires_before = min((lease.expires for lease in self._leases.values()), default=now)

    def _end_lease(self, lease_id: int) -> None:
        if self._leases.pop(lease_id, None) is not None:
            self._apply([Delete(kv.key) for kv in self._history.keys.values() if kv.lease_id == lease_id])

    def _apply(self, operations: Sequence[Put | Delete]) -> None:
        if self._history.apply(operations):
            self._wake()

    def _require_readable(self, revision: int) -> None:
        if not self._history.readable(revision):
            raise HistoryLost(f"revision {revision} is not in the store any more; list again")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _etcd_order(kv: KeyValue) -> bytes:
    return kv.key.encode("utf-8", "surrogateescape")
