"""Hosts that take subnets at once, over every store: the registry's transactions, and whole claims."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from itertools import combinations

import pytest

from flanneld_py.agent.clock import SystemClock
from flanneld_py.registry.claims import AddressTaken
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.model import NO_IPV4, Lease, LeaseAttrs, Owner, Subnets
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Conflict, Delete, Deleted, KeyValue, LeaseGone, Put
from tests.contract.conftest import Subject
from tests.lease_host import Host
from tests.patience import patient

V4, OTHER4 = IPv4Network("10.5.1.0/24"), IPv4Network("10.5.2.0/24")
V6, OTHER6 = IPv6Network("fd00:5:0:1::/64"), IPv6Network("fd00:5:0:2::/64")
ATTRS = LeaseAttrs(IPv4Address("192.0.2.1"))
DUAL = parse_config(
    b'{"Network": "10.5.0.0/20", "EnableIPv6": true, "IPv6Network": "fd00:5::/60", "Backend": {"Type": "vxlan"}}'
)


def owner(number: int, subnets: Subnets) -> Owner:
    return Owner(f"host-{number}", subnets, IPv4Address(f"192.0.2.{number}"))


async def take(registry: Registry, number: int, subnets: Subnets) -> Lease | None:
    try:
        return await registry.create(subnets, ATTRS, owner(number, subnets))
    except Conflict:
        return None


async def records(registry: Registry) -> list[str]:
    return [key async for page in registry.pages() for key in page.records]


@pytest.mark.parametrize(
    "rivals",
    [
        [Subnets(V4), Subnets(V4, V6), Subnets(V4, OTHER6)],
        [Subnets(NO_IPV4, V6), Subnets(V4, V6), Subnets(OTHER4, V6)],
    ],
)
async def test_of_leases_that_share_a_subnet_one_is_made(subject: Subject, rivals: list[Subnets]) -> None:
    """Their keys differ, so that each of them is free."""
    registry = Registry(subject.store, subject.prefix)
    taken = await asyncio.gather(*(take(registry, number, subnets) for number, subnets in enumerate(rivals)))
    assert [registry.key(lease.subnets) for lease in taken if lease is not None] == await records(registry)
    assert len(await records(registry)) == 1


async def test_of_leases_that_share_an_address_one_is_made(subject: Subject) -> None:
    """Hosts that advertise one address and start at once; their subnets have nothing in common."""
    registry = Registry(subject.store, subject.prefix)
    rivals = [Subnets(V4), Subnets(OTHER4), Subnets(OTHER4, OTHER6)]
    taken = await asyncio.gather(*(take(registry, number, subnets) for number, subnets in enumerate(rivals)))
    (made,) = [lease for lease in taken if lease is not None]
    assert await records(registry) == [registry.key(made.subnets)]
    with pytest.raises(AddressTaken):
        await registry.create(Subnets(IPv4Network("10.5.9.0/24")), ATTRS, owner(9, Subnets(V4)))
    moved = await registry.update(made, replace(ATTRS, public_ip=IPv4Address("192.0.2.7")), owner(1, made.subnets))
    assert await take(registry, 9, Subnets(IPv4Network("10.5.9.0/24"))) is not None, "that host has another address now"
    await registry.release(moved, "host-1")
    assert len(await records(registry)) == 1


async def test_a_host_found_dead_must_be_so_still(subject: Subject) -> None:
    """To find out takes a minute and a half; another host may have found the same."""
    registry = Registry(subject.store, subject.prefix)
    dead = await registry.create(Subnets(V4), ATTRS, owner(1, Subnets(V4)))
    await registry.update(dead, ATTRS, owner(2, Subnets(V4)), [dead])
    with pytest.raises(Conflict):
        await registry.create(Subnets(OTHER4), ATTRS, owner(3, Subnets(OTHER4)), dead=[dead])


async def test_the_holder_of_a_reservation_gives_a_sign_of_life(subject: Subject) -> None:
    registry = Registry(subject.store, subject.prefix)
    key = registry.key(Subnets(V4))
    await subject.store.commit([], [Put(key, encode_attrs(ATTRS))])
    reserved = await registry.lease(Subnets(V4))
    assert reserved is not None
    host = owner(1, Subnets(V4))
    with pytest.raises(LeaseGone):
        await registry.time_to_live(reserved, host)
    held = await registry.update(reserved, ATTRS, host, [])
    assert held.lease_id == 0
    remaining, granted = await registry.time_to_live(held, host)
    assert (granted, remaining > granted - 60) == (registry.ttl, True)
    revision = await subject.store.commit([], [Put(f"{subject.prefix}/mark", b"")])
    await registry.keepalive(held, host)
    assert await subject.store.commit([], [Put(f"{subject.prefix}/mark", b"")]) == revision + 1, "no event"
    await subject.store.commit([], [Delete(f"{subject.prefix}/ext/alive/host-1")])
    await registry.keepalive(held, host)
    assert (await registry.time_to_live(held, host))[1] == registry.ttl, "it is there again"


async def test_what_is_released_leaves_nothing(subject: Subject) -> None:
    registry = Registry(subject.store, subject.prefix)
    lease = await registry.create(Subnets(V4, V6), ATTRS, owner(1, Subnets(V4, V6)))
    with pytest.raises(Conflict):
        await registry.release(replace(lease, mod_revision=lease.mod_revision - 1), "host-1")
    await registry.release(lease, "host-1")
    left = [entry.key async for page in subject.store.pages(f"{subject.prefix}/") for entry in page.entries]
    assert left == []
    assert await registry.lease(lease.subnets) is None
    with pytest.raises(LeaseGone):
        await subject.store.time_to_live(lease.lease_id)


async def test_a_subnet_whose_lease_was_deleted_is_free(subject: Subject) -> None:
    """An operator deletes the leases of hosts that are gone; what we wrote beside them stays for a day."""
    registry = Registry(subject.store, subject.prefix)
    assert await take(registry, 1, Subnets(V4, V6)) is not None
    assert await take(registry, 2, Subnets(V4)) is None
    await subject.store.commit([], [Delete(registry.key(Subnets(V4, V6)))])
    assert await take(registry, 2, Subnets(V4, OTHER6)) is not None
    assert await take(registry, 1, Subnets(V4, V6)) is None


async def test_a_family_comes_and_goes_in_one_revision(subject: Subject) -> None:
    """So that nobody can take the subnet that stays in between."""
    registry = Registry(subject.store, subject.prefix)
    first = lease = await registry.create(Subnets(V4), ATTRS, owner(1, Subnets(V4)))
    for subnets in (Subnets(V4, V6), Subnets(NO_IPV4, V6), Subnets(V4, V6), Subnets(V4)):
        lease = await registry.create(subnets, ATTRS, owner(1, subnets), lease)
        assert await records(registry) == [registry.key(subnets)]
    changes: dict[int, list[type]] = {}
    async with aclosing(subject.store.watch(registry.subnets_prefix, first.mod_revision + 1)) as batches:
        async for batch in batches:
            for event in batch.events:
                changes.setdefault(event.mod_revision, []).append(type(event))
            if batch.revision >= lease.mod_revision:
                break
    assert [sorted(kinds, key=str) for kinds in changes.values()] == [[Deleted, KeyValue]] * 4


async def test_hosts_made_from_one_image_all_get_subnets_of_their_own(subject: Subject) -> None:
    clock = SystemClock()
    hosts = [Host(subject.store, clock, number, prefix=subject.prefix) for number in range(1, 9)]
    wish = "10.5.1.0/24 fd00:5:0:1::/64"
    async with asyncio.timeout(patient(30)):
        await asyncio.gather(*(host.acquire(DUAL, wish) for host in hosts))
    assert not [pair for pair in combinations(hosts, 2) if pair[0].lease.subnets.overlaps(pair[1].lease.subnets)]
    assert sorted(await records(hosts[0].registry)) == sorted(host.key for host in hosts)
