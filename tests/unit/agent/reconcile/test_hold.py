"""One doubt, two tables: kernel and userspace data plane keep the same peers, for the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from random import Random

from flanneld_py.agent.datapath.peerfeed import PeerFeed
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.reconcile.onlink import OnLinkVerdicts
from flanneld_py.agent.reconcile.reconciler import Reconciler
from flanneld_py.agent.reconcile.sink import Changes
from flanneld_py.encap.backends.base import Found, Underlay
from flanneld_py.encap.backends.vxlan import Vxlan
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.family import IPV4
from flanneld_py.encap.peers import Own
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Lease, LeaseAttrs, Page, Subnets
from flanneld_py.registry.view import LeaseView
from tests.fakes.clock import ManualClock
from tests.fakes.kernel import FakeKernel

CONFIG = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
ADDRESS = IPv4Address("192.0.2.1")
UNDERLAY = Underlay("eth0", 1500, ADDRESS, ADDRESS)


class Process:
    """A carrier with a table, kept as the Supervisor keeps that of a process that outlives it."""

    def __init__(self) -> None:
        self.peers: set[str] = set()
        self._feed = PeerFeed()

    def reached(self) -> None:
        if self._feed.complete:
            self.peers.clear()
        self.peers.update(peer.key for peer in self._feed.all())

    def restart_agent(self) -> None:
        self._feed = PeerFeed()

    def update(self, changes: Changes) -> None:
        known = [(key, messages.Peer(key, bytes(4), 24, bytes(4)) if peer else None) for key, peer in changes]
        self._feed.update(known)
        gone, changed = self._feed.changes()
        self.peers.difference_update(gone)
        self.peers.update(peer.key for peer in changed)

    def hold(self) -> int:
        return self._feed.hold()

    def release(self) -> None:
        self._feed.release()
        self.reached()


class Host:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.kernel = FakeKernel()
        self.process = Process()
        self.view = LeaseView()
        self.revision = 0
        self.on_link = OnLinkVerdicts(self.kernel, "eth0", IPV4, self.clock)
        backend = Vxlan(CONFIG, UNDERLAY, self.on_link, nexthop_objects=True)
        ours = Lease(Subnets(IPv4Network("10.5.1.0/24")), backend.attrs(Found("host")))
        own = Own("k/10.5.1.0-24", ours.subnets, ADDRESS, ADDRESS)
        self._wanted = Desired(CONFIG, backend, own, backend.link(ours), None)

    @asynccontextmanager
    async def agent(self, *listed: int) -> AsyncIterator[Reconciler]:
        """An agent in its prime; it finds the leases listed."""
        self.view = LeaseView()
        self.list(*listed)
        tools = (self.kernel, self.view, self._wanted, self.clock, Random(1), self.process, self.on_link)
        reconciler = Reconciler(*tools, Neighbours((self._wanted,)))
        self.kernel.listen(["flannel.1"], reconciler.on_events)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(reconciler.run())
            await self.clock.run_until(reconciler.surveyed.is_set)
            self.process.reached()
            await self.clock.run_for(1)
            yield reconciler
            running.cancel()

    def list(self, *numbers: int) -> None:
        self.revision += 1
        self.view.begin_listing()
        self.view.page(Page({f"k/10.5.{n}.0-24": lease(n, self.revision) for n in numbers}, self.revision))
        self.view.end_listing()

    def both(self) -> tuple[set[str], set[str]]:
        """The peers that the kernel has routes to, and those of the data plane."""
        routes = {f"k/{IPv4Address(key[2])}-{key[3]}" for key in self.kernel.tables if key[0] == "route"}
        return routes, self.process.peers


def lease(number: int, revision: int) -> Lease:
    attrs = LeaseAttrs(
        IPv4Address(f"192.0.2.{number}"),
        backend_type="vxlan",
        backend_data={"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"},
    )
    return Lease(Subnets(IPv4Network(f"10.5.{number}.0/24")), attrs, revision, revision)


def same(*numbers: int) -> tuple[set[str], set[str]]:
    keys = {f"k/10.5.{number}.0-24" for number in numbers}
    return keys, keys


async def test_an_emptied_registry_takes_no_peer_from_either_for_a_day() -> None:
    host = Host()
    async with host.agent(2, 3) as reconciler:
        assert host.both() == same(2, 3)
        host.list()
        reconciler.mark()
        await host.clock.run_for(TTL - 60)
        assert host.both() == same(2, 3)
        host.list(3, 4)
        reconciler.mark()
        await host.clock.run_for(1)
        assert host.both() == same(2, 3, 4)
        await host.clock.run_for(120)
        assert host.both() == same(3, 4)


async def test_an_agent_that_starts_with_an_empty_registry_keeps_what_it_does_not_know() -> None:
    host = Host()
    async with host.agent(2, 3):
        pass
    host.process.restart_agent()
    async with host.agent() as reconciler:
        assert host.both() == same(2, 3)
        host.list(3, 4)
        reconciler.mark()
        await host.clock.run_for(1)
        assert host.both() == same(2, 3, 4)
        await host.clock.run_for(TTL)
        assert host.both() == same(3, 4)
