"""Repairs of what others did to our kernel entries, device or firewall rules: at once and logged, while few.

Somebody who undoes our work again and again (another daemon, a script in a loop) would else keep both busy for ever:

    quick   a credit of BURST repairs, and PER_SECOND new ones; when it is used up, repairs wait
    often   OFTEN repairs within LATELY, however slow: one warning instead of a line for each, again every AGAIN

Both are over once nothing was to be repaired for LATELY.
"""

from __future__ import annotations

from collections import deque

from flanneld_py.agent.log import AGAIN, facts, log

BURST = 50
PER_SECOND = 5.0
OFTEN = 10
LATELY = 300.0
"""Seconds; flannel's daemon looks at its rules every five."""


class Repairs:
    """`patience` is how many seconds the next repair waits: none while there is credit. `what` is what is repaired."""

    def __init__(self, what: str = "our kernel entries") -> None:
        self._what = what
        self._credit = float(BURST)
        self._last = float("-inf")
        self._times: deque[float] = deque(maxlen=OFTEN)
        self._fight = False
        self._warned_at = float("-inf")
        self._since_warned = 0

    @property
    def patience(self) -> float:
        """Seconds to wait before the next repair."""
        return 1 / PER_SECOND if self._fight else 0.0

    def note(self, entries: int, now: float, do: str = "find out who it is") -> None:
        """Take in that so many entries were put right at once; the operator is told `do`, if it is too often."""
        if self.seldom(now, do):
            log.info(f"somebody else changed {self._what}; they are right again", **facts(entries=entries))

    def seldom(self, now: float, do: str = "find out who it is") -> bool:
        """Take in a repair; tell whether it is to be logged by itself, as one of few."""
        if now - self._last > LATELY:
            self._times.clear()
            self._credit, self._fight, self._warned_at = float(BURST), False, float("-inf")
        self._credit = max(0.0, min(BURST, self._credit + max(0.0, now - self._last) * PER_SECOND) - 1)
        self._last = now
        self._times.append(now)
        self._since_warned += 1
        if self._fight and self._credit > BURST / 2:
            self._fight = False
        self._fight |= self._credit < 1
        often = len(self._times) == OFTEN and now - self._times[0] <= LATELY
        if not often and not self._fight and self._warned_at == float("-inf"):
            return True
        if now - self._warned_at >= AGAIN:
            slowed = "; repairs are slowed down" if self._fight else ""
            log.warning(f"somebody keeps changing {self._what}{slowed}", **facts(repairs=self._since_warned, do=do))
            self._warned_at, self._since_warned = now, 0
        return False
