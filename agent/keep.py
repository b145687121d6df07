"""Get our own lease and keep it: the only writer to the registry.

    acquire   config -> list -> choose -> write by transaction; somebody was first: list and choose again
    keep      keepalive every minute, seen by nobody; and repair: our key gone, overwritten, made a reservation

Who is who. A lease names no host, only a public address; two hosts can claim the same one (a cloned VM, Vagrant's
10.0.2.15). So each of our hosts also writes an Owner, and where a lease seems ours but its Owner is somebody else,
the lease's TTL tells whether that host is alive: it renews every minute. A dead owner is replaced, a living one is
reported and left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.log import facts, log
from flanneld_py.registry.allocate import Claim, Create, Reuse, choose
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.lifetime import (
    PERIOD,
    Adopt,
    GiveUp,
    Held,
    Reclaim,
    Renew,
    Restore,
    Wait,
    looks_alive,
    next_step,
    remaining,
)
from flanneld_py.registry.model import Lease, LeaseAttrs, Owner, Subnets
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Conflict, HistoryLost, LeaseGone, RegistryError
from flanneld_py.registry.view import LeaseView


class DuplicateHost(RegistryError):
    """A living host holds what we would take for ours; the text says which and what to do."""


class Keeper:
    """Our own lease, from claiming it to the agent's end.

    `attrs` makes what we publish from the lease we had, if any; `obtained` hears of every lease we get.
    """

    def __init__(
        self,
        registry: Registry,
        view: LeaseView,
        list_leases: Callable[[], Awaitable[None]],
        clock: Clock,
        rng: Random,
        identity: Identity,
        public_ip: IPv4Address,
        *,
        margin: float,
    ) -> None:
        self._registry = registry
        self._view = view
        self._list = list_leases
        self._clock = clock
        self._rng = rng
        self._identity = identity
        self._public_ip = public_ip
        self._margin = margin
        self._held: Held | None = None
        self._wake = asyncio.Event()
        self._said = ""

    def mark(self) -> None:
        """Look at the view again soon: our key may have changed."""
        self._wake.set()

    @property
    def overdue(self) -> bool:
        """Whether our lease could not be renewed for so long that it ends within the margin."""
        return self._held is not None and remaining(self._held, self._clock.now()) < self._margin

    # Getting it

    async def acquire(
        self, config: NetworkConfig, attrs: Callable[[Lease | None], LeaseAttrs], previous: IPv4Network | None
    ) -> Lease:
        """Claim a lease, however long it takes; says what it waits for."""
        backoff = Backoff(0.2, 10.0, self._rng)
        conflicts = 0
        while True:
            try:
                await self._list()
                lease, how = await self._claim(config, attrs, previous)
            except (Conflict, HistoryLost, LeaseGone) as error:
                conflicts += 1
                log.info("somebody was first, choosing again", **facts(reason=error))
                await self._clock.sleep(0 if conflicts < 10 else backoff.next())
            except RegistryError as error:
                self._say("no lease yet, trying again", error)
                await self._clock.sleep(backoff.next())
            else:
                self._hold(lease)
                self._said = ""
                reservation = facts(subnet=lease.subnets, how=how, reservation=lease.lease_id == 0)
                log.info("lease acquired", **reservation)
                return lease

    async def _claim(
        self, config: NetworkConfig, attrs: Callable[[Lease | None], LeaseAttrs], previous: IPv4Network | None
    ) -> tuple[Lease, str]:
        """Make one attempt on the leases as just listed."""
        leases = self._view.leases()
        owner = await self._registry.owner(self._identity.name)
        owned = await self._ours(owner, leases) if owner is not None else None
        choice = choose(config, list(leases.values()), Claim(self._public_ip, owned, previous), self._rng)
        match choice:
            case Reuse(lease, by):
                if by == "public-ip":
                    await self._check_address(lease)
                wanted = attrs(lease)
                if lease.attrs == wanted and owner == self._owner(lease.subnets):
                    return lease, f"kept by {by}"
                wanted = replace(wanted, extra=lease.attrs.extra)
                return await self._registry.update(lease, wanted, self._owner(lease.subnets)), f"kept by {by}"
            case Create(subnets, replaces):
                how = "previous subnet" if subnets.v4 == previous else "new subnet"
                lease = await self._registry.create(subnets, attrs(replaces), self._owner(subnets), replaces)
                return lease, how

    async def _ours(self, owner: Owner, leases: dict[str, Lease]) -> Subnets | None:
        """Return the subnets that the owner record of our identity gives us, unless a living clone wrote it."""
        same_machine = owner.boot_id == self._identity.boot_id or owner.public_ip == self._public_ip
        lease = leases.get(self._registry.key(owner.subnets))
        if lease is not None and lease.attrs.public_ip not in (owner.public_ip, self._public_ip):
            return None  # Our record has outlived our lease, and somebody else has the subnet now.
        if same_machine or lease is None or not await self._alive(lease):
            return owner.subnets
        raise DuplicateHost(
            f"host {owner.hostname!r} at {owner.public_ip} is alive, holds {owner.subnets} and has our identity: "
            f"one is a clone of the other; give one of them a new machine id (systemd-machine-id-setup)"
        )

    async def _check_address(self, lease: Lease) -> None:
        """Make sure that no other living host of ours holds the lease with our public address."""
        owner = await self._registry.owner_of(lease.subnets)
        if owner is None or owner.identity == self._identity.name or not await self._alive(lease):
            return
        raise DuplicateHost(
            f"host {owner.hostname!r} is alive and advertises our address {self._public_ip} with {lease.subnets}; "
            f"choose another address on one of them with --iface or --public-ip"
        )

    async def _alive(self, lease: Lease) -> bool:
        """Find out whether somebody keeps a lease alive; where the TTL leaves it open, wait for the next renewal."""
        if lease.lease_id == 0:
            return False
        try:
            before, granted = await self._registry.time_to_live(lease)
            if not looks_alive(before, granted):
                return False
            log.info(
                "a lease that may be ours was renewed lately; watching who renews it", **facts(subnet=lease.subnets)
            )
            await self._clock.sleep(PERIOD * 1.5)
            after, _ = await self._registry.time_to_live(lease)
        except LeaseGone:
            return False
        return after > before - PERIOD

    # Keeping it

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
            current = self._view.rewound or self._view.revision >= lease.mod_revision
            step = next_step(self._held, shown, now, current=current)
            try:
                match step:
                    case Wait(until):
                        await self._clock.wait(self._wake, until)
                        continue
                    case Renew():
                        await self._renew(lease, now)
                        backoff.reset()
                        continue
                    case Adopt(shown_lease):
                        kind = "a reservation" if shown_lease.lease_id == 0 else "a lease"
                        log.info(
                            f"our lease was written again as {kind}; going on with it", **facts(subnet=lease.subnets)
                        )
                        self._hold(shown_lease)
                        continue
                    case Restore(over):
                        log.error(
                            "somebody else wrote to our lease, writing it again: two hosts with one address or subnet?",
                            **facts(subnet=lease.subnets, found=over),
                        )
                        self._hold(await self._registry.overwrite(lease, over, self._owner(lease.subnets)))
                    case Reclaim():
                        await self._reclaim(lease)
                    case GiveUp():
                        await lost(lease)
            except Conflict:
                pass  # The view is about to show why.
            except RegistryError as error:
                self._say("cannot write our lease, trying again", error)
            await self._clock.sleep(backoff.next())

    async def _renew(self, lease: Lease, now: float) -> None:
        assert self._held is not None
        try:
            await self._registry.keepalive(lease)
        except LeaseGone:
            # Its key goes with it; the view shows that in a moment, or already does.
            log.warning("our lease has expired in the registry", **facts(subnet=lease.subnets))
            self._held = replace(self._held, attempted=now, renewed=min(self._held.renewed, now - 1))
            await self._clock.wait(self._wake, now + 1)
        except RegistryError as error:
            left = remaining(self._held, now)
            self._say("our lease cannot be renewed; traffic goes on, trying again", f"{error} ({left:.0f} s left)")
            self._held = replace(self._held, attempted=now)
        else:
            if self._said:
                log.info("our lease is renewed again", **facts(subnet=lease.subnets))
                self._said = ""
            self._held = replace(self._held, renewed=now, attempted=now)

    async def _reclaim(self, lease: Lease) -> None:
        """Take our subnet again; if somebody else was quicker, the view is about to show whom. Raises Conflict."""
        log.warning(
            "our lease is gone from the registry, claiming the same subnet again", **facts(subnet=lease.subnets)
        )
        again = await self._registry.create(lease.subnets, lease.attrs, self._owner(lease.subnets))
        log.info("lease claimed again", **facts(subnet=again.subnets))
        self._hold(again)

    def _hold(self, lease: Lease) -> None:
        now = self._clock.now()
        self._view.rewound = False
        # A lease that is only reused may be near its end: renew at once.
        self._held = Held(lease, renewed=now - PERIOD, attempted=now - PERIOD)

    def _owner(self, subnets: Subnets) -> Owner:
        who = self._identity
        return Owner(who.name, subnets, self._public_ip, who.hostname, who.boot_id)

    def _say(self, what: str, why: object) -> None:
        """Log a condition once, not at every try."""
        if str(why).partition(" (")[0] != self._said:
            self._said = str(why).partition(" (")[0]
            log.warning(what, **facts(reason=why))
