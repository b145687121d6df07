"""The decision to delete no peer for a time: the registry was found empty, or is another one than before.

It has lost its leases then, not the cluster its hosts. What is there of peers is kept until their leases come back or,
had they lived, would have expired. Decided here, once, for all who have peers: the kernel's tables (encap/delta.py)
and the userspace data plane's (agent/datapath/peerfeed.py).

Not kept are the leases themselves, as if they were in the registry still: revisions of two registries do not compare,
so an old lease could go before the new one of the same host.
"""

from __future__ import annotations

from typing import Protocol

from flanneld_py.agent.log import facts, log
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.view import LeaseView


class Holder(Protocol):
    """Somebody who has peers and can keep them, wanted or not."""

    def hold(self) -> int:
        """Keep what is there now until it is wanted again or `release` is called; return how much that is."""
        ...

    def release(self) -> None:
        """End `hold`: what nobody wants goes."""
        ...


class Hold:
    """Let the holders keep or release at the same time. `until` is when they release, in seconds of the clock."""

    def __init__(self, view: LeaseView, *holders: Holder) -> None:
        self._view = view
        self._holders = holders
        self._doubts_seen = 0
        self.until = float("inf")

    def look(self, now: float) -> None:
        """Decide. To be called before leases that are gone are acted upon, and before something is deleted."""
        if self._view.doubts != self._doubts_seen:
            self._doubts_seen = self._view.doubts
            self.until = now + TTL
            held = [holder.hold() for holder in self._holders]
            if any(held):
                log.warning(
                    "the registry is empty or another one; what is programmed stays until the leases are back",
                    **facts(entries=sum(held), seconds=TTL),
                )
        if now >= self.until:
            self.until = float("inf")
            for holder in self._holders:
                holder.release()
