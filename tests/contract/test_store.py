"""What every store does: one suite over memory, etcd and etcd3.

What holds here for all three, other tests may rely on when they use MemoryStore alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from flanneld_py.registry.store import (
    Batch,
    Conflict,
    Delete,
    Deleted,
    Denied,
    Expect,
    HistoryLost,
    KeyValue,
    LeaseGone,
    Listing,
    Put,
    Store,
    Unavailable,
)
from tests.contract.conftest import Subject
from tests.patience import patient

PATIENCE = 10.0


@asynccontextmanager
async def watching(store: Store, prefix: str, start: int) -> AsyncIterator[AsyncGenerator[Batch, None]]:
    """A watch that is closed at the end, and every wait on it has a deadline."""
    stream = store.watch(prefix, start)
    assert isinstance(stream, AsyncGenerator)
    try:
        async with asyncio.timeout(patient(PATIENCE)):
            yield stream
    finally:
        await stream.aclose()


async def take(stream: AsyncIterator[Batch], count: int) -> list[KeyValue | Deleted]:
    """Read batches until `count` events have come."""
    events: list[KeyValue | Deleted] = []
    while len(events) < count:
        batch = await anext(stream)
        events += batch.events
    return events


async def listing(store: Store, prefix: str, page_size: int = 500) -> list[Listing]:
    return [page async for page in store.pages(prefix, page_size)]


def keys(pages: Iterable[Listing]) -> list[str]:
    return [kv.key for page in pages for kv in page.entries]


# Keys


async def test_an_absent_key_is_none(subject: Subject) -> None:
    assert await subject.store.get(subject.prefix + "absent") is None


async def test_a_key_is_read_with_its_revisions(subject: Subject) -> None:
    key = subject.prefix + "a"
    created = await subject.store.commit([], [Put(key, b"one")])
    assert await subject.store.get(key) == KeyValue(key, b"one", created, created, 0)
    changed = await subject.store.commit([], [Put(key, b"\x00\xff")])
    assert changed > created
    assert await subject.store.get(key) == KeyValue(key, b"\x00\xff", created, changed, 0)


async def test_a_key_made_anew_has_a_new_create_revision(subject: Subject) -> None:
    key = subject.prefix + "a"
    await subject.store.commit([], [Put(key, b"one")])
    await subject.store.commit([], [Delete(key)])
    assert await subject.store.get(key) is None
    again = await subject.store.commit([Expect(key, 0)], [Put(key, b"two")])
    assert await subject.store.get(key) == KeyValue(key, b"two", again, again, 0)


async def test_a_key_is_read_as_it_was(subject: Subject) -> None:
    key = subject.prefix + "a"
    one = await subject.store.commit([], [Put(key, b"one")])
    two = await subject.store.commit([], [Put(key, b"two")])
    gone = await subject.store.commit([], [Delete(key)])
    assert await subject.store.get(key, one) == KeyValue(key, b"one", one, one, 0)
    assert await subject.store.get(key, two) == KeyValue(key, b"two", one, two, 0)
    assert await subject.store.get(key, gone) is None
    with pytest.raises(HistoryLost):
        await subject.store.get(key, gone + 1000)
    subject.compact(two)
    assert await subject.store.get(key, two) == KeyValue(key, b"two", one, two, 0)
    with pytest.raises(HistoryLost):
        await subject.store.get(key, one)


# Listings


async def test_an_empty_listing_is_one_page_with_the_revision(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "elsewhere", b"")])
    assert await listing(subject.store, subject.prefix + "empty/") == [Listing((), revision)]


async def test_a_listing_comes_in_pages_in_key_order(subject: Subject) -> None:
    names = [f"{subject.prefix}l/{number:02}" for number in range(25)]
    for name in reversed(names):
        await subject.store.commit([], [Put(name, name.encode())])
    pages = await listing(subject.store, subject.prefix + "l/", 10)
    assert [len(page.entries) for page in pages] == [10, 10, 5]
    assert keys(pages) == names
    assert all(kv.value == kv.key.encode() for page in pages for kv in page.entries)


async def test_a_listing_of_what_was_written_since(subject: Subject) -> None:
    names = [f"{subject.prefix}{number:02}" for number in range(25)]
    revision = await subject.store.commit([], [Put(name, b"old") for name in names])
    for name in reversed(names[3:15]):
        newest = await subject.store.commit([], [Put(name, b"new")])
    gone = await subject.store.commit([], [Delete(names[4])])
    pages = [page async for page in subject.store.pages(subject.prefix, 5, since=revision)]
    assert keys(pages) == [names[3], *names[5:15]]
    assert {page.revision for page in pages} == {gone}
    assert [page async for page in subject.store.pages(subject.prefix, since=newest)] == [Listing((), gone)]


async def test_a_listing_without_values(subject: Subject) -> None:
    names = [f"{subject.prefix}{number:02}" for number in range(12)]
    lease = await subject.store.grant(60)
    first = await subject.store.commit([], [Put(name, b"old", lease) for name in names])
    newest = await subject.store.commit([], [Put(name, b"new") for name in names[:2]])
    pages = [page async for page in subject.store.pages(subject.prefix, 5, keys_only=True)]
    assert [kv for page in pages for kv in page.entries] == [
        *(KeyValue(name, b"", first, newest, 0) for name in names[:2]),
        *(KeyValue(name, b"", first, first, lease) for name in names[2:]),
    ]
    since = [page async for page in subject.store.pages(subject.prefix, since=first, keys_only=True)]
    assert keys(since) == names[:2]


async def test_keys_are_counted_now_and_as_they_were(subject: Subject) -> None:
    names = [f"{subject.prefix}{number}" for number in range(12)]
    revision = await subject.store.commit([], [Put(name, b"") for name in names])
    after = await subject.store.commit([], [Delete(names[3]), Put("/elsewhere" + names[3], b"")])
    assert await subject.store.count(subject.prefix) == (11, after)
    assert await subject.store.count(subject.prefix, revision) == (12, after)
    assert await subject.store.count(subject.prefix + "none/") == (0, after)
    subject.compact(after)
    with pytest.raises(HistoryLost):
        await subject.store.count(subject.prefix, revision)


async def test_a_listing_of_exactly_one_page(subject: Subject) -> None:
    await subject.store.commit([], [Put(f"{subject.prefix}{number}", b"") for number in range(10)])
    assert [len(page.entries) for page in await listing(subject.store, subject.prefix, 10)] == [10]


async def test_a_listing_is_of_one_revision_whatever_is_written_meanwhile(subject: Subject) -> None:
    names = [f"{subject.prefix}{number}" for number in range(6)]
    revision = await subject.store.commit([], [Put(name, b"old") for name in names])
    pages = []
    async for page in subject.store.pages(subject.prefix, 2):
        pages.append(page)
        await subject.store.commit([], [Put(names[5], b"new"), Delete(names[4]), Put(subject.prefix + "9", b"new")])
    assert keys(pages) == names
    assert {page.revision for page in pages} == {revision}
    assert {kv.value for page in pages for kv in page.entries} == {b"old"}


async def test_a_listing_that_is_compacted_away_meanwhile_is_lost(subject: Subject) -> None:
    await subject.store.commit([], [Put(f"{subject.prefix}{number}", b"") for number in range(4)])
    pages = subject.store.pages(subject.prefix, 2)
    await anext(pages)
    revision = await subject.store.commit([], [Put(subject.prefix + "1", b"new")])
    subject.compact(revision)
    with pytest.raises(HistoryLost):
        await anext(pages)


async def test_a_prefix_is_exact(subject: Subject) -> None:
    inside = [f"{subject.prefix}s/", f"{subject.prefix}s/1", f"{subject.prefix}s/é", f"{subject.prefix}s/\U0001f600"]
    outside = [f"{subject.prefix}s", f"{subject.prefix}s.", f"{subject.prefix}s0", f"{subject.prefix}sx/1"]
    await subject.store.commit([], [Put(name, b"") for name in inside + outside])
    assert keys(await listing(subject.store, f"{subject.prefix}s/")) == inside


async def test_a_key_that_is_no_utf8_is_listed_read_and_deleted(subject: Subject) -> None:
    odd = subject.prefix + b"\xff\xfe".decode("utf-8", "surrogateescape")
    await subject.store.commit([], [Put(odd, b"odd"), Put(subject.prefix + "even", b"")])
    assert keys(await listing(subject.store, subject.prefix)) == [subject.prefix + "even", odd]
    await subject.store.commit([], [Delete(odd)])
    assert await subject.store.get(odd) is None


# Transactions


async def test_a_transaction_has_one_revision(subject: Subject) -> None:
    first, second = subject.prefix + "1", subject.prefix + "2"
    revision = await subject.store.commit([], [Put(first, b""), Put(second, b"")])
    assert [kv.mod_revision for page in await listing(subject.store, subject.prefix) for kv in page.entries] == [
        revision,
        revision,
    ]


async def test_a_transaction_that_changes_nothing_makes_no_revision(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    assert await subject.store.commit([], [Delete(subject.prefix + "absent")]) == revision


async def test_expectations_that_hold(subject: Subject) -> None:
    present, absent = subject.prefix + "present", subject.prefix + "absent"
    revision = await subject.store.commit([Expect(present, 0)], [Put(present, b"1")])
    await subject.store.commit([Expect(present, revision), Expect(absent, 0)], [Put(present, b"2"), Put(absent, b"2")])
    assert [kv.value for page in await listing(subject.store, subject.prefix) for kv in page.entries] == [b"2", b"2"]


@pytest.mark.parametrize("wrong", ["present", "absent", "older"])
async def test_nothing_is_done_if_one_expectation_does_not_hold(subject: Subject, wrong: str) -> None:
    key, other = subject.prefix + "key", subject.prefix + "other"
    old = await subject.store.commit([], [Put(key, b"1")])
    revision = await subject.store.commit([], [Put(key, b"2")])
    broken = {"present": Expect(key, 0), "absent": Expect(other, revision), "older": Expect(key, old)}[wrong]
    with pytest.raises(Conflict):
        await subject.store.commit([Expect(key, revision), broken], [Put(other, b"3"), Delete(key)])
    assert await subject.store.get(other) is None
    assert await subject.store.get(key) == KeyValue(key, b"2", old, revision, 0)


async def test_one_of_many_wins(subject: Subject) -> None:
    key = subject.prefix + "contended"

    async def claim(name: bytes) -> bytes | None:
        try:
            await subject.store.commit([Expect(key, 0)], [Put(key, name)])
        except Conflict:
            return None
        return name

    winners = [name for name in await asyncio.gather(*(claim(b"%d" % number) for number in range(8))) if name]
    found = await subject.store.get(key)
    assert found is not None
    assert winners == [found.value]


async def test_a_transaction_cannot_write_a_key_twice(subject: Subject) -> None:
    with pytest.raises(Denied):
        await subject.store.commit([], [Put(subject.prefix + "a", b"1"), Put(subject.prefix + "a", b"2")])
    assert await subject.store.get(subject.prefix + "a") is None


async def test_a_transaction_has_at_most_128_operations(subject: Subject) -> None:
    await subject.store.commit([], [Put(f"{subject.prefix}{number}", b"") for number in range(128)])
    with pytest.raises(Denied):
        await subject.store.commit([], [Delete(f"{subject.prefix}{number}") for number in range(129)])
    assert len(keys(await listing(subject.store, subject.prefix))) == 128


# Leases


async def test_a_key_carries_its_lease(subject: Subject) -> None:
    key = subject.prefix + "leased"
    lease = await subject.store.grant(60)
    await subject.store.commit([], [Put(key, b"", lease)])
    found = await subject.store.get(key)
    assert found is not None
    assert found.lease_id == lease != 0
    remaining, granted = await subject.store.time_to_live(lease)
    assert granted == 60
    assert 50 <= remaining <= 60


async def test_a_lease_that_expires_takes_all_its_keys_at_once(subject: Subject) -> None:
    first, second, kept = subject.prefix + "1", subject.prefix + "2", subject.prefix + "3"
    lease = await subject.store.grant(1)
    revision = await subject.store.commit([], [Put(first, b"", lease), Put(second, b"", lease), Put(kept, b"")])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        assert await anext(stream) == Batch((), revision)
        subject.advance(1.5)
        gone = await anext(stream)
    assert {event.key for event in gone.events} == {first, second}
    assert {type(event) for event in gone.events} == {Deleted}
    assert {event.mod_revision for event in gone.events} == {gone.revision}
    assert keys(await listing(subject.store, subject.prefix)) == [kept]
    with pytest.raises(LeaseGone):
        await subject.store.keepalive(lease)
    with pytest.raises(LeaseGone):
        await subject.store.time_to_live(lease)


async def test_a_keepalive_sets_the_lease_back_and_tells_nobody(subject: Subject) -> None:
    key, marker = subject.prefix + "key", subject.prefix + "marker"
    lease = await subject.store.grant(30)
    revision = await subject.store.commit([], [Put(key, b"", lease)])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        await anext(stream)
        subject.advance(20.0)
        assert await subject.store.keepalive(lease) == 30
        subject.advance(20.0)
        assert (await subject.store.time_to_live(lease))[0] > 0
        found = await subject.store.get(key)
        await subject.store.commit([], [Put(marker, b"")])
        assert [event.key for event in await take(stream, 1)] == [marker]
    assert found is not None
    assert found.mod_revision == revision


async def test_a_revoked_lease_takes_its_keys_and_is_gone(subject: Subject) -> None:
    key = subject.prefix + "key"
    lease = await subject.store.grant(60)
    revision = await subject.store.commit([], [Put(key, b"", lease)])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        await anext(stream)
        await subject.store.revoke(lease)
        assert await take(stream, 1) == [Deleted(key, revision + 1)]
    await subject.store.revoke(lease)
    with pytest.raises(LeaseGone):
        await subject.store.keepalive(lease)
    with pytest.raises(LeaseGone):
        await subject.store.time_to_live(lease)
    with pytest.raises(LeaseGone):
        await subject.store.commit([], [Put(subject.prefix + "other", b""), Put(key, b"", lease)])
    assert keys(await listing(subject.store, subject.prefix)) == []


async def test_a_conflict_comes_before_a_lease_that_is_gone(subject: Subject) -> None:
    lease = await subject.store.grant(60)
    await subject.store.revoke(lease)
    with pytest.raises(Conflict):
        await subject.store.commit([Expect(subject.prefix + "absent", 7)], [Put(subject.prefix + "a", b"", lease)])


async def test_a_key_written_again_without_its_lease_outlives_it(subject: Subject) -> None:
    key = subject.prefix + "key"
    lease = await subject.store.grant(60)
    await subject.store.commit([], [Put(key, b"leased", lease)])
    await subject.store.commit([], [Put(key, b"reserved")])
    await subject.store.revoke(lease)
    found = await subject.store.get(key)
    assert found is not None
    assert found.lease_id == 0


# Watches


async def test_a_watch_begins_with_an_empty_batch(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        assert await anext(stream) == Batch((), revision)


async def test_a_watch_from_the_past_tells_everything_in_order(subject: Subject) -> None:
    start = await subject.store.commit([], [Put(subject.prefix + "before", b"")]) + 1
    want: list[KeyValue | Deleted] = []
    for number in range(50):
        key = f"{subject.prefix}{number % 7}"
        created = next((event for event in reversed(want) if event.key == key), None)
        revision = await subject.store.commit([], [Put(key, b"%d" % number), Put("/elsewhere" + key, b"")])
        since = created.create_revision if isinstance(created, KeyValue) else revision
        want.append(KeyValue(key, b"%d" % number, since, revision, 0))
        if number % 5 == 0:
            want.append(Deleted(key, await subject.store.commit([], [Delete(key)])))
    async with watching(subject.store, subject.prefix, start) as stream:
        assert await take(stream, len(want)) == want


async def test_the_events_of_a_transaction_are_in_one_batch(subject: Subject) -> None:
    names = [f"{subject.prefix}{number:03}" for number in range(128)]
    start = await subject.store.commit([], [Put(names[0], b"")]) + 1
    async with watching(subject.store, subject.prefix, start) as stream:
        await anext(stream)
        revision = await subject.store.commit([], [Delete(names[0]), *(Put(name, b"x") for name in names[1:])])
        batch = await anext(stream)
    assert [event.key for event in batch.events] == names
    assert {event.mod_revision for event in batch.events} == {revision} == {batch.revision}


async def test_a_batch_too_large_for_one_message_stays_one_batch(subject: Subject) -> None:
    """etcd cuts what is larger than about 1.5 MB into fragments; a catch-up is easily larger."""
    start = await subject.store.commit([], [Put(subject.prefix + "before", b"")]) + 1
    for number in range(5):
        await subject.store.commit([], [Put(f"{subject.prefix}{number}{part}", bytes(200_000)) for part in "abcdef"])
    async with watching(subject.store, subject.prefix, start) as stream:
        events: list[KeyValue | Deleted] = []
        while len(events) < 30:
            batch = await anext(stream)
            events += batch.events
            # A batch ends where a transaction ends: it is safe to resume after it.
            assert len(events) % 6 == 0
    assert [event.key[-2:] for event in events] == [f"{number}{part}" for number in range(5) for part in "abcdef"]


async def test_a_watch_resumed_after_a_batch_misses_and_repeats_nothing(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    seen: list[KeyValue | Deleted] = []
    for number in range(5):
        await subject.store.commit([], [Put(f"{subject.prefix}{number}", b""), Put(subject.prefix + "a", b"")])
        async with watching(subject.store, subject.prefix, revision + 1) as stream:
            await anext(stream)
            batch = await anext(stream)
        seen += batch.events
        revision = batch.revision
    assert [event.key for event in seen if event.key != subject.prefix + "a"] == [
        f"{subject.prefix}{number}" for number in range(5)
    ]
    assert len(seen) == 10


async def test_two_watches_each_tell_their_own(subject: Subject) -> None:
    start = await subject.store.commit([], [Put(subject.prefix, b"")]) + 1
    async with (
        watching(subject.store, subject.prefix + "x/", start) as xs,
        watching(subject.store, subject.prefix, start) as everything,
    ):
        await anext(xs)
        await anext(everything)
        for name in ("x/1", "y/1", "x/2", "y/2"):
            await subject.store.commit([], [Put(subject.prefix + name, b"")])
        assert [event.key for event in await take(xs, 2)] == [subject.prefix + name for name in ("x/1", "x/2")]
        assert [event.key for event in await take(everything, 4)] == [
            subject.prefix + name for name in ("x/1", "y/1", "x/2", "y/2")
        ]


async def test_a_watch_from_before_a_compaction_has_lost_its_history(subject: Subject) -> None:
    start = await subject.store.commit([], [Put(subject.prefix + "a", b"0")])
    revision = start
    for _ in range(3):
        revision = await subject.store.commit([], [Put(subject.prefix + "a", b"1")])
    subject.compact(revision)
    async with watching(subject.store, subject.prefix, start) as stream:
        with pytest.raises(HistoryLost):
            await take(stream, 1)
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        assert await anext(stream) == Batch((), revision)


async def test_a_watch_from_exactly_where_history_was_compacted_has_all_of_it(subject: Subject) -> None:
    start = await subject.store.commit([], [Put(subject.prefix + "a", b"0")]) + 1
    for name in "bcd":
        await subject.store.commit([], [Put(subject.prefix + name + part, b"") for part in "12"])
    subject.compact(start)
    async with watching(subject.store, subject.prefix, start) as stream:
        assert [event.key for event in await take(stream, 6)] == [
            f"{subject.prefix}{name}{part}" for name in "bcd" for part in "12"
        ]
        await subject.store.commit([], [Put(subject.prefix + "e", b"")])
        assert [event.key for event in await take(stream, 1)] == [subject.prefix + "e"]


async def test_what_a_watch_does_not_tell_of_a_compacted_deletion_the_number_of_keys_does(subject: Subject) -> None:
    """A deletion at exactly the compacted revision is lost (etcd-io/etcd#18089; in 3.4.23)."""
    revision = await subject.store.commit([], [Put(subject.prefix + name, b"") for name in "ab"])
    gone = await subject.store.commit([], [Delete(subject.prefix + "a")])
    subject.compact(gone)
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        assert await anext(stream) == Batch((), revision)
        await subject.store.commit([], [Put(subject.prefix + "c", b"")])
        told = [event.key for event in await take(stream, 1)]
    assert subject.prefix + "b" not in told
    assert (await subject.store.count(subject.prefix, gone))[0] == 1


async def test_a_watch_from_what_comes_next_repeats_nothing_of_what_was_last(subject: Subject) -> None:
    """The last revision may be a large transaction, or a deletion."""
    names = [f"{subject.prefix}{number}" for number in range(20)]
    await subject.store.commit([], [Put(name, bytes(100_000)) for name in names[:10]])
    revision = await subject.store.commit([], [*map(Delete, names[:10]), *(Put(n, bytes(100_000)) for n in names[10:])])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        assert await anext(stream) == Batch((), revision)
        await subject.store.commit([], [Put(subject.prefix + "next", b"")])
        assert [event.key for event in await take(stream, 1)] == [subject.prefix + "next"]


async def test_a_running_watch_does_not_mind_a_compaction(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"0")])
    async with watching(subject.store, subject.prefix, revision + 1) as stream:
        await anext(stream)
        subject.compact(revision)
        await subject.store.commit([], [Put(subject.prefix + "b", b"")])
        assert [event.key for event in await take(stream, 1)] == [subject.prefix + "b"]


async def test_a_watch_from_beyond_the_end_has_lost_its_history(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    async with watching(subject.store, subject.prefix, revision + 1000) as stream:
        with pytest.raises(HistoryLost):
            await anext(stream)


async def test_closing_the_iterator_ends_the_watch_promptly(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    for _ in range(50):
        async with watching(subject.store, subject.prefix, revision + 1) as stream:
            await anext(stream)
    # Fifty watches that had lived on would have used up the threads, or the minutes.
    assert await subject.store.get(subject.prefix + "a") is not None


async def test_cancelling_who_waits_on_a_watch_ends_it_promptly(subject: Subject) -> None:
    stands = asyncio.Event()

    async def follow() -> None:
        async with watching(subject.store, subject.prefix, 1) as stream:
            await anext(stream)
            stands.set()
            await anext(stream)

    async with asyncio.timeout(2.0), asyncio.TaskGroup() as group:
        task = group.create_task(follow())
        await stands.wait()
        task.cancel()
    assert task.cancelled()


async def test_closing_the_store_ends_watches_with_unavailable(subject: Subject) -> None:
    revision = await subject.store.commit([], [Put(subject.prefix + "a", b"")])
    stands = asyncio.Event()
    ended = []

    async def follow() -> None:
        async with watching(subject.store, subject.prefix, revision + 1) as stream:
            await anext(stream)
            stands.set()
            with pytest.raises(Unavailable):
                await anext(stream)
            ended.append("waiting")

    async with asyncio.timeout(2.0), watching(subject.store, subject.prefix, revision + 1) as idle:
        await anext(idle)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await stands.wait()
            await subject.store.close()
        with pytest.raises(Unavailable):
            await anext(idle)
    assert ended == ["waiting"]
    with pytest.raises(Unavailable):
        await subject.store.get(subject.prefix + "a")
    with pytest.raises(Unavailable):
        await anext(subject.store.watch(subject.prefix, revision))


async def test_reconnecting_ends_watches_with_unavailable_and_all_goes_on(subject: Subject) -> None:
    store, key = subject.store, subject.prefix + "a"
    revision = await store.commit([], [Put(key, b"")])
    stands = asyncio.Event()

    async def follow() -> None:
        async with watching(store, subject.prefix, revision + 1) as stream:
            await anext(stream)
            stands.set()
            with pytest.raises(Unavailable):
                await anext(stream)

    async with asyncio.timeout(2.0), watching(store, subject.prefix, revision + 1) as idle:
        await anext(idle)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await stands.wait()
            await store.reconnect()
        with pytest.raises(Unavailable):
            await anext(idle)
        await store.reconnect()
        written = await store.commit([], [Put(key, b"again")])
        async with watching(store, subject.prefix, revision + 1) as stream:
            (event,) = await take(stream, 1)
    assert (event.key, event.mod_revision) == (key, written)
