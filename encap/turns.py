"""The loop of a data-plane process: wait until something is readable, call who wants to know, turn by turn.

Whoever is called takes a bounded share and never blocks, so that nobody waits for another's rush.
"""

from __future__ import annotations

import select
from collections.abc import Callable


class Turns:
    """File descriptors that are waited for, each with what is called when it is readable."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._running = True

    def watch(self, fd: int, serve: Callable[[], None]) -> None:
        """Call `serve` in every turn in which the descriptor is readable."""
        self._ready[fd] = serve
        self._poll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Call it no more; before the descriptor is closed."""
        del self._ready[fd]
        self._poll.unregister(fd)

    def run(self) -> None:
        """Take turns until `stop`. Raises what the called ones raise."""
        while self._running:
            for fd, _events in self._poll.poll():
                serve = self._ready.get(fd)
                if serve is not None:  # unwatched by an earlier one in this turn
                    serve()

    def stop(self) -> None:
        """End after this turn."""
        self._running = False

    def close(self) -> None:
        """Wait for nothing any more."""
        self._poll.close()
