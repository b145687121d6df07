"""Leases that are not used, in the log: each when it begins and when it ends, but not at every turn of one that flaps.

A peer of `host-gw` goes off the link and comes back with each flap of the underlay, and its lease with it.
"""

from __future__ import annotations

from flanneld_py.agent.log import AGAIN, facts, log


class Unused:
    """What was said of each key."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}
        self._open: dict[str, bool] = {}
        """The keys whose leases are not used, and whether that was said this time."""

    def report(self, key: str, reason: str | None, now: float, *, used: bool) -> None:
        """Take in why a lease is not used, None if it is or is no more; log what is new.

        The same reason for the same key is logged again after AGAIN seconds at the earliest, its end only if its begin
        was.
        """
        if reason is None:
            if self._open.pop(key, False) and used:
                log.info("lease is usable again", **facts(key=key))
            if not used:
                self._said.pop(key, None)
            return
        before, at = self._said.get(key, ("", float("-inf")))
        if before == reason and (key in self._open or now - at < AGAIN):
            self._open.setdefault(key, False)
            return
        self._said[key], self._open[key] = (reason, now), True
        log.warning("lease is not used", **facts(key=key, reason=reason))
