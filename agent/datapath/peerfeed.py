"""The peers that the userspace data plane is to have, and what of them it has not been told yet. Pure.

    update   who is a peer now, or not any more          hold, release   see agent/reconcile/hold.py
    all      the whole table, for a process that has just been reached
    changes  what has changed since either was called

While held, the process may have peers that only it knows: the agent was restarted. So the table is not a complete one
then, and what is not in it stays; after the release it is sent again, complete.
"""

from __future__ import annotations

from collections.abc import Iterable

from flanneld_py.encap.datapath.control.messages import Peer


class PeerFeed:
    """See the module's docstring. `complete` says whether what is not in the table is to go."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._kept: dict[str, Peer] = {}
        self._held: set[str] = set()
        self._changed: dict[str, None] = {}
        self.complete = True

    def update(self, changes: Iterable[tuple[str, Peer | None]]) -> None:
        """Take in peers that are new, changed, or gone (None)."""
        for key, peer in changes:
            if peer is not None:
                self._peers[key] = peer
                self._kept.pop(key, None)
                self._held.discard(key)
            elif self.complete or (key in self._peers and key not in self._held):
                self._peers.pop(key, None)
            else:
                if key in self._peers:
                    self._kept[key] = self._peers.pop(key)
                continue
            self._changed[key] = None

    def hold(self) -> int:
        """Keep every peer of now until it is told again, or `release` is called; return how many are known."""
        self._held.update(self._peers)
        self.complete = False
        return len(self._held)

    def release(self) -> None:
        """End `hold`: who is gone goes."""
        self._kept.clear()
        self._held.clear()
        self.complete = True

    def all(self) -> list[Peer]:
        """Return every peer, those that are kept first: where two have one subnet, the later one counts."""
        self._changed.clear()
        return [*self._kept.values(), *self._peers.values()]

    def changes(self) -> tuple[list[str], list[Peer]]:
        """Return the keys that are gone, and the peers that are new or changed."""
        changed, self._changed = self._changed, {}
        gone = [key for key in changed if key not in self._peers]
        return gone, [self._peers[key] for key in changed if key in self._peers]
