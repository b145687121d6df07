"""The life of our own lease, decided: what we hold, what the registry shows and the time go in, one step comes out.

    Renew        keep it alive: a keepalive, seen by nobody else; of a reservation the sign that its holder lives
    Wait(until)  nothing to do before then
    Written      what we were to say is there already: the answer to our write was lost
    Contest      look once more whether another lease overlaps ours
    Republish    our key is as it should be, and is to say something else from now on
    Restore      our key is there with somebody else's value: write ours again
    Adopt        our key is as it should be, and only its bookkeeping changed (an operator made it a reservation)
    Reclaim      our key is gone: take the same subnet again if it is still free
    GiveUp       our key was gone, and another host has taken the subnet since, in one family or both

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from flanneld_py.registry.model import Lease, LeaseAttrs, Record

TTL = 86_400
"""Seconds; flannel's, and ours unless told otherwise (`--lease-ttl`)."""

PERIOD = 60.0
"""Seconds between keepalives. Far more often than the TTL asks for: so the remaining TTL tells who is alive."""

YOUTH = 300
"""Seconds for which a lease counts as just made: long enough for a restart and the look a minute after it."""

RETRY = 5.0
"""Seconds until a failed keepalive is tried again."""


@dataclass(frozen=True, slots=True)
class Held:
    """Our lease as we wrote it; `renewed` is when it last had its full TTL, `attempted` when we last tried to renew."""

    lease: Lease
    renewed: float
    attempted: float
    ttl: int = TTL


@dataclass(frozen=True, slots=True)
class Renew:
    """Send a keepalive now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until`, unless the registry shows something new."""

    until: float


@dataclass(frozen=True, slots=True)
class Written:
    """Go on with this record: it is what we wrote, though we were not told so."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Contest:
    """Ask the registry for a lease that overlaps ours."""


@dataclass(frozen=True, slots=True)
class Republish:
    """Write our lease with these attributes."""

    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class Restore:
    """Write our value again, over exactly this record."""

    over: Record


@dataclass(frozen=True, slots=True)
class Adopt:
    """Go on with this record, which is ours with other bookkeeping."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Create our key again."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave the subnet to whom it belongs now, and get another."""

    to: Lease


Step = Renew | Wait | Written | Contest | Republish | Restore | Adopt | Reclaim | GiveUp


def next_step(
    held: Held,
    shown: Record | None,
    now: float,
    *,
    current: bool,
    replaced: bool = False,
    rival: Lease | None = None,
    wanted: Lease | None = None,
    second_look: float = float("inf"),
) -> Step:
    """Decide what to do about our lease.

    `shown` is the record at our key. It counts only if it is `current`: as new as our own last write, or newer.
    `replaced` says that it is in another store than the one we wrote to, whose revisions do not compare with ours.
    `rival` is a lease at another key that overlaps ours, and matters if ours is gone. `wanted` is our lease with what
    it is to say from now on, if that is not what it says; `second_look` is when to look for an overlapping lease.
    """
    lease = held.lease
    wanted = wanted if wanted is not None else lease
    if current:
        if isinstance(shown, Lease) and shown == wanted != lease:
            return Written(shown)
        if now >= second_look:
            return Contest()
        if shown is None:
            return Reclaim() if rival is None else GiveUp(rival)
        if shown != lease:
            return GiveUp(shown) if _belongs_to_another(shown, lease, replaced) else Restore(shown)
        if isinstance(shown, Lease) and _bookkeeping(shown) != _bookkeeping(lease):
            return Adopt(shown)
    if wanted.attrs != lease.attrs:
        return Republish(wanted.attrs)
    due = held.renewed + PERIOD
    if held.attempted > held.renewed:
        due = held.attempted + RETRY
    if now >= due:
        return Renew()
    return Wait(min(due, second_look) if current else due)


def _bookkeeping(lease: Lease) -> tuple[int, int]:
    return lease.mod_revision, lease.lease_id


def _belongs_to_another(shown: Record, ours: Lease, replaced: bool) -> TypeGuard[Lease]:
    """Tell a key that was deleted and taken by another host from one that somebody only wrote over."""
    return (
        isinstance(shown, Lease)
        and (replaced or shown.create_revision > ours.create_revision)
        and shown.address != ours.address
    )


def remaining(held: Held, now: float) -> float:
    """Return how many seconds our lease lives on without a renewal; infinite for a reservation."""
    return held.renewed + held.ttl - now if held.lease.lease_id else float("inf")


def looks_alive(remaining_ttl: int, granted_ttl: int) -> bool:
    """Tell from a lease's TTL whether its holder may be running: it renewed within the last three periods.

    Only for holders that renew as we do; flannel's daemon renews once a day.
    """
    return granted_ttl - remaining_ttl <= 3 * PERIOD
