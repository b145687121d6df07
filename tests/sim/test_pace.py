"""Whatever a registry answers, and to which request: it is not asked without pause, and nothing is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from flanneld_py.agent.lease import release
from flanneld_py.agent.lease.pace import BURST, PAGES, RATE, Paced
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
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore
from tests.lease_host import Host
from tests.sim.cluster import Cluster, on_device

REQUESTS = (
    "get",
    "pages",
    "count",
    "commit",
    "grant",
    "keepalive",
    "time_to_live",
    "revoke",
    "watch",
    "later in a watch",
)
ERRORS = (Unavailable, Denied, Conflict, LeaseGone, HistoryLost, StoreReplaced)


class Contrary(MemoryStore):
    """A store that answers some requests of agents with an error, each time."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.refused: frozenset[str] = frozenset()
        self.error: type[RegistryError] = Unavailable

    def _answer(self, request: str) -> None:
        if request in self.refused:
            raise self.error("contrary")

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        self._answer("get")
        return await super().get(key, revision)

    async def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        self._answer("pages")
        async for page in super().pages(prefix, page_size, since, keys_only=keys_only):
            yield page

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        self._answer("count")
        return await super().count(prefix, revision)

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        if expect:  # The tests' own writes expect nothing.
            self._answer("commit")
        return await super().commit(expect, operations)

    async def grant(self, ttl: int) -> int:
        self._answer("grant")
        return await super().grant(ttl)

    async def keepalive(self, lease_id: int) -> int:
        self._answer("keepalive")
        return await super().keepalive(lease_id)

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        self._answer("time_to_live")
        return await super().time_to_live(lease_id)

    async def revoke(self, lease_id: int) -> None:
        self._answer("revoke")
        await super().revoke(lease_id)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        self._answer("watch")
        async for batch in super().watch(prefix, start_revision):
            yield batch
            self._answer("later in a watch")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("request_", [*REQUESTS, "all"])
@pytest.mark.parametrize("when", ["from the start", "later"])
async def test_nothing_that_is_answered_makes_an_agent_ask_without_pause(
    tmp_path: Path, when: str, request_: str, error: type[RegistryError]
) -> None:
    cluster = Cluster(tmp_path)
    cluster.store = store = Contrary(cluster.clock.now)
    await cluster.configure()
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    refused = frozenset(REQUESTS if request_ == "all" else [request_])
    if when == "from the start":
        store.refused, store.error = refused, error
    async with cluster.agent(1) as agent:
        if when == "later":
            await cluster.settle(agent)
            assert len(on_device(cluster.kernel(1))) == 4
            store.refused, store.error = refused, error
            # What it does about a lost lease, a watch that ends, and an event.
            for lease in agent.view.leases().values():
                if lease.lease_id:
                    store._end_lease(lease.lease_id)
            store.cut_watches()
            await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
        else:
            await cluster.clock.run_for(1)
        asked = [cluster.asked[1].asked]
        for _ in range(10):
            await cluster.clock.run_for(60)
            asked.append(cluster.asked[1].asked)
        by_minute = [after - before for before, after in pairwise(asked)]
        assert max(by_minute) <= BURST + 60 * RATE
        assert sum(by_minute) <= BURST + 600 * RATE
        if when == "later":
            assert len(on_device(cluster.kernel(1))) >= 4
        store.refused = frozenset()
        await cluster.settle(agent, 300)
        assert agent.ready.is_set()


async def test_a_burst_is_let_through_at_once_and_a_loop_is_not() -> None:
    clock = ManualClock()
    store = Paced(MemoryStore(clock.now), clock, Random(1))
    for _ in range(int(BURST)):
        await store.get("/a")
    began = clock.now()

    async def loop() -> None:
        for _ in range(60):
            await store.get("/a")

    async with asyncio.TaskGroup() as tasks:
        looping = tasks.create_task(loop())
        await clock.run_until(looping.done)
    assert 50 / RATE <= clock.now() - began <= 130 / RATE


@pytest.mark.parametrize("leases", [10_000, 100_000])
async def test_the_pages_of_one_listing_do_not_each_wait_their_turn(leases: int) -> None:
    """A start lists all leases and all owners, and again as often as somebody was first."""
    clock = ManualClock()
    memory = MemoryStore(clock.now)
    for first in range(0, leases, 100):
        await memory.commit([], [Put(f"/leases/{number}", b"") for number in range(first, first + 100)])
    store = Paced(memory, clock, Random(1))
    for _ in range(5):
        assert sum([len(page.entries) async for page in store.pages("/leases/")]) == leases
    assert store.asked <= 5 * (1 + leases / 10_000)


async def test_a_listing_that_does_not_end_is_paced() -> None:
    clock = ManualClock()
    page = Listing(tuple(KeyValue(f"/{number}", b"", 1, 1) for number in range(500)), 1)

    class Endless(MemoryStore):
        async def pages(
            self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
        ) -> AsyncGenerator[Listing, None]:
            while True:
                await asyncio.sleep(0)
                yield page

    store, pages = Paced(Endless(clock.now), clock, Random(1)), 0

    async def loop() -> None:
        nonlocal pages
        async for _ in store.pages("/"):
            pages += 1

    async with asyncio.TaskGroup() as tasks:
        looping = tasks.create_task(loop())
        await clock.run_for(60)
        looping.cancel()
    assert pages <= PAGES * (BURST + 61 * RATE)


async def test_a_lease_is_given_back_at_a_shutdown_without_waiting_its_turn() -> None:
    clock = ManualClock()
    memory = MemoryStore(clock.now)
    store = Paced(memory, clock, Random(1))
    host = Host(store, clock, 1)
    await host.acquire()
    while store.asked < BURST:
        await store.get("/a")
    store.hurry()
    await release.at_stop(host.registry, host.lease, "host-1", ("echo", "stopping"))
    assert not memory._leases
