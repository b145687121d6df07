"""What comparing with the registry costs, with as many leases as asked for: etcd, the wire, the agent's event loop.

A glance is what follows a resumed watch; `all keys` what follows where that leaves a doubt, with nothing that differs.
The worst minute is what an agent may ask if whatever is answered makes it ask again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.daemon import relax_garbage_collection
from flanneld_py.agent.lease.pace import BURST, RATE, Paced
from flanneld_py.agent.lease.sync import LeaseSyncer
from flanneld_py.registry.etcd import api
from flanneld_py.registry.etcd.client import EtcdStore
from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Put
from flanneld_py.registry.view import LeaseView
from tests.bench.figures import Figure, Setting
from tests.bench.looplag import TimedSelector
from tests.bench.peers import Peer
from tests.bench.process import cpu_seconds
from tests.lab.etcd import EtcdServer

PREFIX = "/coreos.com/network"
LEASES_AT_ONCE = 100
REPEATS = 5
"""How often each is done for one sample: etcd's CPU time is told in hundredths of a second."""


class Weighed(EtcdStore):
    """The store, with the bytes of all its answers."""

    received = 0

    async def _call(
        self, action: str, method: api.Method, request: api.Message, refused: list[Refusal] | None = None
    ) -> api.Message:
        answer = await super()._call(action, method, request, refused)
        self.received += answer.ByteSize()
        return answer


def run(setting: Setting) -> Iterator[Figure]:
    """Measure our daemon's own part, in this process."""
    samples: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, EtcdServer(Path(folder) / "data") as server:
        for _ in range(setting.rounds):
            selector = TimedSelector()
            with asyncio.Runner(loop_factory=lambda s=selector: asyncio.SelectorEventLoop(s)) as runner:  # type: ignore[misc]
                for what, value in runner.run(_measure(server, setting.peers, selector)).items():
                    samples.setdefault(what, []).append(value)
    for (name, unit), values in samples.items():
        yield Figure("recheck", name, setting.ours.name, unit, tuple(values))
    worst = BURST + 60 * RATE
    yield Figure("recheck", "requests in an agent's worst minute, at most", setting.ours.name, "requests", (worst,))


async def _measure(server: EtcdServer, peers: int, selector: TimedSelector) -> dict[tuple[str, str], float]:
    store, clock = Weighed([server.endpoint]), SystemClock()
    paced = Paced(store, clock, Random())
    try:
        await _fill(store, peers)
        view = LeaseView()
        follower = LeaseSyncer(Registry(paced, PREFIX), view, clock, Random(), lambda: None)
        await follower.list()
        relax_garbage_collection()
        found: dict[tuple[str, str], float] = {}

        async def glance() -> None:
            assert await follower._as_many()

        async def all_keys() -> None:
            assert not await follower._compare()

        for what, do in (("glance", glance), ("all keys", all_keys)):
            found |= await _cost(what, do, server, store, selector)
        return found
    finally:
        await store.close()


async def _cost(
    what: str, do: Callable[[], Awaitable[None]], server: EtcdServer, store: Weighed, selector: TimedSelector
) -> dict[tuple[str, str], float]:
    since = time.perf_counter() - selector.began
    received, used, began = store.received, cpu_seconds(server.pid), time.perf_counter()
    for _ in range(REPEATS):
        await do()
    took = (time.perf_counter() - began) / REPEATS
    turns = [used for at, _, used in selector.longest() if at >= since]
    return {
        (f"{what}: etcd's answers", "kB"): (store.received - received) / REPEATS / 1000,
        (f"{what}: etcd's CPU", "ms"): (cpu_seconds(server.pid) - used) / REPEATS * 1000,
        (f"{what}: time", "ms"): took * 1000,
        (f"{what}: event loop busy at a stretch", "CPU ms"): max(turns, default=0.0) * 1000,
    }


async def _fill(store: EtcdStore, peers: int) -> None:
    lease_id = await store.grant(3600)
    for first in range(0, peers, LEASES_AT_ONCE):
        some = map(Peer, range(first, min(first + LEASES_AT_ONCE, peers)))
        await store.commit([], [Put(peer.key(PREFIX), peer.value, lease_id) for peer in some])
