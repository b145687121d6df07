"""Bring the kernel to what the registry says, and keep it there: the one loop that touches kernel state.

    marks -> wait -> settle -> device there and right?            (pyroute2, seldom)
      ^                        kernel read, if a reading is due   (all entries on our device)
      |                        changed leases -> peers -> wanted  (pure, in portions)
      |                        take -> apply -> done ...          (about 100 entries at a time)
      +-- a pause for what failed, or is undone at once; the rest is not held up

A mark says "look again", never what to do. Marks come from the lease view, from kernel events, from a timer every few
minutes, and from failures. Between two portions the event loop runs.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff, Pace
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.contested import Undone
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.reconcile.competing import CompetingRoutes
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.hold import Hold
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.reconcile.onlink import OnLinkVerdicts
from flanneld_py.agent.reconcile.postponed import Postponed
from flanneld_py.agent.reconcile.repairs import Repairs
from flanneld_py.agent.reconcile.sink import PeerSink
from flanneld_py.agent.reconcile.unused import Unused
from flanneld_py.encap.delta import Tracker
from flanneld_py.encap.kernel import Event, Gone, Kernel, KernelError, LinkChanged, Lost, Rerouted, Seen
from flanneld_py.encap.linkstep import LinkStep, link_step
from flanneld_py.encap.peers import Peers
from flanneld_py.encap.state import ForeignLink, Key, Operation, OurLink, VxlanLink
from flanneld_py.registry.view import LeaseView

SETTLE = 0.002
"""Seconds to let changes that belong together arrive; short against the 10 ms that a new peer may take."""

READ_EVERY = 300.0
"""Seconds between readings of the kernel that nothing asked for, jittered: what no event told is found then."""

DEVICE_GONE = (errno.ENODEV, errno.ENETDOWN)

PORTION = 100
"""How many leases or entries are worked on before other tasks run: a few milliseconds."""

MONITOR_LINK = "find out who it is: ip monitor link"

OWN = "own"
"""The tracker's group for what is there without any peer; no lease key looks like this."""


class Reconciler:
    """Drive one device, if the backend has one, everything on it, and our routes on the underlay interface."""

    def __init__(
        self,
        kernel: Kernel,
        view: LeaseView,
        wanted: Desired,
        clock: Clock,
        rng: Random,
        carrier: PeerSink,
        on_link: OnLinkVerdicts,
        neighbours: Neighbours,
    ) -> None:
        self._kernel, self._view, self._carrier = kernel, view, carrier
        self._clock, self._rng = clock, rng
        self._wake = asyncio.Event()
        self._on_link, self._neighbours = on_link, neighbours
        self._tracker = Tracker(wanted.backend.owns, wanted.backend.device, wanted.backend.parent)
        self._hold = Hold(view, self._tracker, carrier)
        self._link_backoff = Backoff(0.1, 30.0, rng)
        self._read_backoff, self._pace = Backoff(0.02, 30.0, rng), Pace(0.1, 10.0, rng)
        self.postponed, self.beside = Postponed(self._tracker, rng), CompetingRoutes(kernel, self._tracker)
        self._link_undone, self.link_failure = Undone(), ""
        self._lacking, self._awaiting = False, False
        self._unused = Unused()
        self._retry_at = float("inf")
        self._look_at_link, self._meddled = True, False
        self._read_at = 0.0
        self._repairs, self._link_repairs = Repairs(), Repairs("our device")
        self.surveyed = asyncio.Event()
        """Set once every lease of the first listing has been looked at, and told."""
        self.ready = asyncio.Event()
        self.passed: Callable[[], None] = lambda: None
        """Called after each pass: what is told of us may be another now."""
        self._want(wanted)

    # Marks

    def mark(self) -> None:
        """Look again: the lease view has changed."""
        self._wake.set()

    def want(self, wanted: Desired) -> None:
        """Change what is wanted of this host: another subnet, another underlay. Same device name."""
        self._want(wanted)
        self._view.start_over(wanted.backend.family.name)
        self._look_at_link = True
        self._wake.set()

    def on_events(self, events: Sequence[Event]) -> None:
        """Take in what others did to the kernel."""
        backend = self._wanted.backend
        for event in events:
            match event:
                case Seen(entry) if self._concerns(entry.key):
                    self._tracker.observe((entry,))
                    self._meddled |= entry.key in self._tracker.actual
                case Gone(key) if self._concerns(key):
                    self._meddled |= key in self._tracker.actual
                    self._tracker.gone(key)
                case LinkChanged(name, present) if name in (backend.device, backend.parent):
                    self._on_link_changed(name, present)
                case Rerouted() if backend.asks_on_link:
                    self._on_link.mark()
                case Lost():
                    self._look_at_link, self._read_at = True, min(self._read_at, self._pace.at(self._clock.now()))
                case _:
                    continue
            self._wake.set()

    def _concerns(self, key: Key) -> bool:
        """Tell whether a key may be ours: of the underlay interface's tables only routes are, not each neighbour."""
        backend = self._wanted.backend
        return key[1] == backend.device or (key[1] == backend.parent and key[0] == "route")

    def _on_link_changed(self, name: str, present: bool) -> None:
        backend = self._wanted.backend
        self._look_at_link = True
        if not present:
            self._tracker.forget(name)
        if name == backend.device or backend.asks_on_link:
            self._read_at = 0.0
        if name == backend.parent and self.link_failure:
            self._retry_at = self._clock.now()  # It may have failed for want of this very interface.

    # State for people

    @property
    def peers(self) -> int:
        """How many leases are used."""
        return len(self._peers.used)

    @property
    def rejected(self) -> dict[str, str]:
        """Why leases are not used, or only in their last readable form, by key."""
        return {**self._peers.rejected, **{key: record.reason for key, record in self._view.unreadable.items()}}

    # The loop

    async def run(self) -> Never:
        """Reconcile for good."""
        while True:
            # Without a device there is nothing to read or release.
            idle = self._lacking or self._awaiting
            ask_at = self._on_link.due if self._wanted.backend.asks_on_link else float("inf")
            due = min(self.postponed.due, self._read_at, self._hold.until, ask_at) if not idle else float("inf")
            await self._clock.wait(self._wake, min(due, self._retry_at))
            await self._clock.sleep(max(SETTLE, self._repairs.patience))
            self._wake.clear()
            await self._reconcile()
            self.passed()

    async def _reconcile(self) -> None:
        now = self._clock.now()
        if (self._lacking and now < self._retry_at) or (self._awaiting and not self._look_at_link):
            return
        self.postponed.look(now)
        if retry := now >= min(self._retry_at, self.postponed.at):
            # What failed may have failed because we are wrong about what is there.
            self._retry_at, self._read_at, self._look_at_link = float("inf"), 0.0, True
            self.postponed.try_again(now)
        if self._look_at_link and not await self._ensure_link(retry=retry):
            if self._awaiting:
                await self._take_leases()  # The process that makes the device is fed before it does.
            return
        if now >= self._read_at:
            await self._read(now)
            if self._wanted.backend.asks_on_link:
                self._on_link.mark()
        if self._wanted.backend.asks_on_link and now >= self._on_link.due:
            self._view.again(self._wanted.backend.family.name, await self._on_link.refresh(self._view.leases()))
        await self._take_leases()
        await self._apply()
        self.beside.look(now)
        self.ready.set()

    async def _ensure_link(self, *, retry: bool) -> bool:
        """Make the device what it should be; False if there is none to work on, and it is to be tried again later."""
        self._look_at_link = False
        step, now, want = LinkStep.NOTHING, self._clock.now(), self._wanted.link
        if want is None:
            return True
        try:
            have = self._kernel.link(want.name)
            step = link_step(have, want)
            if step.acts and not retry and self._link_undone.waits(now):
                raise KernelError("somebody else undoes it as soon as it is done: find out who it is (ip monitor link)")
            match step:
                case LinkStep.CHANGE:
                    assert have is not None
                    assert not isinstance(have, ForeignLink)
                    await self._kernel.change_link(have, want)
                case LinkStep.CREATE | LinkStep.RECREATE | LinkStep.MAKE_ROOM:
                    await self._kernel.delete_link(want.name, want)
                    if isinstance(want, VxlanLink):
                        await self._kernel.create_link(want)
        except KernelError as error:
            if str(error) != self.link_failure:
                self.link_failure = str(error)
                log.error("the device cannot be made, trying again", **facts(device=want.name, reason=error))
            self._retry_at = now + self._link_backoff.next()
            # One that is up and cannot be changed still carries packets: its underlay may be gone for a while.
            self._lacking = step is not LinkStep.CHANGE or not (isinstance(have, OurLink) and have.up)
            return not self._lacking
        self._lacking = False
        if step.acts:
            self._link_undone.again(now)
        if not self._link_undone.contested:
            self.link_failure = ""
            self._link_backoff.reset()
        if step is not LinkStep.NOTHING:
            self._read_at = 0.0
            self.postponed.try_again(now)
        self._awaiting = step in (LinkStep.AWAIT, LinkStep.MAKE_ROOM)
        if step.acts and not self._link_undone.contested and self._link_repairs.seldom(now, do=MONITOR_LINK):
            log.info(f"device: {step.value}", **facts(device=want.name, mtu=want.mtu))
        return not self._awaiting  # Its process makes it; then there is an event.

    async def _read(self, now: float) -> None:
        self._read_at = now + READ_EVERY * self._rng.uniform(0.75, 1.25)
        self._tracker.begin_reading()
        try:
            for entries in self._kernel.dump():
                self._tracker.observe(entries)
                await self._clock.sleep(0)
        except KernelError as error:
            log.warning("the kernel's tables cannot be read, trying again", **facts(reason=error))
            self._read_at = now + self._read_backoff.next()
        else:
            self._read_backoff.reset()
            self._tracker.end_reading()

    async def _take_leases(self) -> None:
        self._hold.look(self._clock.now())
        changed = self._view.take_changed(self._wanted.backend.family.name)
        for start in range(0, len(changed), PORTION):
            keys = changed[start : start + PORTION]
            verdicts = self._peers.update((key, self._view.records.get(key)) for key in keys)
            for key, entries in verdicts.items():
                self._tracker.want(key, entries)
            self._carrier.update((key, self._peers.peer(key)) for key in verdicts)
            for key in verdicts:
                unreadable = self._view.unreadable.get(key)
                reason = unreadable.reason if unreadable else self._peers.rejected.get(key)
                self._unused.report(key, reason, self._clock.now(), used=key in self._peers.used)
            await self._clock.sleep(0)
            self._hold.look(self._clock.now())
        self.surveyed.set()

    async def _apply(self) -> None:
        applied = 0
        while operations := self._take():
            failures = self._kernel.apply(operations)
            self._tracker.done(operations, failures)
            applied += len(operations) - len(failures)
            if any(failure.errno in DEVICE_GONE for failure in failures):
                # Its own event is on its way; every further entry would fail as well.
                self._look_at_link = True
                self.postponed.pause(self._clock.now())
                return
            self.postponed.note(failures)
            await self._clock.sleep(0)
            self._hold.look(self._clock.now())
        self.postponed.settle(self._clock.now())
        if self._wanted.backend.asks_on_link:
            self._neighbours.tell(self._wanted.backend.family, self._tracker.neighbours)
        if applied and self._meddled:
            self._repairs.note(applied, self._clock.now())
        elif applied:
            failing = len(self.postponed.refused)
            log.debug("kernel brought up to date", **facts(entries=applied, peers=self.peers, failing=failing))
        self._meddled = False

    def _take(self) -> list[Operation]:
        self.postponed.look(self._clock.now())
        return self._tracker.take(PORTION, prune=self._view.synced)

    def _want(self, wanted: Desired) -> None:
        self._wanted = wanted
        if self._tracker.move_to(wanted.backend.owns, wanted.backend.parent):
            self._read_at = 0.0
        self._peers = Peers(wanted.config, wanted.backend, wanted.own)
        self._tracker.want(OWN, wanted.backend.own_entries(wanted.own))
