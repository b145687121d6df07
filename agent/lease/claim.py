"""Claim a lease of our own: until there is one, whatever is in the way.

    config -> list -> choose -> write by transaction -> list what is new: does another lease overlap it after all?
                ^                    | somebody was first          |
                +--------------------+-----------------------------+

Among ourselves the transaction decides, for each family (registry.py), and the lease created first goes before one of
another size that overlaps it. Flannel's daemons look at nothing but their own key, and never give way: so we do.

Who is who. A lease names no host, only a public address; two hosts can claim the same one (a cloned VM, Vagrant's
10.0.2.15). So each of our hosts also writes an Owner, and where a lease seems ours but its Owner is somebody else,
the lease's TTL tells whether that host is alive: it renews every minute. A dead owner is replaced, a living one is
reported and left alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.registry.allocate import Claim, Create, Network, Reuse, choose, has_address, overlapping, room
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.lifetime import PERIOD, YOUTH, looks_alive
from flanneld_py.registry.model import Lease, LeaseAttrs, Owner, Record, Subnets
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Conflict, HistoryLost, LeaseGone, RegistryError
from flanneld_py.registry.view import LeaseView

SCARCE = 0.1
"""Which part of the subnets is to be free; with less, hosts that come soon may get none."""


class DuplicateHost(RegistryError):
    """A living host holds what we would take for ours; the text says which and what to do."""


class Claimer:
    """The way to a lease for one host."""

    def __init__(
        self,
        registry: Registry,
        view: LeaseView,
        list_leases: Callable[[], Awaitable[None]],
        clock: Clock,
        rng: Random,
        identity: Identity,
        public_ip: IPv4Address | None,
        public_ip6: IPv6Address | None = None,
        subnet_len: int | None = None,
    ) -> None:
        self._registry = registry
        self._view = view
        self._list = list_leases
        self._clock = clock
        self._rng = rng
        self._identity = identity
        self._public_ip = public_ip
        self._public_ip6 = public_ip6
        self._subnet_len = subnet_len
        self._served = False
        """Whether we have had a lease, in this run."""
        self._made = 0
        """When our lease was made, by the clock, which goes on over restarts; 0: unknown."""
        self.waits: Callable[[str], None] = lambda _: None
        """Hears what a claim waits for, at each try."""

    def move(self, public_ip: IPv4Address | None, public_ip6: IPv6Address | None) -> None:
        """Take in that the others reach this host at other addresses now."""
        self._public_ip, self._public_ip6 = public_ip, public_ip6

    @property
    def _addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        return tuple(address for address in (self._public_ip, self._public_ip6) if address is not None)

    async def claim(
        self,
        config: NetworkConfig,
        attrs: Callable[[Lease | None], LeaseAttrs],
        previous: tuple[Network, ...],
        contested: Subnets | None = None,
    ) -> Lease:
        """Claim a lease, however long it takes; says what it waits for.

        `contested` are the subnets of a lease of ours that has to give way to another one.
        """
        backoff = Backoff(0.2, 10.0, self._rng)
        trouble = OnChange(self._clock)
        conflicts = 0
        began = None
        while True:
            try:
                await self._list()
                listed = self._view.revision
                began = listed if began is None else began
                lease, how = await self._claim(config, attrs, previous, contested)
                if lease.create_revision > began:
                    others = await self._registry.written_since(listed)
                    if (rival := await self.rival(lease, others, config)) is not None:
                        contested = lease.subnets
                        raise Conflict(f"{rival.subnets} of {rival.address} overlaps {lease.subnets} and goes first")
            except (Conflict, HistoryLost, LeaseGone) as error:
                conflicts += 1
                log.info("somebody was first, choosing again", **facts(reason=error))
                await self._clock.sleep(0 if conflicts < 10 else backoff.next())
            except RegistryError as error:
                trouble.warn("no lease yet, trying again", error)
                self.waits(str(error))
                await self._clock.sleep(backoff.next())
            else:
                reservation = facts(subnet=lease.subnets, how=how, reservation=lease.lease_id == 0)
                log.info("lease acquired", **reservation)
                self._count(config, lease)
                self._served = True
                return lease

    def _count(self, config: NetworkConfig, ours: Lease) -> None:
        """Say that little room is left, as long as something can be done about it."""
        leases = self._view.leases() | {self._registry.key(ours.subnets): ours}
        for network, free, of in room(config, leases.values(), Claim(self._public_ip, subnet_len=self._subnet_len)):
            if free < of * SCARCE:
                log.warning(
                    "few subnets are left: delete leases of hosts that are gone, or make the network larger",
                    **facts(network=network, free=free, of=of),
                )

    async def rival(self, lease: Lease, others: Iterable[Lease], config: NetworkConfig) -> Lease | None:
        """Return a lease that ours, made a while ago, overlaps and has to give way to. Raises RegistryError."""
        for other in overlapping(lease.subnets, others, config):
            if other.create_revision < lease.create_revision or await self._registry.owner_of(other.subnets) is None:
                return other
        return None

    async def _claim(
        self,
        config: NetworkConfig,
        attrs: Callable[[Lease | None], LeaseAttrs],
        previous: tuple[Network, ...],
        contested: Subnets | None,
    ) -> tuple[Lease, str]:
        """Make one attempt on the leases as just listed."""
        unreadable = self._view.unreadable
        # What is garbled counts as what it was before, to be written over as it is now.
        leases = {
            key: replace(lease, mod_revision=unreadable[key].mod_revision) if key in unreadable else lease
            for key, lease in self._view.leases().items()
        }
        owner = await self._registry.owner(self._identity.name)
        owned = await self._ours(owner, leases) if owner is not None else None
        if owned is not None and (garbled := unreadable.get(self._registry.key(owned))) is not None:
            log.warning("our lease cannot be read, writing it again", **facts(subnet=owned, reason=garbled.reason))
            over = garbled.mod_revision
            return await self._registry.create(owned, attrs(None), self.owner(owned), over=over), "kept by identity"
        blocked = [record.subnets for record in unreadable.values() if record.subnets is not None]
        if contested is not None and not overlapping(contested, leases.values(), config):
            contested = None
        claim = Claim(self._public_ip, owned, previous, self._public_ip6, contested, self._subnet_len)
        choice = choose(config, list(leases.values()), claim, self._rng, blocked)
        dead = None
        if isinstance(choice, Create) or choice.lease.subnets != owned or not has_address(choice.lease, claim):
            dead = await self._dead(leases.values(), claim, owned)
        match choice:
            case Reuse(lease, by):
                written_here = owner is not None and owner.subnets == lease.subnets and self._is_here(owner)
                self._made = owner.made if owner is not None and written_here else 0
                wanted = attrs(lease)
                believed = not any(_outwrites(other, lease) for other in leases.values())
                as_written = lease.attrs == wanted and owner == self.owner(lease.subnets)
                if as_written and believed and await self._registry.lasts(lease):
                    return lease, f"kept by {by}"
                wanted = replace(wanted, extra=lease.attrs.extra)
                return await self._registry.update(lease, wanted, self.owner(lease.subnets), dead), f"kept by {by}"
            case Create(subnets, replaces):
                if previous and owner is None and replaces is None:
                    # This host had a subnet, and the registry knows nothing of it: it may have lost others as well.
                    self._view.doubt()
                how = "previous subnet" if any(subnet in previous for subnet in subnets.families) else "new subnet"
                attributes, ours = attrs(replaces), self.owner(subnets, made=True)
                return await self._registry.create(subnets, attributes, ours, replaces, dead=dead or ()), how

    async def _ours(self, owner: Owner, leases: dict[str, Lease]) -> Subnets | None:
        """Return the subnets that the owner record of our identity gives us, unless a living clone wrote it."""
        lease = leases.get(self._registry.key(owner.subnets))
        if lease is None:
            return owner.subnets
        if lease.address not in (owner.public_ip, *self._addresses):
            return None  # Our record has outlived our lease, and somebody else has the subnet now.
        if lease.mod_revision != owner.mod_revision:
            holder = await self._registry.owner_of(owner.subnets)
            if holder is not None and holder.identity != owner.identity:
                return None  # The same, and it has our address.
        # A clone may have all but the boot; so has this host after a reboot, but not while it runs.
        at_home = owner.public_ip in self._addresses and owner.hostname == self._identity.hostname and not self._served
        if at_home or self._is_here(owner) or not await self._alive(lease, owner):
            return owner.subnets
        raise DuplicateHost(
            f"host {owner.hostname!r} at {owner.public_ip} is alive, holds {owner.subnets} and has our identity: "
            f"one is a clone of the other; give one of them a new machine id (systemd-machine-id-setup)"
        )

    async def vacant(self, lease: Lease) -> list[Lease]:
        """Return the leases with our address beside ours, none of a living host. Raises DuplicateHost."""
        return await self._dead(
            self._view.leases().values(), Claim(self._public_ip, None, (), self._public_ip6), lease.subnets
        )

    async def _dead(self, leases: Iterable[Lease], claim: Claim, owned: Subnets | None) -> list[Lease]:
        """Return the leases with our address, none of another living host. Raises DuplicateHost."""
        known = [lease for lease in leases if has_address(lease, claim)]
        for lease in known:
            if lease.subnets != owned:
                await self._check_address(lease)
        return known

    async def _check_address(self, lease: Lease) -> None:
        """Make sure that no other living host of ours holds the lease with our public address. Raises DuplicateHost."""
        owner = await self._registry.owner_of(lease.subnets)
        if owner is None or owner.identity == self._identity.name or self._is_here(owner):
            return
        if await self._alive(lease, owner):
            raise DuplicateHost(
                f"host {owner.hostname!r} is alive and advertises our address {lease.address} with {lease.subnets}; "
                f"choose another address on one of them with --iface, --public-ip or --public-ipv6"
            )

    def _is_here(self, owner: Owner) -> bool:
        """Tell whether we wrote that, under whichever identity: this boot of this host, with our name and address.

        An identity changes with the network card's MAC, and where the machine id cannot be read any more.
        """
        who = self._identity
        if not owner.boot_id or owner.boot_id != who.boot_id:
            return False
        return owner.identity == who.name or (owner.hostname == who.hostname and owner.public_ip in self._addresses)

    async def holds(self, lease: Lease, found: Record) -> bool:
        """Tell whether the last host of ours that wrote to our lease is this one, in this boot; `found` is at its key.

        Raises RegistryError.
        """
        holder = await self._registry.owner(self._identity.name)
        if holder is None or holder.mod_revision != found.mod_revision:  # Else we did, and all owners are not read.
            holder = await self._registry.owner_of(lease.subnets)
        return holder is None or (holder.identity, holder.boot_id) == (self._identity.name, self._identity.boot_id)

    async def _alive(self, lease: Lease, holder: Owner) -> bool:
        """Find out whether somebody keeps a lease alive; where the TTL leaves it open, wait for the next renewal."""
        try:
            before, granted = await self._registry.time_to_live(lease, holder)
            if not looks_alive(before, granted):
                return False
            log.info(
                "a lease that may be ours was renewed lately; watching who renews it", **facts(subnet=lease.subnets)
            )
            await self._clock.sleep(PERIOD * 1.5)
            after, _ = await self._registry.time_to_live(lease, holder)
        except LeaseGone:
            return False
        return after > before - PERIOD

    @property
    def just_made(self) -> bool:
        """Whether our lease was made lately: in this run of the agent, or in one before it since the host's boot."""
        return self._made > 0 and self._clock.now() - self._made < YOUTH

    def owner(self, subnets: Subnets, *, made: bool = False) -> Owner:
        """Return what we write of ourselves beside a lease of these subnets; `made` says that it is made now."""
        who = self._identity
        if made:
            self._made = int(self._clock.now())
        return Owner(who.name, subnets, self._addresses[0], who.hostname, who.boot_id, self._made)


def _outwrites(other: Lease, lease: Lease) -> bool:
    """Tell whether peers believe another lease of the same VTEP, as the one written last (encap/peers.py).

    This host left it behind when it ran over another network card: another identity and address, the same device.
    """
    pairs = (
        (lease.attrs.backend_data, other.attrs.backend_data),
        (lease.attrs.backend_v6_data, other.attrs.backend_v6_data),
    )
    return other.mod_revision > lease.mod_revision and any(ours is not None and ours == data for ours, data in pairs)
