"""Entries that cannot be kept as they should be at present, and when to try them all again.

    refused      the kernel says no
    contested    somebody undoes what we did to it as soon as it is done

Either waits, and holds up nothing else. There is one pause for all of them, which grows. What is undone now and then is
put right at once; only what is undone again within CALM, more than AT_ONCE times, is contested, until nobody has
touched it for OVER. Each entry is logged once, and a flood as one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.contested import AT_ONCE, CALM, OVER, Undone
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.delta import Tracker
from flanneld_py.encap.state import Entry, Failure, Key, describe

SHOWN = 10
"""How many entries are named, in the log and in the status: as many as somebody reads."""


class Postponed:
    """What waits in a Tracker. `at` is when to call `try_again`, in seconds of the clock."""

    def __init__(self, tracker: Tracker, rng: Random) -> None:
        self._tracker = tracker
        self._backoff = Backoff(0.02, 30.0, rng)
        self._refused: dict[Key, Failure] = {}
        self._undone: dict[Key, tuple[Entry, Undone]] = {}
        self._contested = 0
        self._look_at = float("inf")
        self.at = float("inf")

    @property
    def refused(self) -> list[tuple[str, str]]:
        """What the kernel refuses, in an operator's words, and why."""
        return [(describe(failure.operation.entry), failure.message) for failure in self._refused.values()]

    @property
    def contested(self) -> list[str]:
        """What somebody keeps changing, in an operator's words."""
        return [describe(entry) for entry, undone in self._undone.values() if undone.contested]

    @property
    def due(self) -> float:
        """When to look again, though nobody marks anything."""
        return min(self.at, self._look_at)

    def try_again(self, now: float) -> None:
        """Let everything that waits be tried once more."""
        self.at = float("inf")
        for key in self._tracker.waiting:
            self._undone[key][1].at = now
            self._look_at = min(self._look_at, now + OVER)
        self._tracker.retry()

    def pause(self, now: float) -> None:
        """Try everything again after the next pause, at the latest."""
        self.at = min(self.at, now + self._backoff.next())

    def look(self, now: float) -> None:
        """Take in what others have undone; what is contested waits."""
        if now >= self._look_at:
            self._forget(now)
        for entry in self._tracker.take_undone():
            _, undone = self._undone.get(entry.key) or (entry, Undone())
            self._undone[entry.key] = entry, undone
            self._look_at = min(self._look_at, now + CALM)
            if undone.again(now):
                self._tracker.put_off(entry.key)
                if undone.times == AT_ONCE + 1:
                    self._name(entry)

    def note(self, failures: Iterable[Failure]) -> None:
        """Take in what the kernel has refused just now."""
        for failure in failures:
            entry = failure.operation.entry
            if entry.key in self._refused:
                continue
            if len(self._refused) < SHOWN:
                verb = failure.operation.verb.value
                log.warning(f"cannot {verb} {describe(entry)}, trying again", **facts(reason=failure.message))
            elif len(self._refused) == SHOWN:
                log.warning("the kernel refuses more entries, not shown one by one")
            self._refused[entry.key] = failure
            # One that is refused for good must not delay the others' next try.
            self._backoff.reset()
            self.at = float("inf")

    def settle(self, now: float) -> None:
        """Take in that all that does not wait was done; say when to try the rest again."""
        before, refused = len(self._refused), self._tracker.refused
        self._refused = {key: failure for key, failure in self._refused.items() if key in refused}
        if before and not self._refused:
            log.info("the kernel has taken everything that it refused before", **facts(entries=before))
        if refused or self._tracker.waiting:
            if self.at == float("inf"):
                self.pause(now)
        elif not self._contested:
            self._backoff.reset()

    def _name(self, entry: Entry) -> None:
        self._contested += 1
        if self._contested <= SHOWN:
            log.warning(
                f"somebody else keeps changing {describe(entry)}: it is put right with pauses; find out who it is",
                **facts(watch=MONITORS[entry.key[0]]),
            )
        elif self._contested == SHOWN + 1:
            log.warning("somebody else keeps changing more entries, not shown one by one")

    def _forget(self, now: float) -> None:
        """Forget what nobody has touched for a while."""

        def ends(entry: Entry, undone: Undone) -> float:
            since = now if entry.key in self._tracker.waiting else undone.at
            return since + (OVER if undone.contested else CALM)

        self._undone = {key: each for key, each in self._undone.items() if ends(*each) > now}
        self._look_at = min((ends(*each) for each in self._undone.values()), default=float("inf"))
        before, self._contested = self._contested, sum(undone.contested for _, undone in self._undone.values())
        if before and not self._contested:
            log.info("nobody changes our kernel entries any more", **facts(entries=before))


MONITORS = {
    "address": "ip monitor address",
    "fdb": "bridge monitor fdb",
    "neighbour": "ip monitor neigh",
    "nexthop": "ip monitor nexthop",
    "route": "ip monitor route",
}
"""What shows an operator the changes of each kind of entry."""
