"""The keys of a MemoryStore with all their revisions: what is there now, what was there, and what changed between.

    apply    operations -> one revision            at       the keys as they were
    compact  forgets what was before a revision    since    what changed from a revision on

Pure. As in etcd: a revision is readable from the compacted one on, and changes can be told from there on.
"""

from __future__ import annotations

from collections.abc import Sequence

from flanneld_py.registry.store import Delete, Deleted, KeyValue, Put

Event = KeyValue | Deleted

# As etcd does for a watch that catches up.
_MOST_REVISIONS_PER_BATCH = 1000


class History:
    """Keys by name, and their past. `revision` is the newest; before `compacted` nothing is known any more."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.keys: dict[str, KeyValue] = {}
        self._base: dict[str, KeyValue] = {}
        self._log: list[tuple[int, tuple[Event, ...]]] = []

    def copy(self) -> History:
        """Return a history of its own that has the same past."""
        other = History()
        other.revision, other.compacted = self.revision, self.compacted
        other.keys, other._base, other._log = dict(self.keys), dict(self._base), list(self._log)
        return other

    def apply(self, operations: Sequence[Put | Delete]) -> bool:
        """Do all operations at one new revision; if nothing changes, there is none. Return whether there is one."""
        revision = self.revision + 1
        events: list[Event] = []
        for operation in operations:
            have = self.keys.get(operation.key)
            match operation:
                case Put(key, value, lease_id):
                    kv = KeyValue(key, value, have.create_revision if have else revision, revision, lease_id)
                    self.keys[key] = kv
                    events.append(kv)
                case Delete(key) if have is not None:
                    del self.keys[key]
                    events.append(Deleted(key, revision))
        if events:
            self.revision = revision
            self._log.append((revision, tuple(events)))
        return bool(events)

    def compact(self, revision: int) -> None:
        """Forget the changes before `revision`. Raises ValueError if that is yet to come.

        Deletions at exactly that revision are forgotten as well, though a watch may begin there: etcd had that fault
        for years (etcd-io/etcd#18089; in 3.4.23), so whoever watches has to cope.
        """
        if revision > self.revision:
            raise ValueError(f"cannot compact at revision {revision}: the store is at {self.revision}")
        if revision > self.compacted:
            self._base, self.compacted = self.at(revision), revision
        self._log = [
            (happened, tuple(event for event in events if happened > revision or isinstance(event, KeyValue)))
            for happened, events in self._log
            if happened >= self.compacted
        ]

    def readable(self, revision: int) -> bool:
        """Tell whether the keys of a revision are known."""
        return self.compacted <= revision <= self.revision

    def at(self, revision: int) -> dict[str, KeyValue]:
        """Return all keys as they were at a readable revision."""
        keys = dict(self._base)
        for happened, events in self._log:
            if happened > revision:
                break
            for event in events:
                if isinstance(event, KeyValue):
                    keys[event.key] = event
                else:
                    keys.pop(event.key, None)
        return keys

    def since(self, prefix: str, position: int) -> tuple[tuple[Event, ...], int]:
        """Collect the next events from revision `position` on; return them and the position after them."""
        # The log has every revision from its first record on.
        first = max(0, position - self._log[0][0]) if self._log else 0
        records = self._log[first : first + _MOST_REVISIONS_PER_BATCH]
        events = tuple(event for _, happened in records for event in happened if event.key.startswith(prefix))
        return events, records[-1][0] + 1 if records else self.revision + 1
