"""Desired against actual: which operations bring the kernel from one to the other.

Pure bookkeeping, incremental: the cost of a change is the change, not the size of the tables.

    desired   what should be there; set by `want`, in groups (one peer, or ourselves)
    actual    what is there of ours, as far as we know; set by `observe`, `seen`, `gone`, `done`
    pending   every key on which the two differ, kept up to date by each of those calls; but not what was refused or put
              off, which waits for `retry`
    undone    what was right, and became pending by what somebody else did

        desired:  A  B  C'         updates:    B (missing), C' (other value)
        actual:   A     C   D      deletions:  D (nobody wants it)

Order of work: `take` gives updates before deletions, so that what replaces is there before what it replaces goes;
updates from the device outward (address, FDB, neighbour, nexthop, route), deletions the other way round.

What is *ours* in the kernel: an entry that `owns` accepts, or on our own device a key that we want. All else is never
recorded here, so it cannot be touched.

A route has a rival: the one to the same subnet on the other device, which may be ours as well. The kernel has room for
one of them, so it is replaced: no packet finds neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import chain, islice

from flanneld_py.encap.family import IPAddress
from flanneld_py.encap.state import Entry, Failure, Key, Operation, Route, Verb

ORDER = ("address", "fdb", "neighbour", "nexthop", "route")


class Tracker:
    """Hold both tables and what differs between them. See the module's docstring.

    `device` is ours alone, `shared` also others'; either may not be there.
    """

    def __init__(self, owns: Callable[[Entry], bool], device: str | None = None, shared: str | None = None) -> None:
        self._owns = owns
        self._other = {device: shared, shared: device} if device and shared else {}
        self._device, self._shared = device, shared
        self._desired: dict[Key, Entry] = {}
        self._groups: dict[str, tuple[Entry, ...]] = {}
        self._actual: dict[Key, Entry] = {}
        self._updates: dict[str, dict[Key, None]] = {kind: {} for kind in ORDER}
        self._deletions: dict[str, dict[Key, None]] = {kind: {} for kind in ORDER}
        self._refused: dict[Key, None] = {}
        self._waiting: set[Key] = set()
        self._undone: dict[Key, None] = {}
        self._held: set[Key] = set()
        self._observed: set[Key] | None = None

    @property
    def desired(self) -> dict[Key, Entry]:
        """Everything that should be in the kernel."""
        return self._desired

    @property
    def actual(self) -> dict[Key, Entry]:
        """Everything of ours that is in the kernel, as far as we know."""
        return self._actual

    @property
    def refused(self) -> Collection[Key]:
        """Keys whose last operation failed and which wait for `retry`."""
        return self._refused

    @property
    def waiting(self) -> Collection[Key]:
        """Keys that were put off and wait for `retry`."""
        return self._waiting

    def neighbours(self) -> frozenset[IPAddress]:
        """Return the hosts to which routes on the shared device lead, or are to lead."""
        entries = chain(self._desired.values(), self._actual.values())
        gateways = {entry.gateway for entry in entries if isinstance(entry, Route) and entry.device == self._shared}
        return frozenset(ip_address(gateway) for gateway in gateways if gateway is not None)

    def move_to(self, owns: Callable[[Entry], bool], shared: str | None) -> bool:
        """Go on with another rule of what is ours, and another shared device; tell whether it is another one.

        All that is on the former is forgotten.
        """
        self._owns = owns
        if shared == self._shared:
            return False
        former, self._shared = self._shared, shared
        self._other = {self._device: shared, shared: self._device} if self._device and shared else {}
        if former is not None:
            self.forget(former)
        return True

    # What should be there

    def want(self, group: str, entries: Sequence[Entry]) -> None:
        """Replace all that the group wants; an empty sequence ends the group.

        Where two groups want the same key the later call wins, and the earlier group's end does not take it away.
        """
        touched = [entry.key for entry in self._groups.get(group, ())]
        for key, entry in zip(touched, self._groups.pop(group, ()), strict=True):
            if self._desired.get(key) is entry:
                del self._desired[key]
        if entries:
            self._groups[group] = tuple(entries)
            for entry in entries:
                self._desired[entry.key] = entry
                self._held.discard(entry.key)
                self._waiting.discard(entry.key)
                touched.append(entry.key)
        for key in touched:
            self._compare(key)

    def hold(self) -> int:
        """Keep what is there of peers now, wanted or not, until it is wanted again or `release` is called; count it."""
        held = [key for key in self._actual if key[0] != "address"]
        self._held.update(held)
        for key in held:
            self._compare(key)
        return len(held)

    def release(self) -> None:
        """End `hold`: what nobody wants may be deleted."""
        held, self._held = self._held, set()
        for key in held:
            self._compare(key)

    # What is there

    def begin_reading(self) -> None:
        """Start a full reading of the kernel: what is not observed until `end_reading` is gone."""
        self._observed = set()

    def observe(self, entries: Iterable[Entry]) -> None:
        """Take in part of a reading, or what somebody else made or changed."""
        for entry in entries:
            key = entry.key
            known = key in self._actual
            if (entry.device != self._shared and (known or key in self._desired)) or self._owns(entry):
                self._set_actual(key, entry)
            elif known:
                self.gone(key)  # Somebody has put his own in its place.

    def end_reading(self) -> None:
        """Finish a reading: forget what it did not show."""
        observed, self._observed = self._observed or set(), None
        for key in [key for key in self._actual if key not in observed]:
            self.gone(key)

    def gone(self, key: Key) -> None:
        """Take in that an entry is not there any more, and with a nexthop object the routes by way of it."""
        if key[0] == "nexthop":
            _, device, gateway, _ = key
            # They lead to the subnet whose base is their gateway, whatever its length.
            routes = (("route", device, gateway, length) for length in range(8 * len(gateway) + 1))
            for route in [route for route in routes if route in self._actual]:
                del self._actual[route]
                self._compare(route)  # Not by others: it is not the route that somebody may want away.
        if self._actual.pop(key, None) is not None or key in self._refused:
            self._compare(key, by_others=True)
        if self._refused and (rival := self._rival(key)) in self._refused:
            self._compare(rival)

    def forget(self, device: str) -> None:
        """Take in that a device is gone or was flushed: with it went all its entries."""
        for key in [key for key in self._actual if key[1] == device]:
            self.gone(key)

    # What to do

    def take(self, limit: int, *, prune: bool) -> list[Operation]:
        """Return up to `limit` operations in the order in which they should be done.

        Call `done` with them before the next `take`. Nothing is deleted unless `prune`.
        """
        operations = [self._update(key) for key in islice(self._walk(self._updates, ORDER), limit)]
        if prune:
            doomed = islice(self._walk(self._deletions, ORDER[::-1]), limit - len(operations))
            operations += [Operation(Verb.REMOVE, self._actual[key]) for key in doomed]
        return operations

    def done(self, operations: Sequence[Operation], failures: Sequence[Failure]) -> None:
        """Take in what the kernel answered. What failed waits until `retry`, or until its desired value changes."""
        failed = {id(failure.operation) for failure in failures}
        for operation in operations:
            key = operation.entry.key
            if id(operation) in failed:
                self._updates[key[0]].pop(key, None)
                self._deletions[key[0]].pop(key, None)
                self._refused[key] = None
            elif operation.verb is Verb.REMOVE:
                self.gone(key)
            else:
                self._set_actual(key, operation.entry)
                if (rival := self._rival(key)) != key and rival in self._actual:
                    self.gone(rival)

    def take_undone(self) -> list[Entry]:
        """Return what others undid since the last call and is pending: as it is wanted, or as it is there and not."""
        undone, self._undone = self._undone, {}
        wanted = [self._desired[key] for key in undone if key in self._updates[key[0]]]
        return wanted + [self._actual[key] for key in undone if key in self._deletions[key[0]]]

    def put_off(self, key: Key) -> None:
        """Let a key wait until `retry`, or until its desired value changes, whatever becomes of it meanwhile."""
        self._waiting.add(key)
        self._compare(key)

    def retry(self) -> None:
        """Make everything that failed or was put off pending again."""
        waiting, self._waiting = self._waiting, set()
        for key in [*self._refused, *waiting]:
            self._compare(key)

    @staticmethod
    def _walk(pending: dict[str, dict[Key, None]], order: Sequence[str]) -> Iterator[Key]:
        return (key for kind in order for key in pending[kind])

    def _update(self, key: Key) -> Operation:
        there = key in self._actual or self._rival(key) in self._actual
        return Operation(Verb.REPLACE if there else Verb.ADD, self._desired[key])

    def _rival(self, key: Key) -> Key:
        """Return the key of the same route on the other device; the key itself if there is none."""
        kind, device, subnet, length = key
        other = self._other.get(device) if kind == "route" else None
        return key if other is None else (kind, other, subnet, length)

    def _set_actual(self, key: Key, entry: Entry) -> None:
        self._actual[key] = entry
        if self._observed is not None:
            self._observed.add(key)
        self._compare(key, by_others=True)

    def _compare(self, key: Key, *, by_others: bool = False) -> None:
        """Bring what is pending for a key up to date. It runs twice for every entry there is: kept short."""
        want, have = self._desired.get(key), self._actual.get(key)
        updates, deletions = self._updates[key[0]], self._deletions[key[0]]
        if self._refused:
            self._refused.pop(key, None)
        waits = bool(self._waiting) and key in self._waiting
        before = key in updates or key in deletions
        if want is not None and want is not have and want != have and not waits:
            updates[key] = None
        else:
            updates.pop(key, None)
        if want is None and have is not None and key not in self._held and not waits:
            deletions[key] = None
        else:
            deletions.pop(key, None)
        if by_others and not before and (key in updates or key in deletions):
            self._undone[key] = None
