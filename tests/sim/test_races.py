"""Many hosts that take subnets at once, some of them flannel's: nobody ends with what another has, in either family.

Two lease keys can differ and still share a subnet: 10.5.1.0-24, 10.5.1.0-24&fd00:5::-64 and 10.5.1.0-24&fd00:6::-64.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import combinations, groupby
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.registry.codec import decode_record
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.lifetime import PERIOD, TTL
from flanneld_py.registry.model import Lease, Subnets
from flanneld_py.registry.store import Batch, Conflict, Delete, Deleted, Expect, KeyValue, Listing, Put, Store
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore
from tests.lease_host import PREFIX, Host

V4 = '"Network": "10.5.0.0/23", "SubnetLen": {}'
V6 = '"EnableIPv6": true, "IPv6Network": "fd00:5::/119", "IPv6SubnetLen": {}'
CONFIGS = {
    name: parse_config(f'{{{document}, "Backend": {{"Type": "vxlan"}}}}'.encode())
    for name, document in {
        "ipv4": V4.format(28),
        "ipv4, smaller": V4.format(28),
        "dual": f"{V4.format(28)}, {V6.format(124)}",
        "dual, larger": f"{V4.format(27)}, {V6.format(123)}",
        "ipv6": f'"EnableIPv4": false, {V6.format(124)}',
    }.items()
}
SMALLER = 30
"""What hosts with `--subnet-len` ask for: parts of the others' subnets."""

SMALL_WISH = "10.5.0.40/30 fd00:5::28/126"

WISHES = (
    "10.5.0.32/28 fd00:5::20/124",
    "10.5.0.32/28 fd00:5::40/124",
    "10.5.0.64/27 fd00:5::20/123",
    SMALL_WISH,
)
"""What they find in their subnet files: all want the same, as hosts made from one image do."""

FLANNELS = ("10.5.0.32-28", "10.5.0.32-28&fd00:5::40-124", "10.5.0.96-28&fd00:5::20-124", "10.5.0.64-27&fd00:5::60-123")


class Hesitant:
    """A store whose every call takes its time, so that calls of different hosts come in any order."""

    def __init__(self, store: Store, clock: ManualClock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng

    async def _hesitate(self) -> None:
        await self._clock.sleep(self._rng.uniform(0, 0.01))

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        await self._hesitate()
        return await self._store.get(key, revision)

    async def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        await self._hesitate()
        async for page in self._store.pages(prefix, page_size, since, keys_only=keys_only):
            yield page

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        await self._hesitate()
        return await self._store.count(prefix, revision)

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        await self._hesitate()
        return await self._store.commit(expect, operations)

    async def grant(self, ttl: int) -> int:
        await self._hesitate()
        return await self._store.grant(ttl)

    async def keepalive(self, lease_id: int) -> int:
        return await self._store.keepalive(lease_id)

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        await self._hesitate()
        return await self._store.time_to_live(lease_id)

    async def revoke(self, lease_id: int) -> None:
        await self._hesitate()
        await self._store.revoke(lease_id)

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        async for batch in self._store.watch(prefix, start_revision):
            await self._hesitate()
            yield batch

    async def reconnect(self) -> None:
        await self._store.reconnect()

    async def close(self) -> None:
        await self._store.close()


@dataclass(frozen=True, slots=True)
class Flannel:
    """A host with flannel's daemon: it takes what it found free `delay` seconds ago, and looks at no other key."""

    name: str
    public_ip: str
    delay: float

    async def acquire(self, store: MemoryStore, clock: ManualClock) -> None:
        (page,) = [page async for page in store.pages(f"{PREFIX}/subnets/")]
        wanted = subnets(self.name)
        if any(wanted.overlaps(subnets(entry.key.rpartition("/")[2])) for entry in page.entries):
            return
        await clock.sleep(self.delay)
        key = f"{PREFIX}/subnets/{self.name}"
        value = f'{{"PublicIP":"{self.public_ip}","PublicIPv6":null}}'.encode()
        try:
            await store.commit([Expect(key, 0)], [Put(key, value, await store.grant(TTL))])
        except Conflict:
            return


def subnets(name: str) -> Subnets:
    record = decode_record(PREFIX, KeyValue(f"{PREFIX}/subnets/{name}", b"{}", 1, 1))
    assert isinstance(record, Lease)
    return record.subnets


async def leased(store: MemoryStore) -> dict[str, Subnets]:
    (page,) = [page async for page in store.pages(f"{PREFIX}/subnets/")]
    return {name: subnets(name) for name in (entry.key.rpartition("/")[2] for entry in page.entries)}


def shared(leases: Sequence[Subnets]) -> list[tuple[Subnets, Subnets]]:
    return [(one, other) for one, other in combinations(leases, 2) if one.overlaps(other)]


async def witness(store: MemoryStore) -> None:
    """Fail if at any revision two leases share a subnet: then it is not the transaction that kept them apart."""
    leases: dict[str, Subnets] = {}
    async for batch in store.watch(f"{PREFIX}/subnets/", 1):
        for _, events in groupby(batch.events, lambda event: event.mod_revision):
            for event in events:
                name = event.key.rpartition("/")[2]
                if isinstance(event, Deleted):
                    leases.pop(name, None)
                else:
                    leases[name] = subnets(name)
            assert not shared(list(leases.values()))


async def race(stacks: list[tuple[str, str]], flannels: list[Flannel], seed: int) -> None:
    clock = ManualClock()
    store = MemoryStore(clock.now)
    rng = Random(seed)
    hosts = [
        Host(
            Hesitant(store, clock, rng),
            clock,
            number,
            f"2001:db8::{number:x}" if stack == "ipv6" else "",
            subnet_len=SMALLER if stack.endswith("smaller") else None,
        )
        for number, (stack, _) in enumerate(stacks, 1)
    ]
    async with asyncio.TaskGroup() as tasks:
        # Flannel's daemons and other sizes are found out only afterwards.
        of_one_kind = not flannels and not any(
            "larger" in stack or "smaller" in stack or wish == SMALL_WISH for stack, wish in stacks
        )
        witnessing = [tasks.create_task(witness(store))] if of_one_kind else []
        for flannel in flannels:
            tasks.create_task(flannel.acquire(store, clock))
        taking = [
            tasks.create_task(host.acquire(CONFIGS[stack], wish))
            for host, (stack, wish) in zip(hosts, stacks, strict=True)
        ]
        await clock.run_until(lambda: all(task.done() for task in taking), 600)
        assert not shared([host.lease.subnets for host in hosts])
        await clock.run_for(max((flannel.delay for flannel in flannels), default=0))
        for task in witnessing:
            task.cancel()
    async with AsyncExitStack() as running:
        for host, (stack, _) in zip(hosts, stacks, strict=True):
            await running.enter_async_context(host.running(CONFIGS[stack]))
        await clock.run_for(3 * PERIOD)
    found = await leased(store)
    ours = [host.lease.subnets for host in hosts]
    assert all(subnets in found.values() for subnets in ours)
    assert not shared(ours)
    theirs = [leased for name, leased in found.items() if name in FLANNELS and leased not in ours]
    assert len(theirs) + len(ours) == len(found)
    assert not [(mine, other) for mine in ours for other in theirs if mine.overlaps(other)]


entrants = st.lists(st.tuples(st.sampled_from(sorted(CONFIGS)), st.sampled_from(WISHES)), min_size=2, max_size=6)
daemons = st.lists(st.tuples(st.sampled_from(FLANNELS), st.floats(0, PERIOD / 2)), max_size=2, unique_by=lambda f: f[0])


@given(entrants, daemons, st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_no_two_hosts_end_with_one_subnet(
    stacks: list[tuple[str, str]], flannels: list[tuple[str, float]], seed: int
) -> None:
    racers = [Flannel(name, f"198.51.100.{n}", delay) for n, (name, delay) in enumerate(flannels)]
    asyncio.run(race(stacks, racers, seed))


def test_fifteen_hosts_made_from_one_image() -> None:
    asyncio.run(race([("ipv4", WISHES[0]), ("dual", WISHES[0]), ("dual", WISHES[1])] * 5, [], 7))
