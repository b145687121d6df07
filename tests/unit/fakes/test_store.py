from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flanneld_py.registry.store import Batch, Conflict, Denied, HistoryLost, Put, Unavailable
from tests.fakes.store import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock, timeout=5.0)


async def test_the_next_calls_fail_as_told(store: MemoryStore) -> None:
    store.fail(2)
    store.fail(error=Denied("no"))
    for kind in (Unavailable, Unavailable, Denied):
        with pytest.raises(kind):
            await store.get("/a")
    assert await store.get("/a") is None


async def test_a_failed_commit_writes_nothing(store: MemoryStore) -> None:
    store.fail(error=Conflict("no"))
    with pytest.raises(Conflict):
        await store.commit([], [Put("/a", b"")])
    assert await store.get("/a") is None


async def test_cut_watches_end_and_can_be_resumed(store: MemoryStore) -> None:
    stream = store.watch("/", 1)
    await anext(stream)
    store.cut_watches()
    with pytest.raises(Unavailable):
        await anext(stream)
    assert await anext(store.watch("/", 1)) == Batch((), 0)


async def test_a_replaced_store_is_empty_and_has_lost_history(store: MemoryStore) -> None:
    revision = await store.commit([], [Put("/a", b"")])
    stream = store.watch("/", revision + 1)
    await anext(stream)
    store.replace()
    with pytest.raises(Unavailable):
        await anext(stream)
    assert await store.get("/a") is None
    with pytest.raises(HistoryLost):
        await anext(store.watch("/", revision + 1))


async def test_a_frozen_store_times_out_by_its_clock(store: MemoryStore, clock: Clock) -> None:
    stream = store.watch("/", 1)
    await anext(stream)
    store.freeze()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(expect_unavailable(store))
        watch = group.create_task(expect_silence(stream))
        await asyncio.sleep(0)
        clock.now = 5.0
        store.tick()
        await call
        assert not watch.done()
        clock.now = 10.0
        store.tick()


async def test_a_thawed_store_goes_on(store: MemoryStore) -> None:
    store.freeze()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(store.commit([], [Put("/a", b"")]))
        await asyncio.sleep(0)
        assert not call.done()
        store.thaw()
    assert call.result() == store.revision


async def test_a_tick_lets_leases_expire(store: MemoryStore, clock: Clock) -> None:
    lease, longer = await store.grant(10), await store.grant(20)
    revision = await store.commit([], [Put("/a", b"", lease), Put("/b", b"", longer)])
    stream = store.watch("/", revision + 1)
    await anext(stream)
    for clock.now, key in ((10.0, "/a"), (20.0, "/b")):
        store.tick()
        assert [event.key for event in (await anext(stream)).events] == [key]
    assert isinstance((await anext(store.watch("/", 1))), Batch)
    assert await store.time_to_live(await store.grant(7)) == (7, 7)


async def test_a_watch_that_a_compaction_overtakes_has_lost_history(store: MemoryStore) -> None:
    revision = await store.commit([], [Put("/a", b"")])
    stream = store.watch("/", revision + 1)
    await anext(stream)
    for _ in range(3):
        revision = await store.commit([], [Put("/a", b"")])
    store.compact(revision)
    with pytest.raises(HistoryLost):
        await anext(stream)
    with pytest.raises(ValueError, match="the store is at"):
        store.compact(revision + 1)


async def expect_unavailable(store: MemoryStore) -> None:
    with pytest.raises(Unavailable):
        await store.get("/a")


async def expect_silence(stream: AsyncIterator[Batch]) -> None:
    with pytest.raises(Unavailable):
        await anext(stream)
