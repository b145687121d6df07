"""Several hosts that advertise one address, whatever the config turns into: one holds its subnet, the others wait.

Vagrant's 10.0.2.15, a cloned VM, hosts behind one NAT address.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import NetworkConfig, parse_config
from flanneld_py.registry.lifetime import PERIOD, TTL
from flanneld_py.registry.model import Lease, LeaseAttrs, Subnets
from flanneld_py.registry.store import Delete, Put
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore
from tests.lease_host import CONFIG, PREFIX, Host
from tests.sim.test_races import Hesitant, leased

ADDRESS = "10.0.2.15"
SUBNET = Subnets(IPv4Network("10.5.7.0/24"))
DUAL = b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
CONFIGS = {
    "as it was": CONFIG,
    "IPv6 on": parse_config(DUAL),
    "smaller subnets": parse_config(b'{"Network": "10.5.0.0/16", "SubnetLen": 26, "Backend": {"Type": "vxlan"}}'),
    "another range": parse_config(
        b'{"Network": "10.5.0.0/16", "SubnetMin": "10.5.128.0", "Backend": {"Type": "vxlan"}}'
    ),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock.now)


async def live(host: Host, config: NetworkConfig) -> None:
    await host.acquire(config)
    async with host.running(config):
        await asyncio.Event().wait()


@asynccontextmanager
async def living(host: Host, config: NetworkConfig = CONFIG) -> AsyncIterator[None]:
    """Let a host claim a lease and keep it until the block ends; it is not waited for."""
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(live(host, config))
        try:
            yield
        finally:
            life.cancel()


async def reserve(store: MemoryStore, address: str, subnets: Subnets = SUBNET) -> None:
    value = encode_attrs(LeaseAttrs(IPv4Address(address)))
    await store.commit([], [Put(f"{PREFIX}/subnets/{str(subnets.v4).replace('/', '-')}", value)])


@pytest.mark.parametrize("changed", sorted(CONFIGS))
async def test_a_living_hosts_lease_is_not_replaced_whatever_the_config_is_now(
    store: MemoryStore, clock: ManualClock, changed: str
) -> None:
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    async with living(first):
        await clock.run_for(PERIOD / 2)
        had, revision = first.lease, store.revision
        async with living(second, CONFIGS[changed]):
            await clock.run_for(1800)
            assert second.keeper.lease is None
            assert (first.lease, first.lost) == (had, [])
    assert store.revision == revision, "nobody wrote anything"


async def test_a_dead_hosts_lease_that_does_not_fit_is_replaced(store: MemoryStore, clock: ManualClock) -> None:
    await Host(store, clock, 1, public_ip=ADDRESS).acquire()
    second = Host(store, clock, 2, public_ip=ADDRESS)
    async with living(second, CONFIGS["IPv6 on"]):
        await clock.run_for(600)
        assert second.lease.subnets.v6 is not None
    assert len([entry async for page in store.pages(f"{PREFIX}/subnets/") for entry in page.entries]) == 1


async def test_a_reservation_is_one_hosts_as_long_as_it_lives(store: MemoryStore, clock: ManualClock) -> None:
    """Nothing but the key tells whose it is, and that has no TTL."""
    await reserve(store, ADDRESS)
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    async with living(first):
        await clock.run_for(2 * TTL)
        assert first.lease.subnets == SUBNET
        revision = store.revision
        async with living(second):
            await clock.run_for(3600)
            assert second.keeper.lease is None
            assert not first.lost
        assert store.revision == revision
    async with living(second):
        await clock.run_for(600)
        assert (second.lease.subnets, second.lease.lease_id) == (SUBNET, 0)


async def test_of_two_hosts_that_find_a_reservation_at_once_one_has_it(store: MemoryStore, clock: ManualClock) -> None:
    await reserve(store, ADDRESS)
    hosts = [Host(store, clock, number, public_ip=ADDRESS) for number in (1, 2)]
    async with living(hosts[0]), living(hosts[1]):
        await clock.run_for(3600)
        assert [host.keeper.lease is None for host in hosts].count(True) == 1
        assert not any(host.lost for host in hosts)


async def test_a_living_host_whose_reservation_does_not_fit_any_more_keeps_it_to_itself(
    store: MemoryStore, clock: ManualClock
) -> None:
    await reserve(store, ADDRESS)
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    async with living(first):
        await clock.run_for(600)
        async with living(second, CONFIGS["IPv6 on"]):
            await clock.run_for(3600)
            assert second.keeper.lease is None
            assert (first.lease.subnets, first.lost) == (SUBNET, [])


async def test_a_record_of_ours_does_not_make_another_living_hosts_lease_ours(
    store: MemoryStore, clock: ManualClock
) -> None:
    """The record stays for a day when an operator deletes the lease, and another host may have the subnet since."""
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    subnets = (await first.acquire()).subnets
    await store.commit([], [Delete(first.key)])
    async with living(Host(store, clock, 3, public_ip="192.0.2.3")):
        pass
    await second.acquire(previous=str(subnets))
    assert second.lease.subnets == subnets
    async with second.running():
        again = Host(store, clock, 1, public_ip=ADDRESS)
        async with living(again):
            await clock.run_for(1800)
            assert again.keeper.lease is None
            assert not second.lost


async def test_a_host_that_was_silent_does_not_fight_for_what_was_taken_over(
    store: MemoryStore, clock: ManualClock
) -> None:
    """Suspended, say: its lease was taken for a dead host's. Else both write it again, each in its turn, for ever."""
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    await first.acquire()
    await clock.run_for(600)
    async with living(second):
        await clock.run_for(600)
        assert second.keeper.lease is not None
        async with first.running():
            await clock.run_for(600)
            revision = store.revision
            await clock.run_for(3600)
            assert first.lost
            assert not second.lost
            assert store.revision == revision


async def test_a_host_whose_lease_expired_does_not_claim_it_beside_another_of_its_address(
    store: MemoryStore, clock: ManualClock
) -> None:
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2, public_ip=ADDRESS)
    await first.acquire()
    await store.revoke(first.lease.lease_id)
    async with living(second):
        await clock.run_for(10)
        assert second.lease.subnets != first.lease.subnets
        async with first.running():
            await clock.run_for(600)
            assert first.lost
            assert not second.lost
            revision = store.revision
            await clock.run_for(3600)
            assert store.revision == revision


async def test_a_clone_with_our_identity_and_address_is_found_by_its_name(
    store: MemoryStore, clock: ManualClock
) -> None:
    """Vagrant's machines have one MAC on their NAT interface; a box may come with a machine id."""
    first, clone = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 1, public_ip=ADDRESS)
    identity = clone.claimer._identity
    clone.claimer._identity = replace(identity, boot_id="boot-of-the-clone", hostname="web-2")
    async with living(first):
        await clock.run_for(PERIOD / 2)
        async with living(clone):
            await clock.run_for(1800)
            assert clone.keeper.lease is None
            assert not first.lost


async def test_a_host_known_by_its_boot_has_its_lease_at_once_under_another_identity(
    store: MemoryStore, clock: ManualClock
) -> None:
    """Its MAC has changed, or its machine id cannot be read any more (an agent moved into a container)."""
    first = Host(store, clock, 1)
    async with living(first):
        await clock.run_for(PERIOD / 2)
    other = Host(store, clock, 1)
    other.claimer._identity = replace(other.claimer._identity, name="another-name")
    async with living(other):
        await clock.run_until(lambda: other.keeper.lease is not None, 1)
        assert other.lease.subnets == first.lease.subnets


@dataclass(frozen=True, slots=True)
class Start:
    host: int
    config: str
    rebooted: bool


@dataclass(frozen=True, slots=True)
class Stop:
    host: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """An operator writes a reservation for an address, or makes what is there one."""

    address: str
    number: int


@dataclass(frozen=True, slots=True)
class Pass:
    seconds: float


Event = Start | Stop | Reserve | Pass

ADDRESSES = {1: ADDRESS, 2: ADDRESS, 3: ADDRESS, 4: "192.0.2.4"}
events = st.lists(
    st.one_of(
        st.builds(Start, st.sampled_from(sorted(ADDRESSES)), st.sampled_from(sorted(CONFIGS)), st.booleans()),
        st.builds(Stop, st.sampled_from(sorted(ADDRESSES))),
        st.builds(Reserve, st.sampled_from(sorted(set(ADDRESSES.values()))), st.integers(1, 3)),
        st.builds(Pass, st.sampled_from((1.0, PERIOD, 600.0, 3600.0))),
    ),
    max_size=12,
)


class Story:
    """Hosts that start and stop while the config and reservations change."""

    def __init__(self, seed: int) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock.now)
        self.asked = Hesitant(self.store, self.clock, Random(seed))
        self.hosts: dict[int, Host] = {}
        self.lives: dict[int, AsyncExitStack] = {}
        self.boots: dict[int, int] = {}

    async def happens(self, event: Event) -> None:
        match event:
            case Start(number, config, rebooted):
                await self.happens(Stop(number))
                self.boots[number] = self.boots.get(number, 0) + rebooted
                host = self.hosts[number] = Host(self.asked, self.clock, number, ADDRESSES[number])
                boot = f"boot-{number}-{self.boots[number]}"
                host.claimer._identity = replace(host.claimer._identity, boot_id=boot)
                self.lives[number] = AsyncExitStack()
                await self.lives[number].enter_async_context(living(host, CONFIGS[config]))
            case Stop(number):
                if number in self.hosts:
                    del self.hosts[number]
                    await self.lives.pop(number).aclose()
            case Reserve(address, number):
                await self.clock.run_for(1)  # An operator does not overlap what a host takes in this moment.
                subnets = Subnets(IPv4Network(f"10.5.{number}.0/24"))
                free = not any(subnets.overlaps(taken) for taken in (await leased(self.store)).values())
                mine = [held for held in self.held() if str(held.attrs.public_ip) == address]
                if mine:
                    key = f"{PREFIX}/subnets/{'&'.join(str(s).replace('/', '-') for s in mine[0].subnets.families)}"
                    await self.store.commit([], [Put(key, encode_attrs(mine[0].attrs))])
                elif free:
                    await reserve(self.store, address, subnets)
            case Pass(seconds):
                await self.clock.run_for(seconds)

    def held(self) -> list[Lease]:
        return [host.lease for host in self.hosts.values() if host.keeper.lease is not None]

    def check(self) -> None:
        leases = self.held()
        assert not [pair for pair in combinations(leases, 2) if pair[0].subnets.overlaps(pair[1].subnets)]
        addresses = [lease.attrs.public_ip for lease in leases]
        assert len(set(addresses)) == len(addresses), "one of them would be no peer of anybody"
        assert not [host for host in self.hosts.values() if host.lost], "a living host keeps what it has"


async def unfold(story: list[Event], seed: int) -> None:
    cluster = Story(seed)
    try:
        for event in story:
            await cluster.happens(event)
            if not isinstance(event, Start):  # Else the next one may start in the same moment.
                await cluster.clock.run_for(1)
                cluster.check()
        await cluster.clock.run_for(900)
        cluster.check()
        revision = cluster.store.revision
        await cluster.clock.run_for(900)
        assert cluster.store.revision == revision, "nobody writes again what another has written"
        for address in set(ADDRESSES.values()):
            running = [number for number in cluster.hosts if ADDRESSES[number] == address]
            having = [number for number in running if cluster.hosts[number].keeper.lease is not None]
            assert len(having) == min(1, len(running)), "and one of them has a lease"
    finally:
        for number in list(cluster.hosts):
            await cluster.happens(Stop(number))


@given(events, st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_at_every_moment_one_host_of_an_address_holds_a_lease(story: list[Event], seed: int) -> None:
    asyncio.run(unfold(story, seed))


def move_to(host: Host, address: str) -> None:
    """Let a running host be known by another address, as when its underlay moves."""
    host.address = IPv4Address(address)
    host.claimer.move(host.address, host.address6)
    host.keeper.revise(host.attrs(None))


@pytest.mark.parametrize("overwritten", [False, True])
async def test_a_host_that_moves_to_an_address_in_use_does_not_take_it(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture, overwritten: bool
) -> None:
    first, second = Host(store, clock, 1, public_ip=ADDRESS), Host(store, clock, 2)
    async with living(first), living(second):
        await clock.run_for(PERIOD)
        claim, had = await store.get(f"{PREFIX}/ext/addresses/{ADDRESS}"), second.lease
        move_to(second, ADDRESS)
        if overwritten:
            await store.commit([], [Put(second.key, b"garbage", second.lease.lease_id)])
        await clock.run_for(2 * TTL)
        assert await store.get(f"{PREFIX}/ext/addresses/{ADDRESS}") == claim
        assert (second.lease, second.lost, first.lost) == (had, [], []), "it keeps its subnet meanwhile"
        assert "'web-1' is alive and advertises our address" in caplog.text + str([vars(r) for r in caplog.records])
        move_to(second, "192.0.2.3")
        await clock.run_for(600)
        assert (second.lease.subnets, str(second.lease.address)) == (had.subnets, "192.0.2.3")


async def test_a_host_that_moves_to_a_dead_hosts_address_takes_it(store: MemoryStore, clock: ManualClock) -> None:
    await Host(store, clock, 1, public_ip=ADDRESS).acquire()
    second = Host(store, clock, 2)
    async with living(second):
        await clock.run_for(PERIOD)
        had = second.lease
        move_to(second, ADDRESS)
        await clock.run_for(600)
        assert (second.lease.subnets, str(second.lease.address), second.lost) == (had.subnets, ADDRESS, [])
        claim = await store.get(f"{PREFIX}/ext/addresses/{ADDRESS}")
        assert claim is not None
        assert claim.value == second.key.rpartition("/")[2].encode()


async def test_a_host_that_starts_with_another_address_does_not_take_one_in_use(
    store: MemoryStore, clock: ManualClock
) -> None:
    """It has a lease by its identity, which is no reason to be known by what another host is known by."""
    first = Host(store, clock, 1, public_ip=ADDRESS)
    await Host(store, clock, 2).acquire()
    async with living(first):
        await clock.run_for(PERIOD)
        claim = await store.get(f"{PREFIX}/ext/addresses/{ADDRESS}")
        second = Host(store, clock, 2, public_ip=ADDRESS)
        async with living(second):
            await clock.run_for(1800)
            assert second.keeper.lease is None
            assert await store.get(f"{PREFIX}/ext/addresses/{ADDRESS}") == claim
