"""A clock that is turned by hand: sleepers wake in order of their time, and no test waits for a real one."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

TURNS = 50
"""How often the event loop turns before the tasks count as settled: more than any chain of immediate awaits in them."""


class ManualClock:
    """See agent/clock.py. `run_until` lets tasks run and turns time on to the next sleeper when all wait."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def wait(self, event: asyncio.Event, until: float) -> None:
        async def sleep() -> None:
            await self.sleep(until - self._now)

        if until == float("inf"):
            await event.wait()
            return
        async with asyncio.TaskGroup() as tasks:
            waits = {tasks.create_task(event.wait()), tasks.create_task(sleep())}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()

    async def run_until(self, condition: Callable[[], bool], seconds: float = 3600.0) -> None:
        """Run until the condition holds; fail if it does not within so many seconds of this clock."""
        end = self._now + seconds
        while True:
            for _ in range(TURNS):
                if condition():
                    return
                await asyncio.sleep(0)
            while self._sleepers and self._sleepers[0][2].cancelled():
                heapq.heappop(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > end:
                raise AssertionError(f"the condition did not come true within {seconds} s")
            self._now, _, woken = heapq.heappop(self._sleepers)
            woken.set_result(None)

    async def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self._now + seconds
        async with asyncio.TaskGroup() as tasks:
            timer = tasks.create_task(self.sleep(seconds))
            await self.run_until(timer.done, seconds)
        assert self._now >= end
