"""Keep the view in step with the registry: list, then watch, resume where the watch broke, list again where it cannot.

    list -> watch from there -> (connection lost: resume at the last change + 1)
      ^            |
      +------------+ history lost: compacted, or the store is not the one we knew

It never gives up and never takes the view back: while the registry is away the last known leases stand.
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
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import HistoryLost, RegistryError, StoreReplaced
from flanneld_py.registry.view import LeaseView


class Follower:
    """Feed a LeaseView from a Registry and call `changed` after every change of it."""

    def __init__(
        self, registry: Registry, view: LeaseView, clock: Clock, rng: Random, changed: Callable[[], None]
    ) -> None:
        self._registry = registry
        self._view = view
        self._clock = clock
        self._backoff = Backoff(0.1, 5.0, rng)
        self._changed = changed
        self._one_listing = asyncio.Lock()
        self._lost = False
        self._trouble = OnChange(clock)
        self.connected = False

    async def list(self) -> None:
        """Read all leases once. Raises RegistryError; the view then has what it had, or newer."""
        async with self._one_listing:
            self._view.begin_listing()
            async for page in self._registry.pages():
                self._view.page(page)
                await self._clock.sleep(0)
            self._view.end_listing()
        self._changed()

    async def run(self) -> Never:
        """Follow for good; the view has been listed once already."""
        while True:
            try:
                if self._lost:
                    await self.list()
                    self._lost = False
                await self._watch()
            except HistoryLost as error:
                if isinstance(error, StoreReplaced):
                    self._view.distrust()
                log.warning("the registry's history is lost, listing again", **facts(reason=error))
                self._disconnected()
                if not self._lost:
                    self._lost = True
                    continue
            except RegistryError as error:
                self._trouble.warn("leases are not followed; peers stay as they are, trying again", error)
                self._disconnected()
            await self._clock.sleep(self._backoff.next())

    async def _watch(self) -> None:
        async with aclosing(self._registry.deltas(self._view.revision)) as deltas:
            async for delta in deltas:
                if not self.connected:
                    self.connected = True
                    self._trouble.over()
                    log.info("watching leases", **facts(revision=delta.revision, leases=len(self._view.records)))
                    self._changed()
                if delta.changes:
                    self._backoff.reset()
                    self._view.delta(delta)
                    self._changed()

    def _disconnected(self) -> None:
        if self.connected:
            self.connected = False
            self._changed()
