"""The daemon, put together: which parts there are, in which order they start, and how they stop. No logic of its own.

interface -> config (wait) -> lease (wait) -> TaskGroup:
    Follower    registry -> LeaseView
    Keeper      our own lease
    Reconciler  LeaseView + kernel events -> kernel;  its first pass done: subnet.env, READY=1
    Notifier    watchdog and status
SIGTERM or SIGINT -> STOPPING=1, tasks end, exit 0; device, routes, lease and subnet.env stay, traffic flows on
"""

from __future__ import annotations

import asyncio
import gc
import signal
from dataclasses import dataclass
from ipaddress import IPv4Network
from random import Random
from typing import Never

from flanneld_py.agent import subnetfile
from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.follow import Follower
from flanneld_py.agent.http import HealthServer
from flanneld_py.agent.identity import Identity, read_identity
from flanneld_py.agent.interface import Choice, choose, read_host
from flanneld_py.agent.keep import Keeper
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.notify import Notifier
from flanneld_py.agent.options import Options, UsageError
from flanneld_py.agent.reconcile import Reconciler, Wanted
from flanneld_py.encap.netlink import Netlink
from flanneld_py.encap.peers import Own
from flanneld_py.encap.state import VxlanLink
from flanneld_py.encap.vxlan import BACKEND_TYPE, Underlay, Vxlan, choose_mac, parse_mac
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig
from flanneld_py.registry.etcd import Credentials, EtcdStore, Tls
from flanneld_py.registry.model import Lease, LeaseAttrs
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import RegistryError, Store
from flanneld_py.registry.view import LeaseView


class Stopped(Exception):
    """A signal asked us to stop."""


class Broken(Exception):
    """The daemon cannot go on; the text says why and what to do (exit code 1)."""


@dataclass(frozen=True, slots=True)
class Network:
    """The network config and the backend made of it."""

    config: NetworkConfig
    backend: Vxlan


class Daemon:
    """One agent on one host."""

    def __init__(self, options: Options, notifier: Notifier) -> None:
        self._options = options
        self._notifier = notifier
        self._clock = SystemClock()
        self._rng = Random()
        self._view = LeaseView()
        self._registry = Registry(open_store(options), options.prefix)
        self._follower = Follower(self._registry, self._view, self._clock, self._rng, self._leases_changed)
        self._keeper: Keeper | None = None
        self._reconciler: Reconciler | None = None
        self._health = HealthServer(lambda: self._reconciler is not None and self._reconciler.ready.is_set())
        self._status = ""

    async def run(self) -> None:
        """Run until a signal comes. Raises Broken, OSError and NoInterface for what only an operator can mend."""
        for warning in self._options.warnings:
            log.warning(warning)
        kernel = Netlink()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stop_on_signal(), name="signals")
                tasks.create_task(self._notifier.keep_watchdog(self._clock), name="watchdog")
                await self._start(tasks, kernel)
        except* Stopped:
            log.info("stopping; device, routes and lease stay, traffic goes on")
        finally:
            self._notifier.tell(STOPPING="1", STATUS="stopped; traffic goes on")
            self._health.close()
            kernel.close()
            await self._registry.close()

    async def _start(self, tasks: asyncio.TaskGroup, kernel: Netlink) -> None:
        if self._options.healthz is not None:
            address, port = self._options.healthz
            try:
                await self._health.start(address, port)
            except OSError as error:
                raise Broken(
                    f"cannot serve health on {address}:{port} ({error.strerror}); change --healthz-ip or --healthz-port"
                ) from error
        choice = await self._choose_interface()
        identity = read_identity(choice.interface.mac)
        network = await self._network(choice, kernel)
        keeper = self._keeper = Keeper(
            self._registry,
            self._view,
            self._follower.list,
            self._clock,
            self._rng,
            identity,
            choice.public_ip,
            margin=self._options.margin,
        )
        maker = LeaseMaker(network.backend, identity, kernel, self._view)
        self._tell("waiting for a lease")
        lease = await keeper.acquire(network.config, maker.attrs, subnetfile.previous_subnet(self._options.subnet_file))
        wanted = self._wanted(network, lease)
        reconciler = self._reconciler = Reconciler(kernel, self._view, wanted, self._clock, self._rng)
        kernel.listen([wanted.link.name], reconciler.on_events)

        async def take_another(lost: Lease) -> None:
            """Another host has our subnet: get a new one, and say loudly what has to follow."""
            log.error("another host holds our subnet now; taking a new one", **facts(lost=lost.subnets))
            new = self._wanted(network, await keeper.acquire(network.config, maker.attrs, None))
            reconciler.want(new)
            self._write_subnet_file(new)
            log.error(
                "the subnet of this host has changed: restart the container engine and its containers",
                **facts(old=lost.subnets, new=new.own.subnets),
            )

        # What was imported and read so far lives as long as we do: let the collector not look at it again and again.
        gc.freeze()
        tasks.create_task(self._follower.run(), name="follower")
        tasks.create_task(keeper.keep(take_another), name="keeper")
        tasks.create_task(reconciler.run(), name="reconciler")
        await reconciler.ready.wait()
        self._write_subnet_file(wanted)
        self._notifier.tell(READY="1")
        log.info("ready", **facts(subnet=wanted.own.subnets, device=wanted.link.name, peers=reconciler.peers))
        self._leases_changed()

    async def _choose_interface(self) -> Choice:
        options = self._options
        host = await read_host(options.can_reach)
        choice = choose(host, options.interfaces, options.interface_regexes, options.can_reach, options.public_ip)
        chosen = facts(interface=choice.interface.name, address=choice.address, public_ip=choice.public_ip)
        log.info("underlay chosen", **chosen)
        return choice

    async def _network(self, choice: Choice, kernel: Netlink) -> Network:
        """Read the network config, waiting until there is a valid one; says what is wrong, once for each reason."""
        underlay = Underlay(choice.interface.name, choice.interface.mtu, choice.address, choice.public_ip)
        backoff = Backoff(0.2, 5.0, self._rng)
        said = ""
        while True:
            try:
                config = await self._registry.config()
                return Network(config, make_backend(config, underlay, nexthop_objects=kernel.nexthop_objects))
            except RegistryError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("no network config that can be used yet, waiting for one", **facts(reason=error))
                    self._tell(f"waiting for a network config: {error}")
            await self._clock.sleep(backoff.next())

    def _wanted(self, network: Network, lease: Lease) -> Wanted:
        assert isinstance(lease.attrs.backend_data, dict)
        mac = parse_mac(lease.attrs.backend_data["VtepMAC"])
        own = Own(self._registry.key(lease.subnets), lease.subnets, lease.attrs.public_ip)
        return Wanted(network.config, network.backend, own, network.backend.link(mac))

    def _write_subnet_file(self, wanted: Wanted) -> None:
        assert wanted.config.ipv4 is not None
        network = IPv4Network(wanted.config.ipv4.network)
        content = subnetfile.SubnetFile(network, wanted.own.subnets.v4, wanted.link.mtu, ipmasq=False)
        try:
            subnetfile.write(self._options.subnet_file, content)
        except OSError as error:
            raise Broken(
                f"cannot write {self._options.subnet_file} ({error.strerror}); "
                f"make its folder writable or change --subnet-file"
            ) from error

    def _leases_changed(self) -> None:
        if self._keeper is not None:
            self._keeper.mark()
        if self._reconciler is None:
            return
        self._reconciler.mark()
        if self._reconciler.ready.is_set():
            state = "registry connected" if self._follower.connected else "registry away, traffic goes on"
            self._tell(f"{self._reconciler.peers} peers, {self._reconciler.rejected} leases not used, {state}")

    def _tell(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._notifier.tell(STATUS=status)

    async def _stop_on_signal(self) -> Never:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)  # A second signal ends us at once, as it does flannel's daemon.
        raise Stopped


class LeaseMaker:
    """Make what we publish: the backend's attributes with a MAC that lasts."""

    def __init__(self, backend: Vxlan, identity: Identity, kernel: Netlink, view: LeaseView) -> None:
        self._backend = backend
        self._identity = identity
        self._kernel = kernel
        self._view = view

    def attrs(self, previous: Lease | None) -> LeaseAttrs:
        """Return the attributes, given the lease that we had so far."""
        device = self._kernel.link(self._backend.device)
        mac = device.mac if isinstance(device, VxlanLink) else None
        published = previous.attrs.backend_data if previous is not None else None
        ours = previous.subnets if previous is not None else None
        others = (lease for lease in self._view.leases().values() if lease.subnets != ours)
        return self._backend.attrs(choose_mac(mac, published, self._identity.name, self._backend.vteps(others)))


def make_backend(config: NetworkConfig, underlay: Underlay, *, nexthop_objects: bool) -> Vxlan:
    """Make the backend that the config names. Raises ConfigInvalid if it cannot be had."""
    if config.ipv4 is None or config.ipv6 is not None:
        raise ConfigInvalid("IPv6 is not supported yet: EnableIPv6 must be false and EnableIPv4 true")
    if config.backend_type != BACKEND_TYPE:
        raise ConfigInvalid(
            f"Backend.Type is {config.backend_type!r}, and only 'vxlan' is supported yet"
            " (without a Backend section flannel's default is 'udp')"
        )
    return Vxlan(config, underlay, nexthop_objects=nexthop_objects)


def open_store(options: Options) -> Store:
    """Make the client for etcd that was asked for; it connects when it is first used. Raises UsageError."""
    tls = None
    if options.ca_file or options.cert_file:
        tls = Tls(options.ca_file, options.cert_file, options.key_file)
    credentials = Credentials(options.username, options.password) if options.username else None
    try:
        if options.client == "etcd3":
            from flanneld_py.registry.etcd3 import Etcd3Store  # An optional extra.

            return Etcd3Store(options.endpoints, tls=tls, credentials=credentials)
        return EtcdStore(options.endpoints, tls=tls, credentials=credentials)
    except (ValueError, OSError) as error:
        raise UsageError(f"etcd cannot be reached like that: {error}") from error
