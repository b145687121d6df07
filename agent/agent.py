"""One agent on one host, put together from parts that are all handed in: so a test can run a cluster of them.

    config (wait) -> lease (wait) -> TaskGroup:
        Follower    registry -> LeaseView
        Keeper      our own lease
        Reconciler  LeaseView + kernel events -> kernel; its first pass done: subnet file, ready

Not here: the process around it (daemon.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from flanneld_py.agent import status, subnetfile
from flanneld_py.agent.carrier import KernelCarrier, UserspaceCarrier
from flanneld_py.agent.claim import Claimer
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.follow import Follower
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.keep import Keeper
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.network import wait_for_network
from flanneld_py.agent.reconcile import Reconciler
from flanneld_py.agent.wanted import Wanted
from flanneld_py.encap import backends
from flanneld_py.encap.backend import Backend, Found, Underlay
from flanneld_py.encap.kernel import Kernel
from flanneld_py.encap.peers import Own
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.view import LeaseView

if TYPE_CHECKING:
    from flanneld_py.agent.supervise import Supervisor


class Broken(Exception):
    """The agent cannot go on; the text says why and what to do (exit code 1)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides about an agent; `margin` in seconds (`--subnet-lease-renew-margin`).

    `control` is the folder of the userspace data plane's control socket.
    """

    subnet_file: Path
    margin: float = 3600.0
    datapath: backends.Choice = "auto"
    control: Path = Path("/run/flannel")


@dataclass(frozen=True, slots=True)
class Network:
    """The network config and the backend made of it."""

    config: NetworkConfig
    backend: Backend


class Agent:
    """See the module's docstring.

    `tell` hears a sentence on the agent's state whenever it changes; `take_device` is asked for our device before it is
    touched, and raises Broken if another agent has it; `start_datapath` is line.start_process.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        kernel: Kernel,
        underlay: Underlay,
        identity: Identity,
        clock: Clock,
        rng: Random,
        tell: Callable[[str], None],
        take_device: Callable[[str], None],
        start_datapath: Callable[[Path], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._kernel = kernel
        self._underlay = underlay
        self._identity = identity
        self._clock = clock
        self._rng = rng
        self._tell = tell
        self._take_device = take_device
        self._start_datapath = start_datapath
        self._status = ""
        self._wanted: Wanted | None = None
        self._supervisor: Supervisor | None = None
        self.view = LeaseView()
        self._follower = Follower(registry, self.view, clock, rng, self._changed)
        claimer = Claimer(registry, self.view, self._follower.list, clock, rng, identity, underlay.public_ip)
        self._keeper = Keeper(registry, self.view, self._follower.list, clock, rng, claimer, margin=settings.margin)
        self._reconciler: Reconciler | None = None
        self._connected = False
        self.ready = asyncio.Event()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Get a lease, start all tasks in the group, and return when the agent is ready. Raises Broken."""
        network = await self._network()
        self._say("waiting for a lease")
        previous = subnetfile.previous_subnets(self._settings.subnet_file)
        wanted = await self._acquire(network, previous)
        self._wanted = wanted
        supervisor = self._supervisor = self._make_supervisor(wanted)
        carrier = UserspaceCarrier(supervisor) if supervisor is not None else KernelCarrier()
        reconciler = self._reconciler = Reconciler(self._kernel, self.view, wanted, self._clock, self._rng, carrier)
        self._take_device(wanted.link.name)
        self._kernel.listen([wanted.link.name], reconciler.on_events)

        async def take_another(lost: Lease) -> None:
            """Another host has our subnet: get a new one, and say loudly what has to follow."""
            log.error("another host holds our subnet now; taking a new one", **facts(lost=lost.subnets))
            new = self._wanted = await self._acquire(network, ())
            reconciler.want(new)
            if supervisor is not None and new.datapath is not None:
                supervisor.configure(new.datapath)
            self._write_subnet_file(new)
            log.error(
                "the subnet of this host has changed: restart the container engine and its containers",
                **facts(old=lost.subnets, new=new.own.subnets),
            )

        tasks.create_task(self._follower.run(), name="follower")
        tasks.create_task(self._keeper.keep(take_another), name="keeper")
        tasks.create_task(reconciler.run(), name="reconciler")
        if supervisor is not None:
            await reconciler.surveyed.wait()  # A process that runs already would drop the peers it is not told of.
            tasks.create_task(supervisor.run(), name="data plane")
            await supervisor.fed.wait()
        await reconciler.ready.wait()
        self._write_subnet_file(wanted)
        self.ready.set()
        log.info("ready", **facts(subnet=wanted.own.subnets, device=wanted.link.name, peers=reconciler.peers))
        self._changed()

    async def describe(self) -> status.Document:
        """Return the state of everything, for operators; see status.py."""
        document = status.starting(self._status)
        document |= {"ready": self.ready.is_set(), "registry_connected": self._connected}
        if self._wanted is not None:
            document |= status.network(self._wanted, self._settings.datapath)
        if self._reconciler is not None:
            document |= status.peers(self._reconciler)
        if self._supervisor is not None:
            report = await self._supervisor.report()
            document |= {"userspace": status.userspace(report, self._supervisor.trouble)}
        return document

    async def _network(self) -> Network:
        """Read the network config, waiting until there is one that we have a backend for."""

        async def use(config: NetworkConfig) -> Network:
            return Network(config, await self._backend(config))

        return await wait_for_network(self._registry, use, self._clock, self._rng, self._say)

    async def _backend(self, config: NetworkConfig) -> Backend:
        """Make the backend that the config names. Raises ConfigInvalid."""
        backend = await backends.make(config, self._underlay, self._kernel, self._settings.datapath)
        carrier = f"in userspace: {backend.why_userspace}" if backend.why_userspace else "by the kernel"
        log.info(f"packets are carried {carrier}", **facts(backend=config.backend_type, device=backend.device))
        return backend

    def _make_supervisor(self, wanted: Wanted) -> Supervisor | None:
        """Make what keeps the userspace data plane running. Imported here: most hosts never need it."""
        if wanted.datapath is None:
            return None
        from flanneld_py.agent.supervise import Supervisor

        async def prepared() -> None:
            if self._reconciler is not None:
                self._reconciler.mark()

        control = self._settings.control / f"datapath-{wanted.link.name}.sock"
        return Supervisor(control, self._start_datapath, prepared, wanted.datapath, self._clock, self._rng)

    async def _acquire(self, network: Network, previous: tuple[subnetfile.Network, ...]) -> Wanted:
        """Get a lease and work out what it means for the kernel."""

        backend = network.backend

        def attrs(had: Lease | None) -> LeaseAttrs:
            ours = had.subnets if had is not None else None
            others = [lease for lease in self.view.leases().values() if lease.subnets != ours]
            return backend.attrs(Found(self._identity.name, had, self._kernel.link(backend.device), others))

        lease = await self._keeper.acquire(network.config, attrs, previous)
        own = Own(self._registry.key(lease.subnets), lease.subnets, lease.attrs.public_ip, self._underlay.address)
        return Wanted(network.config, backend, own, backend.link(lease), backend.datapath(lease))

    def _write_subnet_file(self, wanted: Wanted) -> None:
        path = self._settings.subnet_file
        networks = [family.network for family in (wanted.config.ipv4, wanted.config.ipv6) if family is not None]
        families = tuple(zip(networks, wanted.own.subnets.families, strict=True))
        content = subnetfile.SubnetFile(families, wanted.backend.mtu, ipmasq=False)
        try:
            subnetfile.write(path, content)
        except OSError as error:
            raise Broken(
                f"cannot write {path} ({error.strerror}); make its folder writable or change --subnet-file"
            ) from error

    def _changed(self) -> None:
        """Let everybody look again: the view or the connection has changed."""
        self._keeper.mark()
        if self._follower.connected and not self._connected:
            self._keeper.check()
        self._connected = self._follower.connected
        if self._reconciler is None:
            return
        self._reconciler.mark()
        if self.ready.is_set():
            state = "registry connected" if self._connected else "registry away, traffic goes on"
            if self._keeper.overdue:
                state += ", OUR LEASE ENDS SOON"
            self._say(f"{self._reconciler.peers} peers, {len(self._reconciler.rejected)} leases not used, {state}")

    def _say(self, sentence: str) -> None:
        if sentence != self._status:
            self._status = sentence
            self._tell(sentence)
