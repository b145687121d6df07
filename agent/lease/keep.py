"""Keep our own lease: alive, as we wrote it, and ours.

keepalive every minute, seen by nobody; and repair: our key gone, overwritten, made a reservation, taken by another
(registry/lifetime.py decides, this does)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.lease.claim import Claimer
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.registry.allocate import Network, overlapping
from flanneld_py.registry.claims import AddressTaken
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.lifetime import (
    PERIOD,
    RETRY,
    Adopt,
    Contest,
    GiveUp,
    Held,
    Reclaim,
    Renew,
    Republish,
    Restore,
    Wait,
    Written,
    next_step,
    remaining,
)
from flanneld_py.registry.model import Lease, LeaseAttrs, Record, Rejected, Subnets
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Conflict, LeaseGone, RegistryError
from flanneld_py.registry.view import LeaseView


class Keeper:
    """Our own lease, from the claim to the agent's end. `margin` in seconds (`--subnet-lease-renew-margin`)."""

    def __init__(
        self,
        registry: Registry,
        view: LeaseView,
        list_leases: Callable[[], Awaitable[None]],
        clock: Clock,
        rng: Random,
        claimer: Claimer,
        *,
        margin: float,
    ) -> None:
        self._registry = registry
        self._view = view
        self._list = list_leases
        self._clock = clock
        self._rng = rng
        self._claimer = claimer
        self._margin = margin
        self._held: Held | None = None
        self._wake = asyncio.Event()
        self._trouble = OnChange(clock)
        self._generation = 0
        self._overdue_said = False
        self._contested: Subnets | None = None
        self._second_look = float("inf")
        self._revised: LeaseAttrs | None = None

    @property
    def lease(self) -> Lease | None:
        """Our lease as we last wrote it."""
        return self._held.lease if self._held is not None else None

    def revise(self, attrs: LeaseAttrs) -> None:
        """Publish something else with our lease, as soon as the registry takes it: the underlay has changed."""
        self._revised = attrs
        self._wake.set()

    def mark(self) -> None:
        """Look at the view again soon: our key may have changed."""
        self._wake.set()

    def check(self) -> None:
        """Renew at once: the registry was away, and may have come back as another one."""
        if self._held is not None:
            long_ago = self._clock.now() - PERIOD
            self._held = replace(self._held, renewed=min(self._held.renewed, long_ago), attempted=long_ago)
        self._wake.set()

    @property
    def overdue(self) -> bool:
        """Whether our lease could not be renewed for so long that it ends within the margin."""
        return self._held is not None and remaining(self._held, self._clock.now()) < self._margin

    async def acquire(
        self, config: NetworkConfig, attrs: Callable[[Lease | None], LeaseAttrs], previous: tuple[Network, ...]
    ) -> Lease:
        """Claim a lease, however long it takes, and hold it from then on."""
        self._revised, self._config = None, config
        lease = await self._claimer.claim(config, attrs, previous, self._contested)
        self._contested = None
        self._hold(lease, look=True)
        return lease

    async def keep(self, lost: Callable[[Lease], Awaitable[None]]) -> Never:
        """Keep the lease alive and as we wrote it, for good.

        `lost` is called when another host has taken our subnet: it has to get another lease.
        """
        backoff = Backoff(0.5, 60.0, self._rng)
        while True:
            assert self._held is not None, "keep() before acquire()"
            lease = self._held.lease
            self._wake.clear()
            now = self._clock.now()
            shown = self._view.written(self._registry.key(lease.subnets))
            replaced = self._view.generation != self._generation
            current = replaced or self._view.revision >= lease.mod_revision
            others = self._view.leases().values() if shown is None and current else ()
            rivals = overlapping(lease.subnets, others, self._config)
            rival = next(iter(rivals), None)
            wanted = self._as_revised(lease)
            step = next_step(
                self._held,
                shown,
                now,
                current=current,
                replaced=replaced,
                rival=rival,
                wanted=wanted,
                second_look=self._second_look,
            )
            moves = wanted.address != lease.address
            try:
                if isinstance(step, Adopt | Restore) and shown is not None:
                    step = step if await self._claimer.holds(lease, shown) else GiveUp(lease)
                dead = None
                if moves and isinstance(step, Adopt | Republish | Restore | Reclaim):
                    dead = await self._claimer.vacant(lease)
                match step:
                    case Written(shown_lease):
                        self._hold(shown_lease)
                        continue
                    case Contest():
                        if not await self._contest(lease, now):
                            continue
                        await lost(lease)
                    case Republish(attrs):
                        owner = self._claimer.owner(lease.subnets)
                        self._hold(await self._registry.update(lease, attrs, owner, dead))
                        log.info("lease republished", **facts(subnet=lease.subnets, address=wanted.address))
                        backoff.reset()
                        continue
                    case Wait(until):
                        await self._clock.wait(self._wake, until)
                        continue
                    case Renew():
                        if await self._renew(lease, now):
                            backoff.reset()
                            continue
                    case Adopt(shown_lease):
                        kind = "a reservation" if shown_lease.lease_id == 0 else "a lease"
                        log.info(
                            f"our lease was written again as {kind}; going on with it", **facts(subnet=lease.subnets)
                        )
                        if shown_lease.lease_id != lease.lease_id:  # What is beside it has to live as long.
                            owner = self._claimer.owner(lease.subnets)
                            shown_lease = await self._registry.update(shown_lease, wanted.attrs, owner, dead)
                        self._hold(shown_lease)
                        continue
                    case Restore(over):
                        log.error(
                            "somebody else wrote to our lease, writing it again: two hosts with one address or subnet?",
                            **facts(subnet=lease.subnets, found=_in_words(over)),
                        )
                        owner = self._claimer.owner(lease.subnets)
                        self._hold(await self._registry.overwrite(wanted, over, owner, dead))
                    case Reclaim():
                        await self._reclaim(wanted, dead or ())
                    case GiveUp():
                        await lost(lease)
            except AddressTaken as error:
                if moves:  # Ours is not at stake, only what it is to say.
                    self._trouble.warn("cannot write our lease, trying again", error)
                else:
                    await lost(lease)
            except Conflict:
                pass  # The view is about to show why.
            except RegistryError as error:
                self._trouble.warn("cannot write our lease, trying again", error)
            await self._stay_alive()
            await self._clock.sleep(backoff.next())

    async def _contest(self, lease: Lease, now: float) -> bool:
        """Look at our lease once more, a minute after the start: does another one overlap it after all?

        Flannel's daemons take what they found free some seconds earlier. Returns whether ours has to give way: only
        one that was made just now does, before or since a restart.
        """
        self._second_look = float("inf")
        try:
            rival = await self._claimer.rival(lease, self._view.leases().values(), self._config)
        except RegistryError as error:
            self._trouble.warn("cannot find out whether our lease overlaps another, trying again", error)
            self._second_look = now + RETRY
            return False
        if rival is None:
            return False
        if self._claimer.just_made:
            self._contested = lease.subnets
            return True
        log.error(
            "our subnet overlaps another lease: two hosts use the same addresses, delete one of the two leases",
            **facts(subnet=lease.subnets, other=rival.subnets, address=rival.address),
        )
        return False

    async def _renew(self, lease: Lease, now: float) -> bool:
        """Renew our lease; return False if it is gone, which may be said of the one made in its place as well."""
        assert self._held is not None
        try:
            await self._registry.keepalive(lease, self._claimer.owner(lease.subnets))
        except LeaseGone:
            await self._find_out(lease, now)
            return False
        except RegistryError as error:
            left = remaining(self._held, now)
            self._trouble.warn("our lease cannot be renewed; traffic goes on, trying again", error)
            self._held = replace(self._held, attempted=now)
            self._say_overdue(left)
        else:
            if self._trouble.over():
                log.info("our lease is renewed again", **facts(subnet=lease.subnets))
            self._overdue_said = False
            self._held = replace(self._held, renewed=now, attempted=now)
        return True

    async def _stay_alive(self) -> None:
        """Renew our lease, if it is time to, though something else is to be done about it, which may fail for long.

        An etcd that is out of space, or denies us what is beside the lease, takes keepalives all the same.
        """
        assert self._held is not None
        now, lease = self._clock.now(), self._held.lease
        if now < self._held.renewed + PERIOD:
            return
        try:
            await self._registry.keepalive(lease, self._claimer.owner(lease.subnets))
        except RegistryError:  # That something is wrong was said just now.
            self._say_overdue(remaining(self._held, now))
        else:
            self._overdue_said = False
            self._held = replace(self._held, renewed=now, attempted=now)

    def _say_overdue(self, left: float) -> None:
        if self.overdue and not self._overdue_said:
            self._overdue_said = True
            log.error(
                "our lease ends soon if the registry stays away; then others may take our subnet", **facts(s=int(left))
            )

    async def _find_out(self, lease: Lease, now: float) -> None:
        """Look closer: the etcd lease of our key is gone.

        The watch tells at once that the key went with it. If it does not, what we see is not what is there: the store
        was replaced by one that looks the same (a wiped etcd keeps its cluster id), so it is listed.
        """
        log.warning("our lease has ended in the registry", **facts(subnet=lease.subnets))
        assert self._held is not None
        self._held = replace(self._held, attempted=now, renewed=min(self._held.renewed, now - 1))
        key = self._registry.key(lease.subnets)
        await self._clock.wait(self._wake, now + 1)
        if self._view.written(key) is None:
            return
        self._view.distrust()
        await self._list()
        shown = self._view.lease(key)
        if shown == lease and shown.lease_id == lease.lease_id:
            self._hold(await self._registry.overwrite(lease, shown, self._claimer.owner(lease.subnets)))

    async def _reclaim(self, lease: Lease, dead: Collection[Lease]) -> None:
        """Take our subnet again; if somebody else was quicker, the view is about to show whom. Raises Conflict."""
        log.warning(
            "our lease is gone from the registry, claiming the same subnet again", **facts(subnet=lease.subnets)
        )
        owner = self._claimer.owner(lease.subnets, made=True)
        again = await self._registry.create(lease.subnets, lease.attrs, owner, dead=dead)
        log.info("lease claimed again", **facts(subnet=again.subnets))
        self._hold(again, look=True)

    def _as_revised(self, lease: Lease) -> Lease:
        """Return our lease with what it is to say now; fields that are not ours stay."""
        if self._revised is None:
            return lease
        return replace(lease, attrs=replace(self._revised, extra=lease.attrs.extra))

    def _hold(self, lease: Lease, *, look: bool = False) -> None:
        now = self._clock.now()
        if look:
            self._second_look = now + PERIOD
        self._generation = self._view.generation
        # A lease that is only reused may be near its end: renew at once.
        self._held = Held(lease, renewed=now - PERIOD, attempted=now - PERIOD, ttl=self._registry.ttl)


def _in_words(record: Record) -> str:
    return record.reason if isinstance(record, Rejected) else f"a lease of {record.address}"
