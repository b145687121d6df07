"""The process around the agent: signals, service manager, health server, and the real collaborators.

health server -> config -> underlay, of the families that are on -> Agent: lease, tasks -> READY=1
SIGTERM, SIGINT or SIGQUIT -> STOPPING=1, tasks end, exit 0; device, routes, lease, subnet file stay: traffic flows on
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from flanneld_py.agent.agent import Agent
from flanneld_py.agent.clock import Clock, SystemClock
from flanneld_py.agent.configwatch import ConfigWatch
from flanneld_py.agent.datapath.paths import control_sockets
from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.firewall.previous_rules import PreviousRules
from flanneld_py.agent.firewall.reconciler import FirewallReconciler, names_of_interest
from flanneld_py.agent.health import HealthServer
from flanneld_py.agent.identity import read_identity
from flanneld_py.agent.lease import release
from flanneld_py.agent.lease.pace import Paced
from flanneld_py.agent.lock import Locks
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.netconfig import wait_for_network
from flanneld_py.agent.notify import Notifier
from flanneld_py.agent.options import Options, default_workers
from flanneld_py.agent.previous_run import PreviousRun, read_previous_run
from flanneld_py.agent.reconcile.blackhole import Blackhole
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.settings import FirewallSettings, Settings
from flanneld_py.agent.signals import Stopped, stop_on_signal
from flanneld_py.agent.status import Document, starting
from flanneld_py.agent.subnetfile import previous_subnets
from flanneld_py.agent.sysctls import Sysctls
from flanneld_py.agent.tasks import Tasks
from flanneld_py.agent.underlay.choose import (
    IPAddress,
    Network,
    NoInterface,
    UnderlayChoice,
    UnderlayOptions,
    choose,
    outside,
)
from flanneld_py.agent.underlay.host import read_host
from flanneld_py.agent.values import UsageError
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.firewall.enforce import Enforcer
from flanneld_py.encap.firewall.policy import name_suffix
from flanneld_py.encap.firewall.tools import HostTools
from flanneld_py.encap.firewall.watch import watch
from flanneld_py.encap.netlink import blackhole
from flanneld_py.encap.netlink.netlink import Netlink
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.etcd.client import Credentials, EtcdStore
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import RegistryError, Store

CAP_NET_ADMIN = 12  # linux/capability.h


class Daemon:
    """One agent in one process."""

    def __init__(self, options: Options, notifier: Notifier) -> None:
        self._options = options
        self._notifier = notifier
        self._clock = SystemClock()
        self._agent: Agent | None = None
        self._state = "starting"
        self._locks = Locks()
        self._sysctls = Sysctls(lambda: self._agent.wanted if self._agent is not None else (), self._clock)

    async def run(self) -> None:
        """Run until a signal comes. Raises UsageError, and FatalError or NoInterface for what an operator has to
        mend."""
        require_capability()
        self._locks.take_file(self._options.subnet_file)
        store = Paced(open_store(self._options), self._clock, Random())
        registry = Registry(store, self._options.prefix, self._options.lease_ttl)
        if flags := self._options.unprotected:
            log.warning(
                "the connection to etcd is not encrypted: certificates are not used, and a password can be read",
                **facts(endpoints=",".join(self._options.endpoints), flags=" ".join(flags)),
            )
        health = HealthServer(lambda: self._agent is not None and self._agent.ready.is_set(), self._status)
        kernel = Netlink()
        try:
            async with Tasks() as tasks:
                tasks.create_task(stop_on_signal(), name="signals")
                tasks.create_task(self._notifier.keep_watchdog(self._clock), name="watchdog")
                await self._serve_health(health)
                earlier = read_previous_run(self._options.subnet_file, self._options.prefix)
                keeper = self._blackhole(earlier)
                self._agent = await self._make_agent(registry, kernel, earlier)
                tasks.create_task(self._sysctls.run(), name="sysctls")
                relax_garbage_collection()
                await self._agent.start(tasks)
                self._sysctls.look()
                if self._options.blackhole:
                    tasks.create_task(keeper.run(wanted=True), name="blackhole")
                else:
                    await keeper.run(wanted=False)
                config = self._agent.wanted[0].config
                tasks.create_task(ConfigWatch(registry, config, self._clock, Random()).run(), name="config")
                self._notifier.tell(READY="1")
        except* Stopped:
            if self._agent is not None and self._options.release_on_stop:
                store.hurry()
                await release.at_stop(registry, self._agent.keeper.lease, self._agent.identity.name)
        finally:
            self._notifier.tell(STOPPING="1", STATUS="stopped; traffic goes on")
            health.close()
            kernel.close()
            self._locks.close()
            await registry.close()

    def _say(self, state: str) -> None:
        self._state = state
        self._notifier.tell(STATUS=state)

    async def _status(self) -> Document:
        from importlib.metadata import version  # Costs 15 ms, and few ask.

        known = await self._agent.describe() if self._agent is not None else starting(self._state)
        settings = [{"reason": reason, "do": do} for do, reason in self._sysctls.found.items()]
        return {"version": version("flanneld-py"), **known, "kernel_settings": settings}

    async def _serve_health(self, health: HealthServer) -> None:
        if self._options.healthz is None:
            return
        address, port = self._options.healthz
        try:
            await health.start(address, port)
        except OSError as error:
            raise FatalError(
                f"cannot serve health on {address}:{port} ({os.strerror(error.errno or 0)}); "
                "change --healthz-ip or --healthz-port"
            ) from error

    def _blackhole(self, earlier: PreviousRun) -> Blackhole:
        file, every = self._options.subnet_file, self._options.firewall.resync or 300.0
        change = blackhole.put, blackhole.remove
        return Blackhole(lambda: previous_subnets(file), earlier.subnets, *change, self._clock, every)

    async def _make_agent(self, registry: Registry, kernel: Netlink, earlier: PreviousRun) -> Agent:
        options = self._options
        rng = Random()

        async def find(config: NetworkConfig, overlay: Sequence[Network], keep: Underlay | None) -> Underlay:
            had = [keep.address, keep.address6] if keep is not None else []
            return underlay(await choose_underlay(options, config, overlay, had, stay=True))

        async def use(config: NetworkConfig) -> UnderlayChoice:
            overlay = previous_subnets(options.subnet_file)
            return await choose_underlay(options, config, overlay, earlier.addresses, stay=False)

        choice = await wait_for_network(registry, use, self._clock, rng, self._say)
        log.info("underlay chosen", **facts(underlay=underlay(choice), public_ip=choice.public_ip or choice.public_ip6))
        return Agent(
            Settings(
                options.subnet_file,
                options.margin,
                options.datapath,
                options.subnet_file.parent,
                options.datapath_workers or default_workers(len(os.sched_getaffinity(0))),
                options.prefix,
                options.subnet_len,
            ),
            registry,
            kernel,
            underlay(choice),
            find,
            read_identity(choice.interface.mac),
            self._clock,
            rng,
            self._say,
            self._locks,
            earlier,
            start_datapath,
            firewall_maker(options.firewall, self._clock, earlier, self._locks)
            if options.firewall.asked != "none"
            else None,
        )


def firewall_maker(
    options: FirewallSettings, clock: Clock, earlier: PreviousRun, locks: Locks
) -> Callable[[tuple[Desired, ...], Neighbours], FirewallReconciler]:
    """Return what makes the reconciler of this host's firewall rules, once the network is known."""

    def make(wanted: tuple[Desired, ...], neighbours: Neighbours) -> FirewallReconciler:
        suffix = name_suffix(wanted[0].backend.device)
        enforcer = Enforcer(HostTools(), options.asked, suffix, prefer_nft=wanted[0].config.nftables)
        former = PreviousRules(enforcer, earlier, locks.others, clock)
        watching = partial(watch, names_of_interest(suffix))
        return FirewallReconciler(enforcer, watching, options, wanted, neighbours, clock, Random(), former)

    return make


async def start_datapath(control: Path) -> None:
    """Start a userspace data plane that listens there. Imported here: most hosts never need it."""
    from flanneld_py.agent.datapath.client import start_process

    await start_process(control)


async def give_back(options: Options) -> None:
    """Give this host's lease back, and exit. Raises UsageError and FatalError."""
    locks, registry = Locks(), Registry(open_store(options), options.prefix, options.lease_ttl)
    try:
        locks.take_file(options.subnet_file)
        earlier = read_previous_run(options.subnet_file, options.prefix)
        about = previous_subnets(options.subnet_file), earlier.addresses
        choice = await choose_underlay(options, await registry.config(), *about, stay=False)
        await release.by_hand(registry, read_identity(choice.interface.mac).name, print)
    except (RegistryError, NoInterface, OSError) as error:
        raise FatalError(f"the lease cannot be given back: {error}") from error
    finally:
        locks.close()
        await registry.close()


async def stop_datapath(folder: Path) -> None:
    """End every userspace data plane that listens in the folder, for good. Raises FatalError."""
    from flanneld_py.agent.datapath.client import DatapathError, stop_process

    found = control_sockets(folder)
    for control in found.values():
        try:
            stopped = await stop_process(control)
        except DatapathError as error:
            raise FatalError(str(error)) from error
        log.info("userspace data plane stopped" if stopped else "no process there", **facts(control=control))
    if not found:
        log.info("there is no userspace data plane", **facts(folder=folder))


def relax_garbage_collection() -> None:
    """Spare ten thousand peers the collector: full collections over them stop the event loop for 20 to 50 ms each.

    What was imported so far lives as long as we do and is not looked at again; what the agent makes has few cycles.
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


async def choose_underlay(
    options: Options,
    config: NetworkConfig,
    overlay: Sequence[Network],
    had: Sequence[IPAddress | None],
    *,
    stay: bool,
) -> UnderlayChoice:
    """Look at the host and choose the underlay interface; see watch.Find and choose.choose.

    Raises NoInterface, OSError.
    """
    host = outside(await read_host(options.can_reach), overlay)
    asked = UnderlayOptions(
        options.interfaces, options.interface_regexes, options.can_reach, options.public_ip, options.public_ip6
    )
    kept = [address for address in had if address is not None]
    families = {"ipv4": config.ipv4 is not None, "ipv6": config.ipv6 is not None}
    choice = choose(host, asked, **families, keep=kept, stay=stay)
    for public, own, family in (
        (choice.public_ip, choice.address, config.ipv4),
        (choice.public_ip6, choice.address6, config.ipv6),
    ):
        if public is not None and family is not None and public != own and public in family.network:
            raise NoInterface(
                f"the public address {public} is in Network {family.network} and not that of {choice.interface.name}: "
                "other hosts would send to it through the tunnel; give one at which they reach us"
            )
    return choice


def underlay(choice: UnderlayChoice) -> Underlay:
    """Return what a backend needs to know of the chosen interface."""
    addresses = (choice.address, choice.public_ip, choice.address6, choice.public_ip6)
    return Underlay(choice.interface.name, choice.interface.mtu, *addresses, choice.interface.broadcasts)


def require_capability() -> None:
    """Check that we may change devices and routes. Raises FatalError."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> CAP_NET_ADMIN & 1:
            raise FatalError(
                "devices and routes cannot be changed without CAP_NET_ADMIN: run as root, or give it to us"
            )


def open_store(options: Options) -> Store:
    """Make the client for etcd that was asked for; it connects when it is first used. Raises UsageError."""
    credentials = Credentials(options.username, options.password) if options.username else None
    try:
        if options.client == "etcd3":
            from flanneld_py.registry.etcd.etcd3_client import Etcd3Store  # An optional extra.

            return Etcd3Store(options.endpoints, tls=options.tls, credentials=credentials)
        return EtcdStore(options.endpoints, tls=options.tls, credentials=credentials)
    except (ValueError, OSError, RegistryError) as error:
        raise UsageError(f"etcd cannot be reached like that: {error}") from error
