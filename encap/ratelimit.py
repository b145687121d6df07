"""A limit on how often something may happen: a token bucket, or one for each of many. Pure: they are told the time."""

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


MOST_BUCKETS = 1024
"""Buckets that are remembered; when there are more, all are full again."""


class Buckets:
    """A bucket like `each` for every key, and one for all together."""

    def __init__(self, each: Bucket, together: Bucket) -> None:
        self._each = each
        self._together = together
        self._of: dict[bytes, Bucket] = {}

    def take(self, key: bytes, now: float) -> bool:
        """Return whether it may happen once more now for this key, and count that."""
        mine, mine_after = self._of.get(key, self._each).take(now)
        if not mine:
            return False
        allowed, self._together = self._together.take(now)
        if allowed:
            if len(self._of) >= MOST_BUCKETS:
                self._of.clear()
            self._of[key] = mine_after
        return allowed
