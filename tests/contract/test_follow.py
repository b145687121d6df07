"""A follower on a real etcd that is set back to a backup, or compacted where a lease ended: it ends with the truth."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import pytest

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.lease.sync import LeaseSyncer
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.etcd.client import EtcdStore
from flanneld_py.registry.etcd.etcd3_client import Etcd3Store
from flanneld_py.registry.model import LeaseAttrs
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Delete, Put
from flanneld_py.registry.view import LeaseView
from tests.contract.test_etcd import Kind, connected, eventually
from tests.lab.etcd import EtcdServer
from tests.patience import within

pytestmark = pytest.mark.etcd

PREFIX = "/coreos.com/network"


@pytest.fixture(params=[EtcdStore, Etcd3Store])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "data") as running:
        yield running


class World:
    def __init__(self, store: EtcdStore | Etcd3Store) -> None:
        self.store = store
        self.view = LeaseView()
        self.follower = LeaseSyncer(Registry(store, PREFIX), self.view, SystemClock(), Random(1), lambda: None)

    async def put(self, *numbers: int) -> int:
        """Write leases, as hosts do that take them; return the revision."""
        for number in numbers:
            lease_id = await self.store.grant(3600)
            value = encode_attrs(LeaseAttrs(IPv4Address(f"192.0.2.{number}")))
            revision = await self.store.commit([], [Put(key(number), value, lease_id)])
        return revision

    @property
    def known(self) -> set[str]:
        return set(self.view.leases())

    async def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        end = within(seconds)
        while not holds():
            assert asyncio.get_running_loop().time() < end, sorted(self.known)
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        await self.follower.list()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.follower.run())
            await self.until(lambda: self.follower.connected)
            yield
            running.cancel()


def key(number: int) -> str:
    return f"{PREFIX}/subnets/10.5.{number}.0-24"


async def test_an_etcd_set_back_to_a_backup_that_has_caught_up_is_noticed(
    kind: Kind, server: EtcdServer, tmp_path: Path
) -> None:
    async with connected(kind, server.endpoint) as writer, connected(kind, server.endpoint) as store:
        others, world = World(writer), World(store)  # type: ignore[arg-type]
        await others.put(10)
        server.stop()
        shutil.copytree(server.data_dir, tmp_path / "backup")
        server.start()
        await eventually(lambda: others.put(11, 12, 13, 14))
        async with world.following():
            assert len(world.known) == 5
            # Not reached until all of that has happened, as a host that is cut off.
            server.stop()
            server.wipe()
            shutil.copytree(tmp_path / "backup", server.data_dir)
            server.start()
            for _ in range(6):
                server.ctl("put", f"{PREFIX}/config", "{}")
            await others.put(20)
            await writer.commit([], [Delete(key(10))])
            await others.put(11, 12)
            await world.until(lambda: world.known == {key(number) for number in (11, 12, 20)})
            assert world.view.doubts == 1, "what is missing may be lost"
            await others.put(30)
            await world.until(lambda: key(30) in world.known)


async def test_a_lease_that_ends_at_exactly_the_compacted_revision_goes(kind: Kind, server: EtcdServer) -> None:
    async with connected(kind, server.endpoint) as writer, connected(kind, server.endpoint) as store:
        others, world = World(writer), World(store)  # type: ignore[arg-type]
        await others.put(2, 3)
        async with world.following():
            # Resumed after both: the follower runs only where this test waits.
            await store.reconnect()
            server.ctl("del", key(3))
            server.ctl("compact", "--physical", str(world.view.revision + 1))
            assert world.known == {key(2), key(3)}
            await world.until(lambda: world.known == {key(2)})
            assert world.view.doubts == 0, "it was deleted, not lost"
