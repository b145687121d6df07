"""Repairs of what others did to our kernel entries or firewall rules: at once and with a line in the log, while few.

Somebody who undoes our work again and again (another daemon, a script in a loop) would else keep both busy for ever. So
there is a credit of BURST repairs, and PER_SECOND new ones; when it is used up, repairs wait, and the log says so once.
"""

from __future__ import annotations

from flanneld_py.agent.log import facts, log

BURST = 50
PER_SECOND = 5.0


class Repairs:
    """`patience` is how many seconds the next repair waits: none while there is credit. `what` is what is repaired."""

    def __init__(self, what: str = "our kernel entries") -> None:
        self._what = what
        self._credit = float(BURST)
        self._last = 0.0
        self._fight = False

    @property
    def patience(self) -> float:
        """Seconds to wait before the next repair."""
        return 1 / PER_SECOND if self._fight else 0.0

    def note(self, entries: int, now: float) -> None:
        """Take in that so many entries were put right at once."""
        self._credit = max(0.0, min(BURST, self._credit + (now - self._last) * PER_SECOND) - 1)
        self._last = now
        if self._fight and self._credit > BURST / 2:
            self._fight = False
        if self._fight:
            return
        log.info(f"somebody else changed {self._what}; they are right again", **facts(entries=entries))
        if self._credit < 1:
            self._fight = True
            log.warning(f"somebody keeps changing {self._what}: repairs are slowed down; find out who it is")
