"""A follower, and a registry that is restored, compacted, cut off and loses events: the view ends with the truth."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flanneld_py.agent.lease.sync import LeaseSyncer
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.model import LeaseAttrs, Record
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Batch, Delete, HistoryLost, Put
from flanneld_py.registry.view import LeaseView
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore

PREFIX = "/coreos.com/network"
RESUMED = 60.0
"""Seconds within which a watch that was resumed has the truth."""

UNBROKEN = 600.0
"""Seconds within which it is found out that a watch that stands does not tell all."""


class Lossy(MemoryStore):
    """A store whose watch does not tell everything on demand, and that counts what it is asked."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.loses = False
        self.forgets = False
        self.asked = 0

    async def _admit(self) -> None:
        self.asked += 1
        await super()._admit()

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        async for batch in super().watch(prefix, start_revision):
            if self.forgets:
                raise HistoryLost("forgotten")
            if not (self.loses and batch.events):
                yield batch


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Lossy(self.clock.now)
        self.view = LeaseView()
        self.follower = LeaseSyncer(Registry(self.store, PREFIX), self.view, self.clock, Random(1), lambda: None)

    @staticmethod
    def key(number: int) -> str:
        return f"{PREFIX}/subnets/10.5.{number}.0-24"

    async def put(self, number: int, host: int = 0, *, reserved: bool = False) -> None:
        """Write a lease, as a host does that takes it: with an etcd lease of its own."""
        value = encode_attrs(LeaseAttrs(IPv4Address(f"192.0.2.{host or number}")))
        lease_id = 0 if reserved else await self.store.grant(86400)
        await self.store.commit([], [Put(self.key(number), value, lease_id)])

    async def delete(self, *numbers: int) -> None:
        await self.store.commit([], [Delete(self.key(number)) for number in numbers])

    async def elsewhere(self, times: int = 1) -> None:
        """Let the store get on without anything that the follower looks at."""
        for _ in range(times):
            await self.store.commit([], [Put(f"{PREFIX}/config", b"")])

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        await self.follower.list()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.follower.run())
            await self.clock.run_until(lambda: self.follower.connected)
            yield
            running.cancel()

    async def listed(self) -> dict[str, tuple[int, bytes]]:
        pages = [page async for page in self.store.pages(f"{PREFIX}/subnets/")]
        return {entry.key: (entry.mod_revision, entry.value) for page in pages for entry in page.entries}

    @property
    def known(self) -> dict[str, tuple[int, bytes]]:
        return {key: (lease.mod_revision, encode_attrs(lease.attrs)) for key, lease in self.view.leases().items()}


@pytest.fixture
def world() -> World:
    return World()


async def test_a_restored_store_that_has_caught_up_is_noticed(world: World) -> None:
    await world.put(10)
    async with world.following():
        restore = world.store.snapshot()
        for number in (11, 12, 13, 14):
            await world.put(number)
        await world.clock.run_for(1)
        restore()
        await world.put(20)  # One that joins,
        await world.delete(10)  # one that leaves,
        for number in (11, 12):  # and two of those that the backup lacked.
            await world.put(number)
        await world.elsewhere(2)
        assert world.store.revision > world.view.revision
        await world.clock.run_for(RESUMED)
        assert world.known == await world.listed()
        assert world.view.doubts == 1, "what is missing may be lost"
        await world.put(30)
        await world.clock.run_for(1)
        assert world.known == await world.listed()


async def test_only_what_is_lost_with_a_restore_is_held(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A deletion at exactly the revision at which etcd is compacted is told by no watch (etcd-io/etcd#18089)."""
    caplog.set_level(logging.INFO)
    await world.put(2)
    await world.put(3)
    async with world.following():
        world.store.cut_watches()
        await world.delete(3)
        world.store.compact(world.store.revision)
        await world.clock.run_for(RESUMED)
        assert set(world.known) == {world.key(2)}
        assert world.view.doubts == 0, "it was deleted, not lost"
    assert "the watch had not told all that is in the registry, it is read again" in caplog.messages


async def test_of_leases_that_are_gone_those_the_registry_had_were_deleted(world: World) -> None:
    for number in (2, 3, 4):
        await world.put(number)
    async with world.following():
        world.store.cut_watches()
        world.store.loses = True
        await world.delete(3)
        await world.clock.run_for(RESUMED)
        assert set(world.known) == {world.key(2), world.key(4)}
        assert world.view.doubts == 0


@pytest.mark.parametrize("what", ["put", "changed", "deleted", "replaced by another"])
async def test_a_watch_that_does_not_tell_is_found_out(world: World, what: str) -> None:
    for number in (2, 3):
        await world.put(number)
    async with world.following():
        await world.clock.run_for(3600)
        world.store.loses = True
        if what in ("put", "replaced by another"):
            await world.put(4)
        if what in ("deleted", "replaced by another"):
            await world.delete(3)
        if what == "changed":
            await world.put(3, 77)
        await world.clock.run_for(UNBROKEN)
        assert world.known == await world.listed()
        assert world.view.doubts == 0
        world.store.loses = False
        await world.put(5)
        await world.clock.run_for(1)
        assert world.known == await world.listed(), "the watch was taken up again"


async def test_a_store_that_goes_back_behind_a_standing_watch_is_found_out(world: World) -> None:
    """As behind a proxy, whose own watch lives on."""
    await world.put(2)
    async with world.following():
        restore = world.store.snapshot()
        await world.put(3)
        await world.clock.run_for(1)
        with_the_watch = world.store._generation
        restore()
        world.store._generation = with_the_watch
        await world.clock.run_for(UNBROKEN)
        assert world.known == await world.listed()
        assert world.view.doubts == 1
        await world.put(4)
        await world.clock.run_for(1)
        assert world.known == await world.listed()


async def test_an_outage_hours_ago_does_not_hold_up_the_next_resumption(world: World) -> None:
    await world.put(2)
    async with world.following():
        world.store.fail(100_000)
        world.store.cut_watches()
        await world.clock.run_for(60)
        world.store.recover()
        await world.clock.run_for(7200)
        assert world.follower.connected
        world.store.cut_watches()
        await world.clock.run_until(lambda: not world.follower.connected, 1)
        await world.clock.run_until(lambda: world.follower.connected, 0.2)


async def test_history_that_is_lost_again_after_each_listing_is_not_listed_without_pause(world: World) -> None:
    for number in range(100):
        await world.put(number)
    async with world.following():
        world.store.fail(100_000)
        world.store.cut_watches()
        await world.clock.run_for(60)
        world.store.recover()
        world.store.forgets = True
        asked = world.store.asked
        await world.clock.run_for(60)
        assert 0 < world.store.asked - asked <= 60


async def test_a_watch_resumed_in_an_unchanged_registry_costs_hardly_anything(world: World) -> None:
    for number in range(200):
        await world.put(number)
    async with world.following():
        await world.put(201)
        await world.clock.run_for(1)
        asked = world.store.asked
        world.store.cut_watches()
        await world.clock.run_for(RESUMED)
        assert world.follower.connected
        assert world.store.asked - asked == 3, "a watch, the last change, the number of leases"


async def test_ten_thousand_hosts_that_reconnect_at_once_are_no_herd(caplog: pytest.LogCaptureFixture) -> None:
    """One in ten of them are simulated; each knows of ten thousand leases, whose number is all that they look at."""
    caplog.set_level(logging.CRITICAL)
    hosts, share, leases = 1000, 10, 10_000
    world = World()
    for number in range(2):
        await world.put(number)
    views = [Crowded(leases) for _ in range(hosts)]
    registry = Registry(world.store, PREFIX)
    followers = [
        LeaseSyncer(registry, view, world.clock, Random(number), lambda: None) for number, view in enumerate(views)
    ]

    async def number_of_keys(prefix: str, revision: int = 0) -> tuple[int, int]:
        await world.store._admit()
        return leases, world.store.revision

    world.store.count = number_of_keys  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        for follower in followers:
            await follower.list()
        running = [tasks.create_task(follower.run()) for follower in followers]
        await world.clock.run_until(lambda: all(follower.connected for follower in followers))
        await world.put(9)
        await world.clock.run_for(1)
        world.store.cut_watches()
        asked = [world.store.asked]
        for _ in range(60):
            await world.clock.run_for(1)
            asked.append(world.store.asked)
        for task in running:
            task.cancel()
    by_second = [share * (after - before) for before, after in pairwise(asked)]
    opened, *glances = by_second
    assert opened <= hosts * share * 1.5, "each takes its watch up again"
    assert sum(glances) <= hosts * share * 2.5, "and glances twice at the registry,"
    assert max(glances) <= hosts * share / 5, "one after the other"
    assert all(follower.connected for follower in followers)


class Crowded(LeaseView):
    """A view as large as it says it is."""

    def __init__(self, leases: int) -> None:
        super().__init__()
        self.records = Records(leases)


class Records(dict[str, Record]):
    def __init__(self, leases: int) -> None:
        super().__init__()
        self._leases = leases

    def __len__(self) -> int:
        return self._leases


NUMBERS = st.integers(1, 4)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "put",
                "put",
                "reserve",
                "delete",
                "delete two",
                "elsewhere",
                "backup",
                "restore",
                "compact",
                "cut",
                "away",
            ]
        ),
        NUMBERS,
        st.sampled_from([0.0, 0.0, 0.3, 70.0]),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=150)
@given(STEPS)
@example([("put", 1, 0.3), ("backup", 1, 0), ("put", 2, 0.3), ("restore", 1, 0), ("put", 3, 0)])
@example([("put", 1, 0.3), ("put", 2, 0.3), ("cut", 1, 0), ("delete", 2, 0), ("compact", 1, 0)])
@example([("put", 1, 0.3), ("restore", 1, 0), ("elsewhere", 4, 0.3)])
@example([*[("put", 1, 0.0)] * 7, ("restore", 1, 0.0), *[("put", 1, 0.0)] * 7, ("put", 2, 0.3)])
@example([("reserve", 1, 0.3), ("backup", 1, 0), ("reserve", 1, 0.3), ("restore", 1, 0), ("reserve", 1, 0)])
@example([("restore", 1, 0.0), ("reserve", 2, 0.3), ("restore", 1, 0.0), ("put", 1, 0.0)])
def test_whatever_happens_to_the_store_the_view_is_right_a_minute_after_the_watch_was_resumed(
    history: list[tuple[str, int, float]],
) -> None:
    """Restored and compacted at any revision, in any order."""

    async def story() -> None:
        world = World()
        await world.put(9)
        restore = world.store.snapshot()
        written = 0
        lost: dict[str, int] = {}
        async with world.following():
            for what, number, pause in history:
                match what:
                    case "put" | "reserve":
                        written += 1
                        await world.put(number, 100 + written, reserved=what == "reserve")
                        lost.pop(world.key(number), None)
                    case "delete":
                        await world.delete(number)
                    case "delete two":
                        await world.delete(number, number + 1)
                    case "elsewhere":
                        await world.elsewhere(number)
                    case "backup":
                        restore = world.store.snapshot()
                    case "restore":
                        restore()
                        left = await world.listed()
                        lost |= {key: world.view.doubts for key in world.known if key not in left}
                    case "compact":
                        lost.clear()  # A past that nobody can tell any more is taken for ours.
                        world.store.compact(world.store.revision - min(number - 1, world.store.revision - 1))
                    case "cut":
                        world.store.cut_watches()
                    case "away":
                        world.store.fail(number)
                        await world.clock.run_for(0.2)
                        world.store.recover()
                await world.clock.run_for(pause)
            world.store.cut_watches()
            await world.clock.run_for(RESUMED)
            assert world.known == await world.listed()
            assert all(world.view.doubts > before for before in lost.values()), "they may be lost, not gone"

    asyncio.run(story())
