"""The keeper against the in-memory store, with the follower that feeds its view, and a clock turned by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanneld_py.agent.log import TextFormatter
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.lifetime import PERIOD, TTL
from flanneld_py.registry.model import LeaseAttrs, Owner, Subnets
from flanneld_py.registry.store import Conflict, Delete, Denied, Expect, Put, RegistryError, Unavailable
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore
from tests.lease_host import PREFIX, Host, identity

SMALL = parse_config(b'{"Network": "10.5.0.0/22", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}')
DUAL = parse_config(
    b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
)
SIX = parse_config(
    b'{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
)
SUBNET = Subnets(IPv4Network("10.5.7.0/24"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> MemoryStore:
    return MemoryStore(clock.now)


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(TextFormatter(timestamps=False).format(record) for record in caplog.records)


async def put_lease(store: MemoryStore, subnet: str, public_ip: str, mac: str = "02:00:00:00:00:99") -> int:
    """Write a lease as flannel's daemon does: granted for a day, no owner beside it."""
    lease_id = await store.grant(TTL)
    attrs = LeaseAttrs(IPv4Address(public_ip), backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": mac})
    await store.commit([], [Put(f"{PREFIX}/subnets/{subnet}", encode_attrs(attrs), lease_id)])
    return lease_id


async def test_a_new_host_writes_its_lease_and_beside_it_only_ext(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    (page,) = [page async for page in store.pages(PREFIX)]
    assert [entry.key for entry in page.entries] == [
        f"{PREFIX}/ext/addresses/192.0.2.1",
        f"{PREFIX}/ext/hosts/host-1",
        f"{PREFIX}/ext/subnets/{str(lease.subnets.v4).replace('/', '-')}",
        f"{PREFIX}/subnets/{str(lease.subnets.v4).replace('/', '-')}",
    ]
    assert {entry.lease_id for entry in page.entries} == {lease.lease_id}, "they expire together"
    assert await store.time_to_live(lease.lease_id) == (TTL, TTL)


async def test_a_restart_keeps_the_lease_without_writing(store: MemoryStore, clock: ManualClock) -> None:
    first = await Host(store, clock, 1).acquire()
    revision = store.revision
    again = await Host(store, clock, 1).acquire()
    assert (again.subnets, again.lease_id, store.revision) == (first.subnets, first.lease_id, revision)


async def test_the_subnet_survives_a_change_of_the_public_address(store: MemoryStore, clock: ManualClock) -> None:
    """Flannel leases a new subnet here, and the old one leaks for a day."""
    first = await Host(store, clock, 1).acquire()
    again = await Host(store, clock, 1, public_ip="192.0.2.77").acquire()
    assert again.subnets == first.subnets
    assert again.attrs.public_ip == IPv4Address("192.0.2.77")


async def test_a_lease_of_flannels_daemon_with_our_address_is_taken_over(
    store: MemoryStore, clock: ManualClock
) -> None:
    await put_lease(store, "10.5.9.0-24", "192.0.2.1")
    lease = await Host(store, clock, 1).acquire()
    assert lease.subnets.v4 == IPv4Network("10.5.9.0/24")


async def test_the_previous_subnet_is_taken_if_free(store: MemoryStore, clock: ManualClock) -> None:
    assert (await Host(store, clock, 1).acquire(previous="10.5.44.0/24")).subnets.v4 == IPv4Network("10.5.44.0/24")
    assert (await Host(store, clock, 2).acquire(previous="10.5.44.0/24")).subnets.v4 != IPv4Network("10.5.44.0/24")


async def test_losing_a_race_means_choosing_again(store: MemoryStore, clock: ManualClock) -> None:
    """Flannel exits here: its retry waits for another error than the one that comes."""
    host = Host(store, clock, 1)
    rival = Host(store, clock, 2)
    listing = host.followed.list

    async def list_and_be_late() -> None:
        await listing()
        if not rival.view.synced:
            await rival.acquire(previous="10.5.44.0/24")

    host.claimer._list = list_and_be_late
    mine = await host.acquire(previous="10.5.44.0/24")
    assert rival.lease.subnets.v4 == IPv4Network("10.5.44.0/24")
    assert mine.subnets != rival.lease.subnets


async def test_out_of_subnets_waits_until_one_is_free(store: MemoryStore, clock: ManualClock) -> None:
    ids = [await put_lease(store, f"10.5.{n}.0-24", f"192.0.2.{n + 10}") for n in range(1, 4)]
    host = Host(store, clock, 1)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(host.acquire(SMALL))
        await clock.run_for(30)
        assert not waiting.done()
        await store.revoke(ids[1])
        await clock.run_until(waiting.done, 60)
        assert waiting.result().subnets.v4 == IPv4Network("10.5.2.0/24")


async def test_an_unreachable_registry_is_waited_for(store: MemoryStore, clock: ManualClock) -> None:
    store.fail(5, Unavailable("no endpoint answers"))
    host = Host(store, clock, 1)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(host.acquire())
        await clock.run_until(waiting.done, 60)


async def test_the_lease_outlives_its_ttl_and_renewals_are_seen_by_nobody(
    store: MemoryStore, clock: ManualClock
) -> None:
    host = Host(store, clock, 1)
    await host.acquire()
    revision = store.revision
    async with host.running():
        await clock.run_for(3 * PERIOD)
        assert (await store.time_to_live(host.lease.lease_id))[0] > TTL - PERIOD - 1
        await clock.run_for(TTL + 2 * PERIOD)
    assert store.revision == revision, "a renewal is no event: flannel's are 4.3 million an hour at 10 000 hosts"
    assert await store.get(host.key) is not None


async def test_a_failing_renewal_is_tried_again_and_warned_about_in_time(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(store, clock, 1, margin=TTL - 600)
    await host.acquire()
    async with host.running():
        await clock.run_for(PERIOD / 2)
        store.fail(400, Unavailable("no endpoint answers"))  # LeaseSyncer and keeper try every few seconds.
        store.cut_watches()
        await clock.run_until(lambda: host.keeper.overdue, 900)
        await clock.run_until(lambda: not host.keeper.overdue, 3600)
    assert 1 <= caplog.text.count("cannot be renewed") <= 3, "said every ten minutes, not at every try"


async def test_a_deleted_lease_is_claimed_again_with_the_same_subnet(store: MemoryStore, clock: ManualClock) -> None:
    """Flannel exits with code 0 and stays down."""
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await store.commit([], [Delete(host.key)])
        await clock.run_until(lambda: host.lease.mod_revision > lease.mod_revision, 10)
        assert host.lease.subnets == lease.subnets
        entry = await store.get(host.key)
        assert entry is not None
        assert entry.value == encode_attrs(lease.attrs)


async def test_an_expired_lease_is_claimed_again(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await store.revoke(lease.lease_id)
        await clock.run_until(lambda: host.lease.lease_id != lease.lease_id, 10)
        assert host.lease.subnets == lease.subnets
        assert not host.lost


async def test_a_subnet_that_another_host_took_is_given_up(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    name = str(lease.subnets.v4).replace("/", "-")
    await store.revoke(lease.lease_id)
    await put_lease(store, name, "192.0.2.99")
    async with host.running():
        await clock.run_until(lambda: host.lease.subnets != lease.subnets, 600)
    assert host.lost
    assert (await store.get(f"{PREFIX}/subnets/{name}")) is not None


async def test_an_overwritten_lease_is_written_again_but_not_in_a_busy_loop(
    store: MemoryStore, clock: ManualClock
) -> None:
    host = Host(store, clock, 1)
    await host.acquire()
    async with host.running():
        wrote = 0

        async def rival() -> None:
            nonlocal wrote
            while True:
                entry = await store.get(host.key)
                if entry is not None and entry.value == encode_attrs(host.attrs(None)):
                    await store.commit([], [Put(host.key, b"garbage", 0)])
                    wrote += 1
                await clock.sleep(0.5)

        async with asyncio.TaskGroup() as tasks:
            fighting = tasks.create_task(rival())
            await clock.run_for(600)
            fighting.cancel()
        assert 3 < wrote < 40
        await clock.run_for(120)
        entry = await store.get(host.key)
        assert entry is not None
        assert entry.value == encode_attrs(host.attrs(None))


async def test_a_reservation_stays_one(store: MemoryStore, clock: ManualClock) -> None:
    """With flannel a reservation becomes an ordinary lease at its first use."""
    attrs = LeaseAttrs(IPv4Address("192.0.2.1"))
    await store.commit([], [Put(f"{PREFIX}/subnets/10.5.7.0-24", encode_attrs(attrs), 0)])
    host = Host(store, clock, 1)
    assert (await host.acquire()).subnets == SUBNET
    async with host.running():
        await clock.run_for(TTL + 2 * PERIOD)
    entry = await store.get(f"{PREFIX}/subnets/10.5.7.0-24")
    assert entry is not None
    assert entry.lease_id == 0
    assert entry.value == encode_attrs(host.attrs(None))


async def test_a_lease_made_a_reservation_at_run_time_stays_one(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await store.commit([], [Put(host.key, encode_attrs(lease.attrs), 0)])
        await clock.run_until(lambda: host.lease.lease_id == 0, 10)
        await store.revoke(lease.lease_id)
        await clock.run_for(TTL)
        assert await store.get(host.key) is not None


async def test_what_is_beside_a_lease_made_a_reservation_lives_as_long(store: MemoryStore, clock: ManualClock) -> None:
    """Owner and claims were bound to the lease that nobody renews any more."""
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await store.commit([], [Put(host.key, encode_attrs(lease.attrs), 0)])
        await clock.run_for(TTL + 600)
    again = Host(store, clock, 1, public_ip="192.0.2.77")
    assert (await again.acquire()).subnets == lease.subnets
    assert await store.get(f"{PREFIX}/ext/subnets/{str(lease.subnets.v4).replace('/', '-')}") is not None


async def test_an_etcd_that_answers_too_late_is_given_one_lease_to_keep(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for a day at every attempt, of every host that waits: load that grows with the overload."""

    async def late(expect: object, operations: object) -> int:
        raise Unavailable("did not answer in time")

    host = Host(store, clock, 1)
    with monkeypatch.context() as overload:
        overload.setattr(store, "commit", late)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(host.acquire())
            await clock.run_for(3600)
            assert len(store._leases) == 1
            waiting.cancel()
    lease = await host.acquire()
    assert list(store._leases) == [lease.lease_id]
    await store.commit([], [Delete(host.key)])
    async with host.running():
        with monkeypatch.context() as overload:
            overload.setattr(store, "commit", late)
            await clock.run_for(3600)
        assert len(store._leases) == 2
        await clock.run_for(120)
    assert await store.get(host.key) is not None


async def test_two_living_hosts_with_one_address_do_not_share_a_subnet(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Flannel lets both have the same lease: Vagrant's 10.0.2.15, a cloned VM."""
    first = Host(store, clock, 1, public_ip="10.0.2.15")
    await first.acquire()
    second = Host(store, clock, 2, public_ip="10.0.2.15")
    async with first.running():
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(second.acquire())
            await clock.run_for(600)
            assert not waiting.done()
            waiting.cancel()
        assert first.lease.attrs.backend_data == first.attrs(None).backend_data
    assert "'web-1' is alive and advertises our address 10.0.2.15" in said(caplog)


async def test_a_dead_hosts_lease_with_our_address_is_taken_over(store: MemoryStore, clock: ManualClock) -> None:
    old = await Host(store, clock, 1, public_ip="192.0.2.50").acquire()
    new = Host(store, clock, 2, public_ip="192.0.2.50")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(new.acquire())
        await clock.run_until(waiting.done, 600)
    assert new.lease.subnets == old.subnets, "a reinstalled machine gets its subnet again"


async def test_a_running_clone_does_not_get_the_originals_lease(store: MemoryStore, clock: ManualClock) -> None:
    original = Host(store, clock, 1)
    await original.acquire()
    clone = Host(store, clock, 1, public_ip="192.0.2.60")
    clone.claimer._identity = replace(identity(1), boot_id="boot-of-the-clone")
    async with original.running(), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(clone.acquire())
        await clock.run_for(600)
        assert not waiting.done()
        waiting.cancel()


async def test_an_owner_record_that_outlived_its_lease_claims_nothing(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    owner = Owner("host-1", SUBNET, IPv4Address("192.0.2.1"), "web-1", "boot-1")
    lease = await host.registry.create(SUBNET, host.attrs(None), owner)
    await store.commit([Expect(host.registry.key(SUBNET), lease.mod_revision)], [Delete(host.registry.key(SUBNET))])
    await put_lease(store, "10.5.7.0-24", "192.0.2.99")
    assert (await host.acquire()).subnets != SUBNET


async def test_in_a_registry_that_was_replaced_the_same_subnet_is_claimed(
    store: MemoryStore, clock: ManualClock
) -> None:
    """Its revisions begin anew, below those we know."""
    host = Host(store, clock, 1)
    for number in range(20):
        await store.commit([], [Put("elsewhere", str(number).encode())])
    lease = await host.acquire()
    async with host.running():
        await clock.run_for(1)
        store.replace()
        await clock.run_until(lambda: host.lease.mod_revision != lease.mod_revision, 60)
        assert host.lease.subnets == lease.subnets
        assert await store.get(host.key) is not None
        await clock.run_for(3 * PERIOD)
    assert store.revision == host.lease.mod_revision, "written once"


async def test_an_unreadable_value_at_our_own_key_is_written_over(store: MemoryStore, clock: ManualClock) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    await store.commit([], [Put(host.key, b"garbage", lease.lease_id)])
    again = Host(store, clock, 1)
    assert (await again.acquire()).subnets == lease.subnets
    entry = await store.get(host.key)
    assert entry is not None
    assert entry.value == encode_attrs(lease.attrs)


@pytest.mark.parametrize("subnet", ["10.5.9.0-24", "10.5.8.0-23"], ids=["fits", "is replaced"])
async def test_a_lease_that_is_garbled_after_it_was_read_is_claimed_all_the_same(
    store: MemoryStore, clock: ManualClock, subnet: str
) -> None:
    """The view keeps the last readable lease, whose revision is not what is at the key by now."""
    await put_lease(store, subnet, "192.0.2.1")
    host = Host(store, clock, 1)
    await host.followed.list()
    await store.commit([], [Put(f"{PREFIX}/subnets/{subnet}", b"garbage")])
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(host.acquire())
        await clock.run_until(waiting.done, 30)
    (page,) = [page async for page in store.pages(f"{PREFIX}/subnets/")]
    assert [entry.key for entry in page.entries] == [host.key]


async def test_an_unreadable_value_keeps_its_subnet_from_being_given_out(
    store: MemoryStore, clock: ManualClock
) -> None:
    await store.commit([], [Put(f"{PREFIX}/subnets/10.5.44.0-24", b"garbage")])
    assert (await Host(store, clock, 1).acquire(previous="10.5.44.0/24")).subnets.v4 != IPv4Network("10.5.44.0/24")


async def test_a_replaced_registry_that_looks_the_same_is_found_out(store: MemoryStore, clock: ManualClock) -> None:
    """A wiped etcd keeps its cluster id, and its revision can have caught up with ours."""
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await clock.run_for(1)
        store.wipe_unnoticed()
        await clock.run_until(lambda: host.lease.mod_revision != lease.mod_revision, 3 * PERIOD)
        assert host.lease.subnets == lease.subnets
        assert await store.get(host.key) is not None
    assert host.view.doubts


async def test_after_a_replacement_a_subnet_of_another_host_is_given_up(store: MemoryStore, clock: ManualClock) -> None:
    """Revisions of two stores do not compare: both hosts would think that they were first, for ever."""
    host = Host(store, clock, 1)
    for number in range(40):
        await store.commit([], [Put("elsewhere", str(number).encode())])
    lease = await host.acquire()
    name = str(lease.subnets.v4).replace("/", "-")
    async with host.running():
        await clock.run_for(1)
        store.replace()
        await put_lease(store, name, "192.0.2.99")
        await clock.run_until(lambda: host.lease.subnets != lease.subnets, 60)
        revision = store.revision
        await clock.run_for(1200)
    assert store.revision == revision


async def test_the_end_of_the_lease_is_announced(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(store, clock, 1, margin=TTL - 600)
    await host.acquire()
    async with host.running():
        await clock.run_for(1)
        store.fail(400, Unavailable("no endpoint answers"))
        store.cut_watches()
        await clock.run_for(1200)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


async def test_turning_ipv6_on_and_off_never_changes_the_ipv4_subnet(store: MemoryStore, clock: ManualClock) -> None:
    """Flannel deletes the key first, and then takes any subnet."""
    single = await Host(store, clock, 1).acquire()
    await put_lease(store, "10.5.8.0-24&fd00:5:0:8::-64", "192.0.2.8")
    dual = await Host(store, clock, 1).acquire(DUAL)
    assert (dual.subnets.v4, dual.subnets.v6 is not None) == (single.subnets.v4, True)
    again = await Host(store, clock, 1).acquire(DUAL)
    assert (again.subnets, again.lease_id) == (dual.subnets, dual.lease_id)
    off = await Host(store, clock, 1).acquire()
    assert off.subnets == single.subnets


async def test_a_reservation_stays_one_when_ipv6_is_turned_on(store: MemoryStore, clock: ManualClock) -> None:
    attrs = LeaseAttrs(IPv4Address("192.0.2.1"))
    await store.commit([], [Put(f"{PREFIX}/subnets/10.5.7.0-24", encode_attrs(attrs), 0)])
    lease = await Host(store, clock, 1).acquire(DUAL)
    assert (lease.subnets.v4, lease.lease_id) == (SUBNET.v4, 0)
    assert await store.get(f"{PREFIX}/subnets/10.5.7.0-24") is None


async def test_a_host_without_ipv4_keeps_its_lease_by_its_public_ipv6(store: MemoryStore, clock: ManualClock) -> None:
    first = await Host(store, clock, 1, public_ip="2001:db8::1").acquire(SIX)
    assert first.subnets.families == (first.subnets.v6,)
    await store.commit([], [Delete(f"{PREFIX}/ext/hosts/host-1")])
    await Host(store, clock, 2, public_ip="2001:db8::2").acquire(SIX)
    again = await Host(store, clock, 1, public_ip="2001:db8::1").acquire(SIX)
    assert again.subnets == first.subnets


async def test_two_living_hosts_with_one_public_ipv6_do_not_share_a_subnet(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = Host(store, clock, 1, public_ip="2001:db8::1")
    await first.acquire(SIX)
    second = Host(store, clock, 2, public_ip="2001:db8::1")
    async with first.running(SIX), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(second.acquire(SIX))
        await clock.run_for(600)
        assert not waiting.done()
        waiting.cancel()
    assert "'web-1' is alive and advertises our address 2001:db8::1" in said(caplog)


async def test_a_deleted_lease_one_family_of_which_was_taken_keeps_the_other(
    store: MemoryStore, clock: ManualClock
) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire(DUAL)
    assert lease.subnets.v6 is not None
    taken = str(lease.subnets.v6).replace("/", "-")
    await store.commit([], [Delete(host.key)])
    await put_lease(store, f"10.5.99.0-24&{taken}", "192.0.2.99")
    async with host.running(DUAL):
        await clock.run_until(lambda: host.lease.subnets != lease.subnets, 600)
    assert host.lost
    assert host.lease.subnets.v4 == lease.subnets.v4
    assert host.lease.subnets.v6 != lease.subnets.v6


async def test_what_flannels_daemon_takes_a_moment_later_is_left_to_it(store: MemoryStore, clock: ManualClock) -> None:
    """It looks at its own key only, which differs from ours, and has listed the leases before we made ours."""
    host = Host(store, clock, 1)
    lease = await host.acquire()
    name = str(lease.subnets.v4).replace("/", "-") + "&fd00:5:0:9::-64"
    async with host.running():
        await clock.run_for(5)
        await put_lease(store, name, "192.0.2.99")
        await clock.run_until(lambda: host.lease.subnets != lease.subnets, 2 * PERIOD)
    (page,) = [page async for page in store.pages(f"{PREFIX}/subnets/")]
    assert {entry.key for entry in page.entries} == {host.key, f"{PREFIX}/subnets/{name}"}


async def test_a_lease_that_stood_its_time_is_not_left_to_a_later_one(store: MemoryStore, clock: ManualClock) -> None:
    """Anybody who can write to the registry could move every host otherwise."""
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await clock.run_for(2 * PERIOD)
        await put_lease(store, "10.5.0.0-16", "192.0.2.99")
        await clock.run_for(5 * PERIOD)
    assert host.lease.subnets == lease.subnets
    assert (await Host(store, clock, 1).acquire()).subnets == lease.subnets


@pytest.mark.parametrize("raced", [False, True])
async def test_a_restart_puts_the_second_look_off_but_does_not_leave_it_out(
    store: MemoryStore, clock: ManualClock, raced: bool
) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await clock.run_for(5)
    if raced:
        await put_lease(store, str(lease.subnets.v4).replace("/", "-") + "&fd00:5:0:9::-64", "192.0.2.99")
    again = Host(store, clock, 1)
    await again.acquire()
    async with again.running():
        await clock.run_for(2 * PERIOD)
    assert (again.lease.subnets != lease.subnets) == raced


async def test_an_overlap_with_a_lease_that_stood_its_time_is_said(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(store, clock, 1)
    lease = await host.acquire()
    async with host.running():
        await clock.run_for(600)
    await put_lease(store, str(lease.subnets.v4).replace("/", "-") + "&fd00:5:0:9::-64", "192.0.2.99")
    again = Host(store, clock, 1)
    await again.acquire()
    async with again.running():
        await clock.run_for(3600)
    assert again.lease.subnets == lease.subnets
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "our subnet overlaps another lease" in error.message


async def test_the_second_look_waits_for_a_view_that_has_our_own_lease(store: MemoryStore, clock: ManualClock) -> None:
    """IPv6 is turned on, and etcd goes before the watch tells: what is still seen then is our own former lease."""
    first = await Host(store, clock, 1).acquire()
    host = Host(store, clock, 1)
    lease = await host.acquire(DUAL)
    assert lease.subnets.v4 == first.subnets.v4
    store.fail(100_000, Unavailable("no endpoint answers"))
    async with host.running(DUAL):
        await clock.run_for(3 * PERIOD)
        store.recover()
        await clock.run_for(3 * PERIOD)
    assert (host.lease.subnets, host.lost) == (lease.subnets, [])


async def test_a_second_look_that_fails_keeps_nobody_from_renewing(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To know whose the other lease is all owners are read."""
    host = Host(store, clock, 1)
    lease = await host.acquire()

    async def denied(subnets: Subnets) -> Owner | None:
        raise Unavailable("no endpoint answers")

    async with host.running():
        await clock.run_for(5)
        await put_lease(store, str(lease.subnets.v4).replace("/", "-") + "&fd00:5:0:9::-64", "192.0.2.99")
        with monkeypatch.context() as failing:
            failing.setattr(host.registry, "owner_of", denied)
            await clock.run_for(30 * PERIOD)
        assert (await store.time_to_live(lease.lease_id))[0] > TTL - 2 * PERIOD
        assert host.lease.subnets == lease.subnets


@pytest.mark.parametrize("what", ["another address", "written over", "given another etcd lease", "by somebody unknown"])
@pytest.mark.parametrize("error", [Unavailable("out of space"), Denied("denies permission"), Conflict("too late")])
async def test_a_lease_that_cannot_be_written_is_renewed_all_the_same(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, what: str, error: RegistryError
) -> None:
    """As when etcd is out of space, or denies what is beside the lease: it still takes keepalives."""
    host = Host(store, clock, 1, ttl=600)
    lease = await host.acquire()

    async def refused(*_: object, **__: object) -> int:
        raise error

    async with host.running():
        await clock.run_for(PERIOD)
        key, other = host.registry.key(lease.subnets), await store.grant(TTL)
        match what:
            case "another address":
                attrs = replace(lease.attrs, public_ip=IPv4Address("192.0.2.77"))
                host.keeper.revise(attrs)
            case "written over":
                await store.commit([], [Put(key, b"{", lease.lease_id)])
            case "given another etcd lease":
                await store.commit([], [Put(key, encode_attrs(lease.attrs), other)])
            case _:
                await store.commit([], [Put(key, b"{", lease.lease_id)])
                monkeypatch.setattr(host.registry, "owner_of", refused)
        monkeypatch.setattr(store, "commit", refused)
        await clock.run_for(3 * 600)
        remaining, _ = await store.time_to_live(lease.lease_id)
        assert remaining > 600 - 2 * PERIOD


async def test_a_lease_lasts_as_long_as_was_asked_for_from_the_next_start_on(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await Host(store, clock, 1).acquire()
    short = Host(store, clock, 1, margin=300, ttl=600)
    again = await short.acquire()
    assert again.subnets == lease.subnets
    assert await store.time_to_live(again.lease_id) == (600, 600)
    (page,) = [page async for page in store.pages(PREFIX)]
    assert {entry.lease_id for entry in page.entries} == {again.lease_id}
    revision = store.revision
    async with short.running():
        await clock.run_for(3600)
        assert store.revision == revision
        store.fail(400, Unavailable("no endpoint answers"))
        await clock.run_until(lambda: short.keeper.overdue, 400)
        store.recover()
        await clock.run_for(60)
    await clock.run_for(700)
    assert await store.get(short.key) is None, "a host that is gone gives its subnet back"


async def test_a_host_is_alive_or_not_by_its_own_ttl(store: MemoryStore, clock: ManualClock) -> None:
    first = Host(store, clock, 1, public_ip="10.0.2.15", ttl=600)
    await first.acquire()
    second = Host(store, clock, 2, public_ip="10.0.2.15")
    async with first.running(), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(second.acquire())
        await clock.run_for(600)
        assert not waiting.done()
        waiting.cancel()


async def test_that_few_subnets_are_left_is_said(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    narrow = parse_config(b'{"Network": "10.5.0.0/22", "SubnetLen": 27, "Backend": {"Type": "vxlan"}}')
    hosts = [Host(store, clock, number) for number in range(1, 29)]
    for host in hosts[:27]:
        await host.acquire(narrow)
    assert "few subnets are left" not in caplog.text
    await hosts[27].acquire(narrow)
    assert "few subnets are left" in caplog.text
    assert "network=10.5.0.0/22 free=3 of=31" in said(caplog)


async def test_a_host_with_a_smaller_subnet(store: MemoryStore, clock: ManualClock) -> None:
    small = Host(store, clock, 1, subnet_len=27)
    lease = await small.acquire()
    assert lease.subnets.v4.prefixlen == 27
    assert (await Host(store, clock, 1).acquire()).subnets == lease.subnets, "it stays, whatever is asked for later"
    whole = await Host(store, clock, 2).acquire(previous=str(lease.subnets.v4.supernet(new_prefix=24)))
    assert not whole.subnets.overlaps(lease.subnets)


async def test_a_length_that_the_network_does_not_have_is_waited_with(
    store: MemoryStore, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Another network config may come, or the operator."""
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(Host(store, clock, 1, subnet_len=20).acquire())
        await clock.run_for(60)
        assert not waiting.done()
        waiting.cancel()
    assert "--subnet-len is 20, and Network 10.5.0.0/16 has SubnetLen 24: give a number from 24 to 30" in said(caplog)
