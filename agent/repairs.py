"""Repairs of what others did to our kernel entries, kept for people; and a fight with somebody is slowed down."""

from __future__ import annotations

from flanneld_py.agent.log import facts, log

FIGHT = 2.0
"""Seconds: repairs that follow each other more quickly are a fight with somebody who undoes our work."""

LONGEST = 1.0
"""Seconds that a repair waits at most."""


class Repairs:
    """`patience` is how long the next repair waits, in seconds: none for a single one, ever longer in a fight."""

    def __init__(self) -> None:
        self.patience = 0.0
        self._last = float("-inf")

    def note(self, entries: int, now: float) -> None:
        """Take in that so many entries were put right."""
        fight, self._last = now - self._last < FIGHT, now
        before = self.patience
        self.patience = min(max(2 * before, 0.002), LONGEST) if fight else 0.0
        if not fight:
            log.info("somebody else changed our kernel entries; they are right again", **facts(entries=entries))
        elif before < LONGEST == self.patience:
            log.warning("somebody keeps changing our kernel entries; find out who does", **facts(entries=entries))
