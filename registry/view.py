"""What we know of the leases now: listings and deltas go in, the current records come out.

Pure, and level-triggered: what changed are keys, not events; whoever works on them reads the record as it is then.

    listing   begin_listing -> page ... page -> end_listing      what the listing did not show is gone
    by index  begin_listing -> index -> page ... -> end_listing  what has the revisions that we know is as we know it
    watching  delta ... delta                                    an empty delta changes nothing

A key whose new value cannot be read keeps its last readable lease: one garbled record must not cut off a host that
works. It is listed in `unreadable` until it is mended or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flanneld_py.registry.model import Delta, Lease, Page, Record, Rejected, Stamp, stamp_of


class Witness(NamedTuple):
    """The last change that the watch told: whoever has it at that revision has the history that we followed."""

    key: str
    revision: int
    before: Record | None
    after: Record | None


class _Listing:
    """A listing that is under way: the keys it has shown, and those that deltas have told something newer about."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.revision = before
        self.shown: set[str] = set()
        self.overtaken: set[str] = set()
        self.news = False


class LeaseView:
    """The records under <prefix>/subnets/ as of `revision`.

    `generation` counts the stores: revisions of different ones do not compare. `doubts` counts the moments at which
    what is missing may be there all the same: the store was replaced, or shows nothing at all. Whoever cares remembers
    the count that it has seen.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.unreadable: dict[str, Rejected] = {}
        self.revision = 0
        self.synced = False
        self.generation = 0
        self.doubts = 0
        self.witness: Witness | None = None
        self._replaced = False
        self._changed: dict[str, dict[str, None]] = {}
        self._listing: _Listing | None = None

    def lease(self, key: str) -> Lease | None:
        """Return the lease at a key, if there is one and it can be read."""
        record = self.records.get(key)
        return record if isinstance(record, Lease) else None

    def written(self, key: str) -> Record | None:
        """Return what is at a key, readable or not."""
        return self.unreadable.get(key) or self.records.get(key)

    def leases(self) -> dict[str, Lease]:
        """Return all readable leases by key."""
        return {key: record for key, record in self.records.items() if isinstance(record, Lease)}

    def distrust(self) -> None:
        """Take in that the store is another one: what the next listing does not show may only be lost there."""
        self._replaced = True

    def doubt(self) -> None:
        """Take in that what is missing may be there all the same. What is there counts as told anew: it is not held."""
        self.doubts += 1
        for changed in self._changed.values():
            changed.update(dict.fromkeys(self.records))

    def begin_listing(self) -> None:
        """Start over: the coming pages are all there is, but for what deltas tell meanwhile."""
        self._listing = _Listing(self.revision)

    def page(self, page: Page) -> None:
        """Take in one page of a listing."""
        listing = self._under_way()
        listing.revision = page.revision
        listing.shown.update(page.records)
        for key, record in page.records.items():
            if key in listing.overtaken:
                continue
            known = self.written(key)
            if record.mod_revision <= listing.before and not _same(known, record):
                # We were told all that happened until then, and this was not among it.
                self._replaced = True
            listing.news |= self._set(key, record)

    def index(self, stamps: Mapping[str, Stamp], revision: int) -> list[str]:
        """Take in part of a listing without values; return the keys whose records have to be read.

        Those are the ones that we know otherwise or not, and reservations: nothing about their revisions is unique to
        one history, while the ids of etcd's leases are random.
        """
        listing = self._under_way()
        listing.revision = revision
        unread = []
        for key, stamp in stamps.items():
            known = self.written(key)
            if stamp.lease_id and known is not None and stamp_of(known) == stamp:
                listing.shown.add(key)
            elif key not in listing.overtaken:
                unread.append(key)
        return unread

    def unshown(self) -> list[str]:
        """Return what the listing under way has not shown, by revision, and no delta told of meanwhile."""
        listing = self._under_way()
        keys = [key for key in self.records if key not in listing.shown and key not in listing.overtaken]
        return sorted(keys, key=lambda key: self.records[key].mod_revision)

    def behind(self, stamps: Mapping[str, Stamp]) -> dict[str, Stamp]:
        """Return which of these keys are newer in the registry than here."""

        def ours(key: str) -> int:
            known = self.written(key)
            return known.mod_revision if known is not None else 0

        return {key: stamp for key, stamp in stamps.items() if ours(key) < stamp.mod_revision}

    def told(self, key: str) -> bool:
        """Tell whether a delta told of a key since the listing under way began."""
        return key in self._under_way().overtaken

    def end_listing(self) -> bool:
        """Finish a listing; return whether it showed anything new.

        A store that is behind what we knew before is another one, which is new as well.
        """
        listing = self._under_way()
        for key in self.unshown():
            listing.news |= self._set(key, None)
        self._listing = None
        if listing.revision < listing.before:
            self._replaced = True
            self.revision = listing.revision
        else:
            self.revision = max(self.revision, listing.revision)
        if listing.news or self._replaced or (self.witness is not None and self.witness.revision < self.revision):
            self.witness = None
        self.synced = True
        if self._replaced or not self.records:
            self.doubt()
        self.generation += self._replaced
        news, self._replaced = listing.news or self._replaced, False
        return news

    def delta(self, delta: Delta) -> None:
        """Take in changes. That they leave nothing is no cluster's way to shrink, but doubtful."""
        for key, record in delta.changes:
            self.witness = Witness(key, delta.revision, self.written(key), record)
            self._set(key, record)
            if self._listing is not None:
                self._listing.overtaken.add(key)
        self.revision = delta.revision
        if delta.changes and not self.records:
            self.doubt()

    def take_changed(self, reader: str) -> list[str]:
        """Return the keys that changed since the reader's last call; at its first, all there are."""
        changed = self._changed.get(reader, self.records)
        self._changed[reader] = {}
        return list(changed)

    def start_over(self, reader: str) -> None:
        """Let the reader's next `take_changed` return every key, and what is gone since its last."""
        self._changed.setdefault(reader, {}).update(dict.fromkeys(self.records))

    def again(self, reader: str, keys: Iterable[str]) -> None:
        """Let the reader's next `take_changed` return these keys as well."""
        if reader in self._changed:
            self._changed[reader].update(dict.fromkeys(keys))

    def _under_way(self) -> _Listing:
        assert self._listing is not None, "outside a listing"
        return self._listing

    def _set(self, key: str, record: Record | None) -> bool:
        """Put a record in force, and return whether that changes anything."""
        known = self.records.get(key)
        if isinstance(record, Rejected):
            garbled, self.unreadable[key] = self.unreadable.get(key), record
            if isinstance(known, Lease):
                return not _same(garbled, record)
        else:
            self.unreadable.pop(key, None)
        if record is None:
            if known is None:
                return False
            del self.records[key]
        elif _same(known, record):
            return False
        else:
            self.records[key] = record
        for changed in self._changed.values():
            changed[key] = None
        return True


def _same(known: Record | None, record: Record) -> bool:
    return known is not None and stamp_of(known) == stamp_of(record) and known == record
