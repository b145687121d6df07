"""The store under the registry: the part of etcd's v3 API that this project needs, and no more.

This is not a general etcd client. A `Store` holds keys with revisions, commits small transactions,
grants leases and streams changes. Three implementations pass one contract suite
(`tests/contract/test_store.py`):

    registry/etcd/client.py     EtcdStore      grpc.aio on etcd's published API; the default
    registry/etcd/etcd3_client.py    Etcd3Store     the `etcd3` package, driven from a worker thread; optional extra
    memory.py   MemoryStore    for tests: revisions, TTLs, compaction and faults on demand

Rules for every implementation:
- It raises and never sleeps or retries on a timer: only `agent/` waits. Going on to the next endpoint
  at once is not waiting.
- Every call ends within `timeout` seconds (watches excepted), with `Unavailable` if there is no answer.
- `Unavailable` from `commit` leaves open whether the transaction was done: the caller reads again.
- Cancellation is never caught.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class RegistryError(Exception):
    """Anything that went wrong between us and the registry. The text is for the operator."""


class Unavailable(RegistryError):
    """No endpoint answered, or none has a leader. Retry with backoff; nothing is known to have changed."""


class Denied(RegistryError):
    """The registry answered, and refused: authentication, permission or certificate. Needs an operator."""


class Conflict(RegistryError):
    """A transaction's expectation did not hold: somebody else was first. Read again, decide again."""


class LeaseGone(RegistryError):
    """The etcd lease does not exist (any more): expired or revoked, and its keys are gone with it."""


class HistoryLost(RegistryError):
    """The changes since the asked-for revision cannot be had: they were compacted. List again."""


class StoreReplaced(HistoryLost):
    """The store is not the one we knew: restored from a backup, or another cluster.

    Its history ends before our revision, or its cluster id differs. List again, and do not trust what is missing.
    """


class KeyValue(NamedTuple):
    """One key as stored. `lease_id` 0 means: not attached to a lease, never expires.

    A named tuple, as a listing of ten thousand is made at once.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key that was deleted, or expired with its lease."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing; `revision` is the store revision that all pages of it were read at."""

    entries: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that arrived together, in order of their `mod_revision`.

    `revision` is the highest `mod_revision` in it, and in a batch without events the start revision - 1:
    it is always safe to resume from `revision + 1`. The first batch of a watch is empty: the watch stands.
    """

    events: tuple[KeyValue | Deleted, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Expect:
    """A transaction's expectation: the key's mod_revision is exactly this; 0 means: the key is absent."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key, attached to an etcd lease if `lease_id` is not 0."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; deleting an absent key is no error."""

    key: str


class Store(Protocol):
    """See the module's docstring for the rules that hold for all methods."""

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """Read one key, linearizable; with `revision` as it was then.

        Raises HistoryLost if that is compacted, or yet to come.
        """
        ...

    def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        """List every key that starts with `prefix` and was written after revision `since`, all at one revision.

        In key order; with `keys_only` the values are empty, not read. At least one page comes, also when there is
        nothing. Raises HistoryLost if the revision is compacted meanwhile.
        """
        ...

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        """Count the keys that start with `prefix`, linearizable; with `revision` as it was then.

        Returns also the store's own revision. Raises HistoryLost if `revision` is compacted, or yet to come;
        StoreReplaced if this is another cluster than the one listed last.
        """
        ...

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        """Do all operations if every expectation holds, else none; return the new revision.

        Raises Conflict if an expectation does not hold, LeaseGone if a Put names a lease that is none.
        """
        ...

    async def grant(self, ttl: int) -> int:
        """Create an etcd lease of `ttl` seconds and return its id."""
        ...

    async def keepalive(self, lease_id: int) -> int:
        """Set the lease back to its full TTL without an event to anybody; return that TTL in seconds.

        Raises LeaseGone.
        """
        ...

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease. Raises LeaseGone."""
        ...

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        ...

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        """Stream every change of keys that start with `prefix` from `start_revision` on, without gaps.

        One empty batch comes when the watch stands. The stream ends only by an error: Unavailable (resume at
        the last batch's revision + 1), HistoryLost, Denied. Closing the iterator (`aclose`) ends the watch.
        """
        ...

    async def reconnect(self) -> None:
        """Let go of all connections and make new ones when they are needed: the host has another address.

        A connection stays bound to the address that it was made from, and falls silent with it. Running watches, and
        calls that wait for an answer, end with Unavailable.
        """
        ...

    async def close(self) -> None:
        """Let go of all connections; running watches end with Unavailable."""
        ...
