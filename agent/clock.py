"""Time, as a part that can be replaced: the only module that reads a clock or sleeps."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds and waiting for them; tests turn it by hand."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; 0 lets other tasks run."""
        ...

    async def wait(self, event: asyncio.Event, until: float) -> None:
        """Wait for the event, at most until `now()` is `until`."""
        ...


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait; 0 lets other tasks run."""
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, until: float) -> None:
        """Wait for the event, at most until `now()` is `until`."""
        try:
            async with asyncio.timeout(None if until == float("inf") else max(0.0, until - self.now())):
                await event.wait()
        except TimeoutError:
            pass
