"""Whole agents in one process: real logic, one in-memory registry, a fake kernel each, and a clock turned by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random

from flanneld_py.agent.agent import Agent
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.lease.pace import Paced
from flanneld_py.agent.lock import Held
from flanneld_py.agent.previous_run import read_previous_run
from flanneld_py.agent.settings import Settings
from flanneld_py.agent.tasks import Tasks
from flanneld_py.agent.underlay.choose import Network, NoInterface
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.table import DatapathChoice
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.state import Entry, FdbEntry, Key, Neighbour, Nexthop, Route, TunLink, VxlanLink
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Delete, Put, Unavailable
from tests.fakes.clock import ManualClock
from tests.fakes.datapath import FakeProcess
from tests.fakes.kernel import FakeKernel
from tests.fakes.store import MemoryStore

PREFIX = "/coreos.com/network"
CONFIG = b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
DEVICE = "flannel.1"


class FakeLocks:
    """What agents take is free; `neighbours` is what other agents of the host have."""

    def __init__(self) -> None:
        self.neighbours = Held()

    def take(self, name: str) -> None:
        pass

    def serve(self, networks: Iterable[Network]) -> None:
        pass

    def others(self) -> Held:
        return self.neighbours


class Cluster:
    """A registry, a clock, and as many hosts as asked for; a host's kernel outlives its agents."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock.now)
        self.asked: dict[int, Paced] = {}
        """What each host asks the registry through."""
        self._folder = folder
        self._kernels: dict[int, FakeKernel] = {}
        self._processes: asyncio.TaskGroup | None = None
        self._running: dict[tuple[int, str], asyncio.Task[None]] = {}
        self.datapaths: dict[tuple[int, str], FakeProcess] = {}
        """The data-plane process of each device, by host and device, that ever needed one."""
        self.underlays: dict[int, Underlay | None] = {}
        """What each host would choose as its underlay now."""
        self.locks = FakeLocks()

    async def _write(self, operation: Put | Delete) -> None:
        """Write as somebody does whom the store's faults do not keep from it."""
        while True:
            try:
                await self.store.commit([], [operation])
                return
            except Unavailable:
                continue

    async def configure(self, config: bytes = CONFIG) -> None:
        await self._write(Put(f"{PREFIX}/config", config))

    async def put(self, name: str, public_ip: str, mac: str) -> None:
        """Write the lease of a host that is not simulated, `name` being its key's last part."""
        attrs = LeaseAttrs(IPv4Address(public_ip), backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": mac})
        await self.put_raw(name, encode_attrs(attrs))

    async def put_raw(self, name: str, value: bytes) -> None:
        await self._write(Put(f"{PREFIX}/subnets/{name}", value))

    async def delete(self, name: str) -> None:
        await self._write(Delete(f"{PREFIX}/subnets/{name}"))

    async def take_over(self, name: str, public_ip: str, mac: str) -> None:
        """Delete a lease and give its subnet to another host, without a moment between."""
        await asyncio.gather(self.delete(name), self.put(name, public_ip, mac))

    def kernel(self, number: int) -> FakeKernel:
        return self._kernels.setdefault(number, FakeKernel())

    @asynccontextmanager
    async def agent(self, number: int, datapath: DatapathChoice = "auto") -> AsyncIterator[Agent]:
        """Run an agent on a host until the block ends; it is not waited for."""
        address, address6 = IPv4Address(f"192.0.2.{number}"), IPv6Address(f"2001:db8::{number}")
        first = Underlay("eth0", 1500, address, address, address6, address6)
        self.underlays.setdefault(number, first)

        async def find(_: NetworkConfig, overlay: Sequence[Network], keep: Underlay | None) -> Underlay:
            underlay = self.underlays[number]
            if underlay is None:
                raise NoInterface("there is no interface")
            return underlay

        control = self._folder / str(number)
        control.mkdir(exist_ok=True)
        agent = Agent(
            # Simulated days are long: fewer looks at the file.
            Settings(self._folder / f"{number}.env", datapath=datapath, control=control, workers=number, file_looks=60),
            Registry(self.asked.setdefault(number, Paced(self.store, self.clock, Random(number))), PREFIX),
            self.kernel(number),
            first,
            find,
            Identity(f"host-{number}", "boot", f"web-{number}"),
            self.clock,
            Random(number),
            lambda _: None,
            self.locks,
            read_previous_run(self._folder / f"{number}.env", PREFIX),
            lambda control: self._start_datapath(number, control),
        )

        async def live() -> None:
            async with Tasks() as tasks:
                await agent.start(tasks)

        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(live())
            try:
                yield agent
            finally:
                life.cancel()

    @asynccontextmanager
    async def processes(self) -> AsyncIterator[None]:
        """Let hosts have data-plane processes until the block ends; they outlive the agents in it."""
        async with asyncio.TaskGroup() as self._processes:
            try:
                yield
            finally:
                for number, device in self.datapaths:
                    await self.crash(number, device)

    async def crash(self, number: int, device: str) -> None:
        """End a host's data-plane process, and with it its device."""
        task = self._running[number, device]
        task.cancel()
        await asyncio.wait([task])

    async def _start_datapath(self, number: int, control: Path) -> None:
        assert self._processes is not None, "an agent that needs a data plane runs inside processes()"
        kernel, device = self.kernel(number), control.stem.removeprefix("datapath-")

        def tell(configured: messages.Configure | None) -> None:
            if configured is not None:
                kernel.meddle_create_link(TunLink(configured.device, 1500, up=False))
            elif device in kernel.links:
                kernel.meddle_delete_link(device)

        process = self.datapaths[number, device] = FakeProcess(control, tell=tell)
        self._running[number, device] = self._processes.create_task(process.run())

    def move(self, number: int, underlay: Underlay | None) -> None:
        """Give a host another underlay, or none."""
        self.underlays[number] = underlay
        self.kernel(number).meddle_host()

    async def settle(self, agent: Agent, seconds: float = 60) -> None:
        """Let an agent work until it is ready and has nothing to do, and some time beyond every backoff."""
        await self.clock.run_until(agent.ready.is_set, max(seconds, 300))  # A registry that fails often takes its time.
        await self.clock.run_for(seconds)


def entries(lease: Lease) -> dict[Key, Entry]:
    """What a lease has to look like in a peer's kernel, worked out without the code under test."""
    data = lease.attrs.backend_data
    assert isinstance(data, dict)
    mac = bytes.fromhex(str(data["VtepMAC"]).replace(":", ""))
    base = lease.subnets.v4.network_address.packed
    wanted: tuple[Entry, ...] = (
        Neighbour(DEVICE, base, mac),
        FdbEntry(DEVICE, mac, lease.attrs.public_ip.packed),
        Nexthop(DEVICE, base),
        Route(DEVICE, base, lease.subnets.v4.prefixlen, base),
    )
    return {entry.key: entry for entry in wanted}


def on_device(kernel: FakeKernel) -> dict[Key, Entry]:
    """Everything on the overlay device but our own address."""
    return {key: entry for key, entry in kernel.tables.items() if key[1] == DEVICE and key[0] != "address"}


def device(kernel: FakeKernel) -> VxlanLink:
    link = kernel.links[DEVICE]
    assert isinstance(link, VxlanLink)
    return link
