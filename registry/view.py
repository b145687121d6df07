"""What we know of the leases now: listings and deltas go in, the current records come out.

Pure, and level-triggered: what changed are keys, not events; whoever works on them reads the record as it is then.

    listing   begin_listing -> page ... page -> end_listing      what the listing did not show is gone
    watching  delta ... delta                                    an empty delta changes nothing

A key whose new value cannot be read keeps its last readable lease: one garbled record must not cut off a host that
works. It is listed in `unreadable` until it is mended or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable

from flanneld_py.registry.model import Delta, Lease, Page, Record, Rejected


class _Listing:
    """A listing that is under way: the keys it has shown, and those that deltas have told something newer about."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.revision = before
        self.shown: set[str] = set()
        self.overtaken: set[str] = set()


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
        listing = self._listing
        assert listing is not None, "page() outside a listing"
        listing.revision = page.revision
        listing.shown.update(page.records)
        for key, record in page.records.items():
            if key not in listing.overtaken:
                self._set(key, record)

    def end_listing(self) -> None:
        """Finish a listing. A store that is behind what we knew before is another one."""
        listing, self._listing = self._listing, None
        assert listing is not None, "end_listing() outside a listing"
        for key in [key for key in self.records if key not in listing.shown and key not in listing.overtaken]:
            self._set(key, None)
        if listing.revision < listing.before:
            self._replaced = True
            self.revision = listing.revision
        else:
            self.revision = max(self.revision, listing.revision)
        self.synced = True
        if self._replaced or not self.records:
            self.doubt()
        self.generation += self._replaced
        self._replaced = False

    def delta(self, delta: Delta) -> None:
        """Take in changes. That they leave nothing is no cluster's way to shrink, but doubtful."""
        for key, record in delta.changes:
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

    def _set(self, key: str, record: Record | None) -> None:
        known = self.records.get(key)
        if isinstance(record, Rejected):
            self.unreadable[key] = record
            if isinstance(known, Lease):
                return
        else:
            self.unreadable.pop(key, None)
        if record is None:
            if known is None:
                return
            del self.records[key]
        elif known is not None and known.mod_revision == record.mod_revision and known == record:
            return
        else:
            self.records[key] = record
        for changed in self._changed.values():
            changed[key] = None
