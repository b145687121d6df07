"""What we know of the leases now: listings and deltas go in, the current records come out.

Pure, and level-triggered: `changed` collects keys, not events; whoever works on them reads the record as it is then.

    listing   begin_listing -> page ... page -> end_listing      what the listing did not show is gone
    watching  delta ... delta                                    an empty delta changes nothing

A key whose new value cannot be read keeps its last readable lease: one garbled record must not cut off a host that
works. It is listed in `unreadable` until it is mended or deleted.
"""

from __future__ import annotations

from flanneld_py.registry.model import Delta, Lease, Page, Record, Rejected


class LeaseView:
    """The records under <prefix>/subnets/ as of `revision`."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.unreadable: dict[str, Rejected] = {}
        self.revision = 0
        self.rewound = False
        self.synced = False
        self.emptied = False
        self.changed: dict[str, None] = {}
        self._listed: set[str] | None = None

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

    def begin_listing(self) -> None:
        """Start over: the coming pages are all there is."""
        self._listed = set()

    def page(self, page: Page) -> None:
        """Take in one page of a listing. `rewound` is set if its store is behind what we knew: it was replaced."""
        assert self._listed is not None, "page() outside a listing"
        self.rewound |= page.revision < self.revision
        self._listed.update(page.records)
        for key, record in page.records.items():
            self._set(key, record)
        self.revision = page.revision

    def end_listing(self) -> None:
        """Finish a listing. `emptied` is set if it shows nothing where something was known, or at the first time."""
        listed, self._listed = self._listed or set(), None
        for key in [key for key in self.records if key not in listed]:
            self._set(key, None)
        self.synced = True
        self.emptied |= not self.records

    def delta(self, delta: Delta) -> None:
        """Take in changes. `emptied` is set if they leave nothing: that is no cluster's way to shrink."""
        for key, record in delta.changes:
            self._set(key, record)
        self.revision = delta.revision
        self.emptied |= bool(delta.changes) and not self.records

    def take_changed(self) -> list[str]:
        """Return the keys that changed since the last call."""
        changed, self.changed = self.changed, {}
        return list(changed)

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
        elif known is not None and known.mod_revision == record.mod_revision:
            return
        else:
            self.records[key] = record
        self.changed[key] = None
