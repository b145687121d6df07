"""Whether somebody else undoes what we do as soon as it is done: then doing it again waits, so that it is bounded."""

from __future__ import annotations

from dataclasses import dataclass

AT_ONCE = 5
CALM = 1.0
OVER = 60.0
"""Seconds, as CALM; longer than any pause."""


@dataclass(slots=True)
class Undone:
    """How often in a row something was undone, or done anew; the last time, or our last try, was at `at`."""

    times: int = 0
    at: float = float("-inf")

    @property
    def contested(self) -> bool:
        """Whether there is somebody who does not let it be."""
        return self.times > AT_ONCE

    def waits(self, now: float) -> bool:
        """Tell whether it is to wait, being contested and just done."""
        return self.contested and now - self.at <= CALM

    def again(self, now: float) -> bool:
        """Take in that it was undone once more; tell whether it is to wait."""
        if now - self.at > (OVER if self.contested else CALM):
            self.times = 0
        if not self.contested or self.waits(now):
            self.times += 1
        waits, self.at = self.waits(now), now
        return waits
