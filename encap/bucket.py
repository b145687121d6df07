"""A limit on how often something may happen: a token bucket. Pure: it is told the time."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Bucket:
    """`rate` a second in the long run, `burst` at once; `spent` of it were used as of `at`, in seconds of any clock."""

    rate: float
    burst: float
    spent: float = 0.0
    at: float = 0.0

    def share(self, several: int) -> Bucket:
        """Return one of so many buckets that allow together what this one allows, each at least one at once."""
        return replace(self, rate=self.rate / several, burst=max(1.0, self.burst / several))

    def take(self, now: float) -> tuple[bool, Bucket]:
        """Return whether it may happen once more now, and the bucket afterwards."""
        spent = max(0.0, self.spent - max(0.0, now - self.at) * self.rate)
        allowed = spent + 1 <= self.burst
        return allowed, replace(self, spent=spent + allowed, at=max(now, self.at))
