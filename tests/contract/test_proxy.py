"""What is special about etcd's own gRPC proxy, for both clients; the whole contract by it is in test_store.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from flanneld_py.registry.etcd.client import EtcdStore
from flanneld_py.registry.etcd.etcd3_client import Etcd3Store
from flanneld_py.registry.store import Deleted, Put, StoreReplaced
from tests.contract.test_etcd import Kind, connected, eventually
from tests.contract.test_store import take, watching
from tests.lab.etcd import EtcdProxy, EtcdServer
from tests.patience import patient

pytestmark = pytest.mark.etcd


@pytest.fixture(params=[EtcdStore, Etcd3Store])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "data") as running:
        yield running


@pytest.fixture
def proxy(server: EtcdServer) -> Iterator[EtcdProxy]:
    with EtcdProxy(server) as running:
        yield running


async def test_a_quiet_watch_lives_on_though_a_proxy_answers_no_progress_request(kind: Kind, proxy: EtcdProxy) -> None:
    async with connected(kind, proxy.endpoint, liveness=0.05) as store:
        revision = await store.commit([], [Put("/a", b"1")])
        async with watching(store, "/a", revision + 1) as stream:
            await anext(stream)
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(take(stream, 1))
                await asyncio.wait([first], timeout=1.5)  # Two probes.
                assert not first.done()
                await store.commit([], [Put("/a", b"2")])
            assert [event.mod_revision for event in first.result()] == [revision + 1]


async def test_a_registry_set_back_behind_a_proxy_ends_the_watch(
    kind: Kind, server: EtcdServer, proxy: EtcdProxy
) -> None:
    """The proxy's own watch lives on, and to a new one it repeats whatever revision it is asked for."""
    async with connected(kind, proxy.endpoint, liveness=0.05, timeout=2.0) as store:
        for _ in range(10):
            revision = await store.commit([], [Put("/a", b"1")])
        async with watching(store, "/a", revision + 1) as stream:
            await anext(stream)
            server.stop()
            server.wipe()
            server.start()

            async def resumed() -> None:
                with pytest.raises(StoreReplaced):
                    await anext(store.watch("/a", revision + 1))

            async with asyncio.timeout(patient(10)):
                with pytest.raises(Exception, match=r"was replaced|cannot watch"):
                    await anext(stream)
            await eventually(resumed)


async def test_a_renewal_by_a_proxy_keeps_a_lease_and_its_end_is_told(
    kind: Kind, server: EtcdServer, proxy: EtcdProxy
) -> None:
    async with connected(kind, proxy.endpoint) as store:
        lease = await store.grant(2)
        revision = await store.commit([], [Put("/a", b"1", lease)])
        for _ in range(4):
            assert await store.keepalive(lease) == 2
            await asyncio.sleep(0.7)
        assert await store.get("/a") is not None
        async with watching(store, "/a", revision + 1) as stream:
            # Nobody renews it any more: the proxy would, were our stream still open.
            (gone,) = await take(stream, 1)
        assert isinstance(gone, Deleted)
