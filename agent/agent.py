"""One agent on one host, put together from parts that are all handed in: so a test can run a cluster of them.

    config (wait) -> lease (wait) -> TaskGroup:
        LeaseSyncer    registry -> LeaseView
        Keeper      our own lease
        UnderlayWatch   another address, interface or MTU: published, programmed, written
        Reconciler  LeaseView + kernel events -> kernel, one for each family
        Supervisor  the data-plane process, one for each family, where packets are carried in userspace
        FirewallReconciler       firewall rules (left out with --firewall none); first pass of all done: subnet file,
        ready

Not here: the process around it (daemon.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Never

from flanneld_py.agent import status, subnetfile
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.firewall.reconciler import FirewallReconciler
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.lease.claim import Claimer
from flanneld_py.agent.lease.keep import Keeper
from flanneld_py.agent.lease.sync import LeaseSyncer
from flanneld_py.agent.lock import HostLocks
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.netconfig import wait_for_network
from flanneld_py.agent.previous_run import PreviousRun
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.hostnetwork import HostNetwork
from flanneld_py.agent.reconcile.leftovers import Leftovers
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.reconcile.onlink import OnLinkVerdicts
from flanneld_py.agent.reconcile.reconciler import Reconciler
from flanneld_py.agent.reconcile.sink import KernelSink, UserspaceSink, make_supervisors
from flanneld_py.agent.settings import Settings
from flanneld_py.agent.subnetfile_writer import SubnetFileWriter
from flanneld_py.agent.underlay.watch import Find, UnderlayWatch
from flanneld_py.encap.backends import table
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.family import IPV4, IPV6, Family
from flanneld_py.encap.kernel import Event, Kernel
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.view import LeaseView

if TYPE_CHECKING:
    from flanneld_py.agent.datapath.supervise import Supervisor


SAY_EVERY = 1.0
"""Seconds between two looks at what a host waits for before it is ready."""


class Agent:
    """See the module's docstring.

    `find` chooses again after `underlay`; `tell` hears a sentence on the agent's state whenever it changes; `locks` are
    taken on what is ours before it is touched; `earlier` is what the subnet file says of the run before;
    `start_datapath` is client.start_process, `make_firewall` makes what keeps the firewall rules.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        kernel: Kernel,
        underlay: Underlay,
        find: Find,
        identity: Identity,
        clock: Clock,
        rng: Random,
        tell: Callable[[str], None],
        locks: HostLocks,
        earlier: PreviousRun,
        start_datapath: Callable[[Path], Awaitable[None]],
        make_firewall: Callable[[tuple[Desired, ...], Neighbours], FirewallReconciler] | None = None,
    ) -> None:
        self._settings = settings
        self._previous = subnetfile.previous_subnets(settings.subnet_file)
        self._registry = registry
        self._kernel = kernel
        self._underlay = underlay
        self._find = find
        self.identity = identity
        self._clock = clock
        self._rng = rng
        self._tell = tell
        self._locks = locks
        self._start_datapath = start_datapath
        self._make_firewall = make_firewall
        self._firewall: FirewallReconciler | None = None
        self._status, self._connected = "", False
        self._on_link = {each: OnLinkVerdicts(kernel, underlay.interface, each, clock) for each in (IPV4, IPV6)}
        self._member: HostNetwork | None = None
        self._watch: UnderlayWatch | None = None
        self._leftovers = Leftovers(kernel, settings.control, earlier, locks.others, clock, rng)
        self._subnet_file = SubnetFileWriter(settings, clock)
        self.wanted: tuple[Desired, ...] = ()
        """This host as it should be, each family; nothing before there is a lease."""
        self._supervisors: dict[Family, Supervisor] = {}
        self.view = LeaseView()
        self._syncer = LeaseSyncer(registry, self.view, clock, rng, self._changed)
        host = (identity, underlay.public_ip, underlay.public_ip6, settings.subnet_len)
        claimer = self._claimer = Claimer(registry, self.view, self._syncer.list, clock, rng, *host)
        share = (registry, self.view, self._syncer.list, clock, rng, claimer)
        claimer.waits = lambda reason: self._say(f"waiting for a lease: {reason}")
        self.keeper = Keeper(*share, margin=settings.margin)
        self._reconcilers: tuple[Reconciler, ...] = ()
        self.ready = asyncio.Event()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Get a lease, start all tasks in the group, and return when the agent is ready. Raises FatalError."""
        member = self._member = await self._join()
        for name in member.exclusive:
            self._locks.take(name)
        self._locks.serve(member.networks)
        self._watch = UnderlayWatch(self._underlay, self._look, self._move, self._clock, self._rng)
        self._listen(member.devices)
        tasks.create_task(self._watch.run(), name="underlay")
        self._say("waiting for a lease")
        lease = await self._acquire(self._previous)
        await self._leftovers.remove(self._member, lease)
        wanted = self.wanted = self._work_out(lease)
        neighbours = Neighbours(wanted)
        parts = self._settings.control, self._start_datapath, self._mark_reconcilers, self._clock, self._rng
        supervisors = self._supervisors = dict(make_supervisors(wanted, *parts))

        def make(each: Desired) -> Reconciler:
            family, tools = each.backend.family, (self._kernel, self.view, each, self._clock, self._rng)
            carrier = UserspaceSink(supervisors[family], family) if family in supervisors else KernelSink()
            return Reconciler(*tools, carrier, self._on_link[family], neighbours)

        reconcilers = self._reconcilers = tuple(map(make, wanted))

        async def supervise(reconciler: Reconciler, supervisor: Supervisor) -> Never:
            await reconciler.surveyed.wait()  # A process that runs already would drop the peers it is not told of.
            await supervisor.run()

        tasks.create_task(self._leftovers.run(), name="leftovers")
        tasks.create_task(self._syncer.run(), name="follower")
        tasks.create_task(self.keeper.keep(self._take_another), name="keeper")
        for reconciler, each in zip(reconcilers, wanted, strict=True):
            family = each.backend.family
            tasks.create_task(reconciler.run(), name=f"reconciler of {family.name}")
            if family in supervisors:
                tasks.create_task(supervise(reconciler, supervisors[family]), name=f"data plane of {family.name}")
        guard = self._firewall = self._make_firewall(wanted, neighbours) if self._make_firewall is not None else None
        if guard is not None:
            tasks.create_task(guard.run(), name="firewall")
        for supervisor in supervisors.values():
            await self._wait(supervisor.fed)
        for reconciler in reconcilers:
            await self._wait(reconciler.ready)
            reconciler.passed = self._tell_state
        if guard is not None:
            await guard.wait_looked()
        tasks.create_task(self._subnet_file.run(), name="subnet file")
        self._announce()
        await self._subnet_file.written.wait()  # Else containers would get a subnet of another day, or none.
        self.ready.set()
        own, devices = self.wanted[0].own.subnets, " and ".join(member.devices) or None
        log.info("ready", **facts(subnet=own, device=devices, peers=max(each.peers for each in reconcilers)))
        self._changed()

    async def _take_another(self, lost: Lease) -> None:
        """Another host has our subnet: get a new one."""
        log.error("another host holds our subnet now; taking a new one", **facts(lost=lost.subnets))
        self._bring_about(await self._acquire(()))
        self._announce()

    async def describe(self) -> status.Document:
        """Return the state of everything, for operators; see status.py."""
        document = status.starting(self._status)
        document |= {"ready": self.ready.is_set(), "registry_connected": self._connected}
        document |= status.network(self.wanted) | status.peers(self._reconcilers) | status.firewall(self._firewall)
        for family, supervisor in self._supervisors.items():
            document |= {status.USERSPACE[family]: status.userspace(await supervisor.report(), supervisor.trouble)}
        return document

    async def _join(self) -> HostNetwork:
        """Read the network config, waiting until there is one that we have an underlay and a backend for."""

        async def use(config: NetworkConfig) -> HostNetwork:
            self._take_underlay(await self._find(config, self._previous, self._underlay))
            member = await self._membership(config, self._underlay)
            member.tell()
            return member

        return await wait_for_network(self._registry, use, self._clock, self._rng, self._say)

    async def _membership(self, config: NetworkConfig, underlay: Underlay) -> HostNetwork:
        """Make the backend that the config names, for each family. Raises ConfigInvalid."""
        made = await table.make(config, underlay, self._kernel, self._settings.datapath, self._on_link)
        return HostNetwork(config, underlay, made)

    async def _mark_reconcilers(self) -> None:
        for reconciler in self._reconcilers:
            reconciler.mark()

    async def _acquire(self, previous: tuple[subnetfile.Network, ...]) -> Lease:
        member = self._member
        assert member is not None
        lease = await self.keeper.acquire(member.config, self._attrs, previous)
        if self._member is not member:  # The underlay changed meanwhile.
            self.keeper.revise(self._attrs(lease))
        return lease

    def _attrs(self, had: Lease | None) -> LeaseAttrs:
        assert self._member is not None
        return self._member.attrs(self.identity.name, had, self.view.leases().values(), self._kernel)

    def _work_out(self, lease: Lease) -> tuple[Desired, ...]:
        assert self._member is not None
        return self._member.wanted(self._registry.key(lease.subnets), lease, self._settings.workers)

    def _bring_about(self, lease: Lease) -> None:
        """Let everybody work towards what a lease means now."""
        new = self.wanted = self._work_out(lease)
        for reconciler, each in zip(self._reconcilers, new, strict=True):
            reconciler.want(each)
            if each.datapath is not None:
                self._supervisors[each.backend.family].configure(each.datapath)
        if self._firewall is not None:
            self._firewall.want(new)

    async def _look(self) -> Underlay:
        """Choose the underlay as it is now. Raises NoInterface, OSError."""
        assert self._member is not None
        lease = self.keeper.lease
        overlay = lease.subnets.families if lease is not None else self._previous
        return await self._find(self._member.config, overlay, self._underlay)

    async def _move(self, underlay: Underlay) -> None:
        """Go on over another underlay with the same subnet. Raises ConfigInvalid if the network cannot be carried."""
        assert self._member is not None
        old, self._member = self._underlay, await self._membership(self._member.config, underlay)
        self._take_underlay(underlay)
        if moved := underlay.interface != old.interface:
            self._listen(self._member.devices)
            for verdicts in self._on_link.values():
                verdicts.follow(underlay.interface)
        if (lease := self.keeper.lease) is not None:  # Else it will be acquired with this.
            self.keeper.revise(attrs := self._attrs(lease))
            if self._reconcilers:
                self._bring_about(replace(lease, attrs=attrs))
        if moved:
            await self._leftovers.remove(self._member, lease)
        if self.ready.is_set():
            self._announce()
        if underlay.own != old.own:
            await self._registry.reconnect()

    def _listen(self, devices: Sequence[str]) -> None:
        self._kernel.listen([*devices, self._underlay.interface], self._on_events)

    def _take_underlay(self, underlay: Underlay) -> None:
        self._underlay = underlay
        self._claimer.move(underlay.public_ip, underlay.public_ip6)

    def _announce(self) -> None:
        """Write the subnet file. Raises FatalError."""
        self._subnet_file.announce(self.wanted, ipmasq=self._firewall is not None and self._firewall.masquerades)

    def _changed(self) -> None:
        """Let everybody look again: the view or the connection has changed."""
        self.keeper.mark()
        if self._syncer.connected and not self._connected:
            self.keeper.check()
        self._connected = self._syncer.connected
        for reconciler in self._reconcilers:
            reconciler.mark()
        self._tell_state()

    def _tell_state(self) -> None:
        if self.ready.is_set():
            self._say(status.serving(self._reconcilers, connected=self._connected, overdue=self.keeper.overdue))

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for something that is needed to be ready, and say why it takes its time."""
        while not event.is_set():
            self._say(status.waiting(self._reconcilers, self._supervisors.values()))
            await self._clock.wait(event, self._clock.now() + SAY_EVERY)

    def _on_events(self, events: Sequence[Event]) -> None:
        if self._watch is not None:
            self._watch.on_events(events)
        for reconciler in self._reconcilers:
            reconciler.on_events(events)

    def _say(self, sentence: str) -> None:
        if sentence != self._status:
            self._status = sentence
            self._tell(sentence)
