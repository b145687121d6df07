"""How long to wait before the next try: doubling, bounded, jittered so that hosts do not come in step."""

from __future__ import annotations

from random import Random


class Backoff:
    """Delays in seconds: `first`, twice that, ... up to `most`, each scaled by a random 0.75 to 1.25."""

    def __init__(self, first: float, most: float, rng: Random) -> None:
        self._first = first
        self._most = most
        self._rng = rng
        self._delay = first

    def next(self) -> float:
        """Return the delay before the coming try."""
        delay, self._delay = self._delay, min(self._delay * 2, self._most)
        return delay * self._rng.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begin again at `first`: something worked."""
        self._delay = self._first


class Pace:
    """When something is done that may be asked for without end: at once, and while it is asked for again and again,
    after pauses that grow as a Backoff's; over once nobody asked for twice the longest.
    """

    def __init__(self, first: float, most: float, rng: Random) -> None:
        self._backoff = Backoff(first, most, rng)
        self._calm = 2 * most
        self._at = float("-inf")

    def at(self, now: float) -> float:
        """Return when to do what is asked for now."""
        if now - self._at > self._calm:
            self._backoff.reset()
            self._at = now
        elif now >= self._at:
            self._at = max(now, self._at + self._backoff.next())
        return self._at
