"""The loop of a data-plane process: wait until something is readable, call who wants to know, turn by turn.

Whoever is called takes a bounded share and never blocks, so that nobody waits for another's rush.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable

Wait = Callable[[int], Iterable[int]]
"""Wait at an epoll descriptor; return which descriptors are readable."""


class Loop:
    """File descriptors that are waited for, each with what is called when it is readable."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._running = True
        self._wait: Wait = lambda _: [fd for fd, _ in self._poll.poll()]

    def watch(self, fd: int, serve: Callable[[], None]) -> None:
        """Call `serve` in every turn in which the descriptor is readable."""
        self._ready[fd] = serve
        self._poll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Call it no more; before the descriptor is closed."""
        del self._ready[fd]
        self._poll.unregister(fd)

    def wait_by(self, wait: Wait) -> None:
        """Let somebody else wait from now on, who may serve descriptors by himself."""
        self._wait = wait

    def run(self) -> None:
        """Take turns until `stop`. Raises what the called ones raise."""
        while self._running:
            for fd in self._wait(self._poll.fileno()):
                serve = self._ready.get(fd)
                if serve is not None:  # unwatched by an earlier one in this turn
                    serve()

    def stop(self) -> None:
        """End after this turn."""
        self._running = False

    def close(self) -> None:
        """Wait for nothing any more."""
        self._poll.close()
