"""The daemon, with a stop watch at its event loop: how long was it busy without looking at its sockets?

    python tests/bench/looplag.py FLAGS...        the daemon's flags; $BENCH_LOOPLAG is where the outcome goes

asyncio asks its selector for events, runs what they woke, and asks again. The time from an answer to the next question
is one turn: for as long nothing else could run. The daemon is unchanged; only its event loop gets a selector that
notes these times (four clock readings a turn). Written as JSON when the daemon ends: the longest turns, longest first,
as [seconds since the loop began, length in seconds, CPU seconds of it]. A turn much longer than its CPU time was held
up by the machine: by other processes, or by a kernel lock that is one for all network namespaces.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import sys
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from selectors import EpollSelector, SelectorKey
from typing import Any

from flanneld_py.agent.cli import main

KEPT = 20


class TimedSelector(EpollSelector):
    """A selector that notes how long it was not asked."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self._answered = self._cpu = 0.0
        self._longest: list[tuple[float, float, float]] = []

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait for events."""
        now = time.perf_counter()
        if self.began:
            self._note((now - self._answered, self._answered - self.began, time.thread_time() - self._cpu))
        else:
            self.began = now  # What was before is the import of the daemon, not a turn.
        events = super().select(timeout)
        self._answered, self._cpu = time.perf_counter(), time.thread_time()
        return events

    def _note(self, turn: tuple[float, float, float]) -> None:
        if len(self._longest) < KEPT:
            heapq.heappush(self._longest, turn)
        elif turn > self._longest[0]:
            heapq.heapreplace(self._longest, turn)

    def longest(self) -> list[tuple[float, float, float]]:
        """Return (seconds since the loop began, seconds, CPU seconds) of the longest turns, longest first."""
        return [(round(at, 6), round(length, 6), round(cpu, 6)) for length, at, cpu in sorted(self._longest)[::-1]]


def run_with(selector: TimedSelector, coroutine: Coroutine[Any, Any, None]) -> None:
    """Do as asyncio.run does, in a loop with that selector."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(coroutine)


if __name__ == "__main__":
    selector = TimedSelector()
    # The daemon gets its loop from there and nowhere else. asyncio.run takes a factory since Python 3.12.
    setattr(asyncio, "run", partial(run_with, selector))  # noqa: B010
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        Path(os.environ["BENCH_LOOPLAG"]).write_text(json.dumps(selector.longest()))
