"""The stores, each over a place of its own: a prefix on one etcd shared by all tests, reached directly or by etcd's own
gRPC proxy, or memory."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from flanneld_py.registry.etcd.client import EtcdStore
from flanneld_py.registry.etcd.etcd3_client import Etcd3Store
from flanneld_py.registry.store import Store
from tests.fakes.store import MemoryStore
from tests.lab.etcd import EtcdProxy, EtcdServer


@dataclass(frozen=True, slots=True)
class Subject:
    """A store under test. `advance` makes seconds pass where time is ours, and does nothing where it is not."""

    store: Store
    prefix: str
    compact: Callable[[int], None]
    advance: Callable[[float], None]


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def etcd_proxy(etcd_server: EtcdServer) -> Iterator[EtcdProxy]:
    with EtcdProxy(etcd_server) as proxy:
        yield proxy


@pytest.fixture(
    params=[
        "memory",
        pytest.param("etcd", marks=pytest.mark.etcd),
        pytest.param("etcd3", marks=pytest.mark.etcd),
        pytest.param("etcd by proxy", marks=pytest.mark.etcd),
        pytest.param("etcd3 by proxy", marks=pytest.mark.etcd),
    ]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    prefix = f"/{uuid.uuid4().hex}/"
    if request.param == "memory":
        memory = _memory(prefix)
        yield memory
        await memory.store.close()
        return
    server: EtcdServer = request.getfixturevalue("etcd_server")
    kinds: dict[str, type[EtcdStore] | type[Etcd3Store]] = {"etcd": EtcdStore, "etcd3": Etcd3Store}
    client, _, way = request.param.partition(" by ")
    endpoint = request.getfixturevalue("etcd_proxy").endpoint if way else server.endpoint
    store = kinds[client]([endpoint])

    def compact(revision: int) -> None:
        server.ctl("compact", str(revision))

    yield Subject(store, prefix, compact, lambda _: None)
    await store.close()


def _memory(prefix: str) -> Subject:
    now = 1000.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds
        store.tick()

    store = MemoryStore(lambda: now)
    return Subject(store, prefix, store.compact, advance)
