"""Paced: the one place that everything passes which an agent asks its registry.

So nothing that is answered can make it ask without a pause. Whoever asks waits between its own tries (backoff.py).
But a loop of many parts may find each of them answered, and none of them waiting: so all of it together is limited,
whatever is answered, and by whom. What is usual stays far below: a renewal a minute, a start or a listing of ten.

    a request -> a token, or the wait for one -> the store
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from random import Random

from flanneld_py.agent.clock import Clock
from flanneld_py.encap.ratelimit import Bucket
from flanneld_py.registry.store import Batch, Delete, Expect, KeyValue, Listing, Put, Store

RATE = 1.0
"""Requests a second in the long run."""

BURST = 100.0
"""Requests at once: the start of an agent takes some twenty, and may find somebody first."""

PAGES = 20
"""Pages of one listing that count as one request, as ten thousand leases do; an endless one is paced all the same."""


class Paced:
    """A store that is asked at most `BURST` times at once, and `RATE` times a second in the long run."""

    def __init__(self, store: Store, clock: Clock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._bucket = Bucket(RATE, BURST)
        self._hurries = False
        self.asked = 0
        """How many requests there were."""

    def hurry(self) -> None:
        """Keep nobody waiting any more: what comes now are the last few requests."""
        self._hurries = True

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """See Store."""
        await self._admit()
        return await self._store.get(key, revision)

    async def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        """See Store. The first page is a request, and the first of each `PAGES` after it."""
        await self._admit()
        had = 0
        async with aclosing(self._store.pages(prefix, page_size, since, keys_only=keys_only)) as pages:
            async for page in pages:
                yield page
                had += 1
                if had % PAGES == 0 and len(page.entries) == page_size:
                    await self._admit()

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        """See Store."""
        await self._admit()
        return await self._store.count(prefix, revision)

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        """See Store."""
        await self._admit()
        return await self._store.commit(expect, operations)

    async def grant(self, ttl: int) -> int:
        """See Store."""
        await self._admit()
        return await self._store.grant(ttl)

    async def keepalive(self, lease_id: int) -> int:
        """See Store."""
        await self._admit()
        return await self._store.keepalive(lease_id)

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        """See Store."""
        await self._admit()
        return await self._store.time_to_live(lease_id)

    async def revoke(self, lease_id: int) -> None:
        """See Store."""
        await self._admit()
        await self._store.revoke(lease_id)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        """See Store. What the watch tells is no request."""
        await self._admit()
        async with aclosing(self._store.watch(prefix, start_revision)) as batches:
            async for batch in batches:
                yield batch

    async def reconnect(self) -> None:
        """See Store."""
        await self._store.reconnect()

    async def close(self) -> None:
        """See Store."""
        await self._store.close()

    async def _admit(self) -> None:
        """Wait until one more request may be made."""
        while True:
            allowed, self._bucket = self._bucket.take(self._clock.now())
            if allowed or self._hurries:
                self.asked += 1
                return
            await self._clock.sleep(self._rng.uniform(0.5, 1.5) / RATE)
