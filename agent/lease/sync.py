"""Keep the view in step with the registry: list, then watch, resume where the watch broke, list again where it cannot.

    list -> watch from there -> (connection lost: resume at the last change + 1)
      ^            |
      +------------+ history lost: compacted, or the store is not the one we knew

It never gives up and never takes the view back: while the registry is away the last known leases stand.

A watch is not believed alone: etcd can be restored from a backup and have caught up before we resume, can lose events
(etcd-io/etcd#18089), and what is between us and it can do anything. So the view is compared with the registry:

    after a watch was resumed     the last change that we were told of, and the number of leases
    every few minutes             the keys written since the last time, and the number of leases
    where that leaves a doubt     all keys with their revisions, and the values of those that differ

The first two are a few hundred bytes; the third, of ten thousand leases, 600 kB and some 30 ms of etcd's time, which is
why many hosts do it one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.tasks import Tasks
from flanneld_py.registry.model import Page, Record, stamp_of
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import HistoryLost, RegistryError, StoreReplaced
from flanneld_py.registry.view import LeaseView, Witness

MANY = 5000
"""Leases from which on the hosts need the whole of a spread; fewer need a part of it."""

GLANCE_SPREAD, LIST_SPREAD = 15.0, 30.0
"""Seconds over which many hosts spread their glances at a registry that they reach again, and their listings."""

EVERY = (300.0, 480.0)
"""Seconds between two comparisons while a watch stands."""

TELLING = 2.0
"""Seconds within which a watch tells of what is in the registry."""

MOST_READ = 20
"""Records to be read one by one; more are read with a listing of all."""

STEADY = 5.0
"""Seconds after which a watch was no mere attempt."""


class LeaseSyncer:
    """Feed a LeaseView from a Registry and call `changed` after every change of it."""

    def __init__(
        self, registry: Registry, view: LeaseView, clock: Clock, rng: Random, changed: Callable[[], None]
    ) -> None:
        self._registry = registry
        self._view = view
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(0.1, 5.0, rng)
        self._listing_backoff = Backoff(0.1, 60.0, rng)
        self._changed = changed
        self._one_listing = asyncio.Lock()
        self._lost = False
        self._compared = 0
        self._breaks = 0
        self._compared_after = 0
        self._witness: Witness | None = None
        self._resumed = asyncio.Event()
        self._read_again = False
        self._trouble = OnChange(clock)
        self._losses = OnChange(clock)
        self.connected = False

    async def list(self) -> None:
        """Read all leases once. Raises RegistryError; the view then has what it had, or newer."""
        async with self._one_listing:
            await self._list_all()
        self._changed()

    async def run(self) -> Never:
        """Follow for good; the view has been listed once already."""
        async with Tasks() as tasks:
            tasks.create_task(self._mind(), name="comparing leases")
            await self._follow()
        raise AssertionError("it goes on for good")

    async def _follow(self) -> Never:
        while True:
            try:
                if self._lost:
                    await self._compare()
                    self._lost = False
                    self._compared_after = self._breaks
                await self._watch()
            except HistoryLost as error:
                if isinstance(error, StoreReplaced):
                    self._view.distrust()
                self._losses.warn("the registry's history is lost, listing again", error)
                self._lost = True
                self._broken()
                self._disconnected()
                await self._clock.sleep(self._share(LIST_SPREAD) + self._listing_backoff.next())
            except RegistryError as error:
                if self._read_again:
                    self._read_again = False
                else:
                    self._broken()
                    self._trouble.warn("leases are not followed; peers stay as they are, trying again", error)
            self._disconnected()
            await self._clock.sleep(self._backoff.next())

    async def _watch(self) -> None:
        began = self._clock.now()
        try:
            async with aclosing(self._registry.deltas(self._view.revision)) as deltas:
                async for delta in deltas:
                    if not self.connected:
                        self._connected(delta.revision)
                    if delta.changes:
                        self._view.delta(delta)
                        self._changed()
        finally:
            if self.connected and self._clock.now() - began >= STEADY:
                self._backoff.reset()
                self._listing_backoff.reset()

    @property
    def _in_doubt(self) -> bool:
        """Whether the watch broke since the registry was last found to have the history that we were told."""
        return self._breaks != self._compared_after

    def _broken(self) -> None:
        """Take in that the watch broke: from now on we may be told another history than until now.

        What we were told since a break and before a comparison may be of a third one: then nothing bears witness.
        """
        self._witness = None if self._in_doubt and self._witness is not self._view.witness else self._view.witness
        self._breaks += 1

    async def _mind(self) -> Never:
        """Compare the view with the registry after each resumption of the watch, and now and then."""
        backoff = Backoff(1.0, 30.0, self._rng)
        while True:
            await self._clock.wait(self._resumed, self._clock.now() + self._rng.uniform(*EVERY))
            if self._resumed.is_set():
                self._resumed.clear()
                await self._clock.sleep(self._share(GLANCE_SPREAD))
            breaks = self._breaks
            try:
                if not self.connected:
                    continue
                if not await self._is_right():
                    await self._clock.sleep(self._share(LIST_SPREAD))
                    if await self._compare(TELLING):
                        reason = f"some of {len(self._view.records)} leases were not as it had told"
                        self._losses.warn(
                            "the watch had not told all that is in the registry, it is read again", reason
                        )
                        if self.connected and self._breaks == breaks:
                            self._read_again = True
                            await self._registry.reconnect()
            except StoreReplaced as error:
                self._view.distrust()
                self._losses.warn("the registry's history is lost, listing again", error)
                self._lost = True
                await self._registry.reconnect()
            except RegistryError as error:
                self._trouble.warn("leases cannot be compared with the registry's, trying again", error)
                await self._clock.sleep(backoff.next())
                if self._in_doubt:
                    self._resumed.set()
            else:
                backoff.reset()
                self._compared_after = max(self._compared_after, breaks)

    async def _is_right(self) -> bool:
        """Look whether all is as we know it, without listing all. Raises RegistryError, StoreReplaced."""
        so_far = await (self._has_happened(self._witness) if self._in_doubt else self._nothing_since())
        return so_far and await self._as_many()

    async def _has_happened(self, witness: Witness | None) -> bool:
        """Ask whether the registry's history is the one that we followed, as far as we did."""
        if witness is None:
            return False
        key, revision, before, after = witness
        try:
            if after is not None:
                return _same(await self._registry.record(key, revision), after)
            gone = await self._registry.record(key, revision) is None
            return gone and before is not None and _same(await self._registry.record(key, revision - 1), before)
        except StoreReplaced:
            raise
        except HistoryLost:  # Compacted; what is there still may tell all the same.
            return after is not None and _same(await self._registry.record(key), after)

    async def _as_many(self) -> bool:
        """Ask whether the registry has as many leases as we know: in one history a lost deletion shows so.

        Raises StoreReplaced.
        """
        known = self._view.revision
        number, reached = await self._registry.count()
        if reached < known:
            raise StoreReplaced(f"the registry is at revision {reached} and we know {known}; list again")
        if number == len(self._view.records):
            return True
        # Or the watch was about to tell of some: by now it has, of all until then.
        await self._clock.sleep(TELLING)
        number, _ = await self._registry.count(max(reached, self._view.revision))
        return number == len(self._view.records)

    async def _nothing_since(self) -> bool:
        """Ask whether the watch told all that was written since the last comparison."""
        compared = self._compared
        async with aclosing(self._registry.index(compared)) as parts:
            async for stamps, revision in parts:
                compared = revision
                if behind := self._view.behind(stamps):
                    await self._clock.sleep(TELLING)
                    if self._view.behind(behind):
                        return False
        self._compared = compared
        return True

    async def _compare(self, patience: float = 0.0) -> bool:
        """List all, values only where revisions differ; return whether anything was new.

        What differs a running watch may be about to tell: it has `patience` seconds for that. Raises RegistryError.
        """
        view, revision = self._view, 0
        async with self._one_listing:
            view.begin_listing()
            unread: list[str] = []
            async with aclosing(self._registry.index()) as parts:
                async for stamps, revision in parts:
                    unread += view.index(stamps, revision)
                    await self._clock.sleep(0)
            if patience and (unread or view.unshown()):
                await self._clock.sleep(patience)
            unread = [key for key in unread if not view.told(key)]
            if len(unread) > MOST_READ:
                news = await self._list_all()
            else:
                for key in unread:
                    if (record := await self._registry.record(key)) is not None:
                        view.page(Page({key: record}, revision))
                self._compared = revision
                news = await self._conclude()
        self._changed()
        return news

    async def _list_all(self) -> bool:
        self._view.begin_listing()
        async with aclosing(self._registry.pages()) as pages:
            async for page in pages:
                self._view.page(page)
                self._compared = page.revision
                await self._clock.sleep(0)
        return await self._conclude()

    async def _conclude(self) -> bool:
        """End a listing. Leases that are gone without a word may be lost in the registry's past: then it is another."""
        if unshown := self._view.unshown():
            newest = self._view.records[unshown[-1]]
            try:
                if not _same(await self._registry.record(unshown[-1], newest.mod_revision), newest):
                    self._view.distrust()
            except StoreReplaced:
                raise
            except HistoryLost:
                pass  # Compacted long ago: nothing speaks against their having ended.
        return self._view.end_listing()

    def _share(self, most: float) -> float:
        """Return how long to wait before something that many hosts do at the same moment, given how many there are."""
        return self._rng.uniform(0, most * min(1.0, len(self._view.records) / MANY))

    def _connected(self, revision: int) -> None:
        self.connected = True
        if self._in_doubt:
            self._resumed.set()
        self._trouble.over()
        log.info("watching leases", **facts(revision=revision, leases=len(self._view.records)))
        self._changed()

    def _disconnected(self) -> None:
        if self.connected:
            self.connected = False
            self._changed()


def _same(found: Record | None, known: Record) -> bool:
    return found is not None and stamp_of(found) == stamp_of(known) and found == known
