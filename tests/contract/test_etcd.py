"""What only a real etcd can show: restarts, failover, frozen servers, replaced data, TLS, logins. For both clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flanneld_py.registry.etcd.client import Credentials, EtcdStore, Tls
from flanneld_py.registry.etcd.etcd3_client import Etcd3Store
from flanneld_py.registry.store import Batch, Conflict, Denied, Expect, HistoryLost, Put, Store, Unavailable
from tests.contract.certificates import Authority
from tests.contract.test_store import take, watching
from tests.lab.etcd import EtcdServer
from tests.patience import patient

pytestmark = pytest.mark.etcd

T = TypeVar("T")
Kind = type[EtcdStore] | type[Etcd3Store]
PASSWORD = "not-to-be-shown"


@pytest.fixture(params=[EtcdStore, Etcd3Store])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "data") as running:
        yield running


@asynccontextmanager
async def connected(kind: Kind, *endpoints: str, **settings: Any) -> AsyncIterator[Store]:
    store = kind(endpoints, **settings)
    try:
        yield store
    finally:
        await store.close()


async def eventually(call: Callable[[], Awaitable[T]], seconds: float = 10.0) -> T:
    """Repeat a call while it says Unavailable."""
    async with asyncio.timeout(patient(seconds)):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.02)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for is counted by others
        await asyncio.sleep(0.01)


# Restarts


async def test_a_watch_resumed_over_restarts_loses_and_repeats_nothing(kind: Kind, server: EtcdServer) -> None:
    wanted = [f"/k/{number:04}" for number in range(2000)]
    seen: list[str] = []

    async def create(store: Store, key: str) -> None:
        # After Unavailable it is open whether the key was made; made twice it would be seen twice.
        if await store.get(key) is None:
            await store.commit([Expect(key, 0)], [Put(key, b"")])

    async def write(store: Store) -> None:
        for key in wanted:
            await eventually(lambda key=key: create(store, key))  # type: ignore[misc]

    async def follow(store: Store) -> None:
        revision = 0
        while len(seen) < len(wanted):
            try:
                async with watching(store, "/k/", revision + 1) as stream:
                    while len(seen) < len(wanted):
                        batch = await anext(stream)
                        seen.extend(event.key for event in batch.events)
                        revision = batch.revision
            except Unavailable:
                await asyncio.sleep(0.02)

    async def cut() -> None:
        for end, at in ((server.kill, 300), (server.stop, 800), (server.kill, 1300)):
            await until(lambda at=at: len(seen) >= at)  # type: ignore[misc]
            end()
            server.start(wait=False)

    async with (
        asyncio.timeout(patient(40)),
        connected(kind, server.endpoint) as writer,
        connected(kind, server.endpoint) as follower,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(write(writer))
        group.create_task(follow(follower))
        group.create_task(cut())
    assert seen == wanted


async def test_a_restarted_etcd_is_found_again_within_two_seconds(kind: Kind, server: EtcdServer) -> None:
    async with connected(kind, server.endpoint) as store:
        await store.commit([], [Put("/a", b"1")])
        server.kill()
        with pytest.raises(Unavailable, match=r"refuses connections|(closed|ended) the connection|reset"):
            await store.get("/a")
        # Long enough for the backoff between attempts to reach its largest.
        end = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < end:
            with pytest.raises(Unavailable, match="refuses connections"):
                await store.get("/a")
            await asyncio.sleep(0.02)
        server.start()
        found = await eventually(lambda: store.get("/a"), 2.0)
    assert found is not None
    assert found.value == b"1"


# Several endpoints


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[EtcdServer]]:
    members = [EtcdServer(tmp_path / f"m{number}" / "data", name=f"m{number}") for number in range(3)]
    names = ",".join(f"{member.name}={member.peer_url}" for member in members)
    with ExitStack() as running:
        started = [
            EtcdServer(
                member.data_dir,
                name=member.name,
                client_port=member.client_port,
                peer_port=member.peer_port,
                extra=(f"--initial-cluster={names}",),
            )
            for member in members
        ]
        for member in started:
            # SIGTERM would have each look for a new leader first.
            running.callback(member.kill)
            member.start(wait=False)
        for member in started:
            member.wait_ready()
        yield started


@pytest.mark.parametrize("fault", [EtcdServer.kill, EtcdServer.freeze])
async def test_with_one_of_three_members_gone_calls_and_watches_go_on(
    kind: Kind, cluster: list[EtcdServer], fault: Callable[[EtcdServer], None]
) -> None:
    async with connected(kind, *(member.endpoint for member in cluster), timeout=1.5, liveness=0.5) as store:
        start = await store.commit([], [Put("/a", b"1")]) + 1
        async with watching(store, "/a", start) as stream:
            await anext(stream)
            # The one in use.
            fault(cluster[0])
            await eventually(lambda: store.commit([], [Put("/a", b"2")]), 8.0)
            with pytest.raises(Unavailable):
                await take(stream, 2)

        async def resumed() -> bytes:
            async with watching(store, "/a", start) as stream:
                event = (await take(stream, 1))[0]
                return getattr(event, "value", b"")

        assert await eventually(resumed, 8.0) == b"2"


async def test_a_dead_first_endpoint_is_passed_over(server: EtcdServer, tmp_path: Path) -> None:
    dead = EtcdServer(tmp_path / "never started").endpoint
    async with connected(EtcdStore, dead, server.endpoint) as store:
        # Nothing was sent to the dead one, so there is no doubt about what happened.
        with pytest.raises(Conflict):
            await store.commit([Expect("/a", 1)], [Put("/a", b"1")])
    async with connected(EtcdStore, dead, server.endpoint) as store:
        revision = await store.commit([], [Put("/a", b"1")])
        async with watching(store, "/a", revision + 1) as stream:
            assert await anext(stream) == Batch((), revision)


async def test_when_all_endpoints_are_dead_all_are_named(tmp_path: Path) -> None:
    dead = [EtcdServer(tmp_path / name).endpoint for name in ("x", "y")]
    async with connected(EtcdStore, *dead) as store:
        with pytest.raises(Unavailable) as raised:
            await store.get("/a")
    assert all(endpoint in str(raised.value) for endpoint in dead)
    assert "refuses connections" in str(raised.value)


# A frozen server


async def test_a_frozen_etcd_is_unavailable_in_time(kind: Kind, server: EtcdServer) -> None:
    now = asyncio.get_running_loop().time
    async with connected(kind, server.endpoint, timeout=0.6, liveness=0.3) as store:
        revision = await store.commit([], [Put("/a", b"1")])
        async with watching(store, "/a", revision + 1) as stream:
            await anext(stream)
            server.freeze()
            began = now()
            with pytest.raises(Unavailable):
                await anext(stream)
            assert now() - began < 2.0
        for call in (lambda: store.get("/a"), lambda: store.grant(5), lambda: anext(store.watch("/a", revision + 1))):
            began = now()
            with pytest.raises(Unavailable):
                await call()
            assert now() - began < 2.0
        server.thaw()
        found = await eventually(lambda: store.get("/a"))
        assert found is not None
        assert found.value == b"1"


async def test_reconnecting_frees_who_waits_on_a_connection_that_fell_silent(kind: Kind, server: EtcdServer) -> None:
    async with connected(kind, server.endpoint, timeout=30, liveness=30) as store:
        revision = await store.commit([], [Put("/a", b"1")])
        began = []

        async def write() -> None:
            began.append("write")
            with pytest.raises(Unavailable, match=r"cannot write /a|whether /a was written"):
                await store.commit([], [Put("/a", b"2")])

        async with asyncio.timeout(patient(10)), watching(store, "/a", revision + 1) as stream:
            await anext(stream)
            server.freeze()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                await until(lambda: bool(began))
                await store.reconnect()
            with pytest.raises(Unavailable):
                await anext(stream)
            server.thaw()
            assert await store.get("/a") is not None


async def test_a_quiet_watch_lives_on(kind: Kind, server: EtcdServer) -> None:
    now = asyncio.get_running_loop().time
    async with connected(kind, server.endpoint, liveness=0.1) as store:
        revision = await store.commit([], [Put("/a", b"1")])
        async with watching(store, "/a", revision + 1) as stream, asyncio.TaskGroup() as group:
            await anext(stream)
            first = group.create_task(take(stream, 1))
            end = now() + 0.5
            while now() < end:
                await store.get("/a")
            await store.commit([], [Put("/a", b"2")])
            assert [event.mod_revision for event in await first] == [revision + 1]


async def test_a_watch_on_an_etcd_without_any_key_lives_on(kind: Kind, server: EtcdServer) -> None:
    async with connected(kind, server.endpoint, liveness=0.1) as store:
        (page,) = [page async for page in store.pages("/a")]
        assert page.revision == 1
        async with watching(store, "/a", page.revision) as past, watching(store, "/a", page.revision + 1) as stream:
            await anext(past)
            await anext(stream)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await anext(stream)
            await store.commit([], [Put("/a", b"1")])
            assert [event.mod_revision for event in await take(past, 1)] == [2]


# Replaced data


async def test_an_etcd_that_lost_its_data_has_lost_history(kind: Kind, server: EtcdServer) -> None:
    async with connected(kind, server.endpoint) as store:
        for number in range(10):
            revision = await store.commit([], [Put("/a", b"%d" % number)])
        async with watching(store, "/a", revision + 1) as stream:
            await anext(stream)
            server.kill()
            server.wipe()
            server.start()
            with pytest.raises(Unavailable):
                await anext(stream)
        with pytest.raises(HistoryLost):
            await eventually(lambda: anext(store.watch("/a", revision + 1)))
        pages = [page async for page in store.pages("/a")]
        assert [page.entries for page in pages] == [()]
        assert await anext(store.watch("/a", pages[0].revision + 1)) == Batch((), pages[0].revision)


async def test_another_cluster_at_the_same_place_has_lost_history(
    kind: Kind, server: EtcdServer, tmp_path: Path
) -> None:
    other = EtcdServer(
        tmp_path / "other",
        client_port=server.client_port,
        peer_port=server.peer_port,
        extra=("--initial-cluster-token=other",),
    )
    async with connected(kind, server.endpoint) as store:
        revision = [page.revision async for page in store.pages("/a")][-1]
        server.stop()
        with other:
            for _ in range(revision + 5):
                other.ctl("put", "/a", "1")
            with pytest.raises(HistoryLost, match="another cluster"):
                await eventually(lambda: anext(store.watch("/a", revision + 1)))
            pages = [page async for page in store.pages("/a")]
            assert await anext(store.watch("/a", pages[0].revision + 1)) == Batch((), pages[0].revision)


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def tls_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    own = authority.issue("server", "127.0.0.1")
    directory = tmp_path_factory.mktemp("tls")
    with EtcdServer(directory / "data", cert=own.certificate, key=own.key, ca=own.ca) as running:
        yield running


@pytest.fixture(scope="module")
def mutual_server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    own = authority.issue("mutual", "127.0.0.1")
    directory = tmp_path_factory.mktemp("mutual")
    with EtcdServer(
        directory / "data", cert=own.certificate, key=own.key, ca=own.ca, require_client_certificate=True
    ) as running:
        yield running


async def works(store: Store) -> None:
    revision = await store.commit([], [Put("/tls", b"1")])
    async with watching(store, "/tls", revision) as stream:
        assert [event.mod_revision for event in await take(stream, 1)] == [revision]


async def test_tls_with_a_ca_alone(kind: Kind, tls_server: EtcdServer, authority: Authority) -> None:
    async with connected(kind, tls_server.endpoint, tls=Tls(ca=authority.certificate)) as store:
        await works(store)


async def test_mutual_tls(kind: Kind, mutual_server: EtcdServer, authority: Authority) -> None:
    async with connected(kind, mutual_server.endpoint, tls=authority.issue("client", "127.0.0.2")) as store:
        await works(store)


async def test_a_wrong_ca_is_refused(kind: Kind, tls_server: EtcdServer, stranger: Authority) -> None:
    async with connected(kind, tls_server.endpoint, tls=Tls(ca=stranger.certificate)) as store:
        with pytest.raises(Denied, match="certificate that our CA does not vouch for; check --etcd-cafile"):
            await store.get("/a")
        with pytest.raises(Denied, match="certificate"):
            await anext(store.watch("/a", 1))


async def test_the_systems_authorities_are_the_default(kind: Kind, tls_server: EtcdServer) -> None:
    async with connected(kind, tls_server.endpoint) as store:
        with pytest.raises(Denied, match="certificate"):
            await store.get("/a")


async def test_a_certificate_for_another_name_is_refused(kind: Kind, authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("elsewhere", "127.0.0.9")
    server = EtcdServer(tmp_path / "data", cert=own.certificate, key=own.key, ca=own.ca)
    with ExitStack() as running:
        running.callback(server.stop)
        # etcdctl would not get an answer from it either.
        server.start(wait=False)
        async with connected(kind, server.endpoint, tls=Tls(ca=own.ca)) as store:
            with pytest.raises(Denied, match="certificate for another name"):
                await eventually(lambda: store.get("/a"))


@pytest.mark.parametrize("show", ["nothing", "a stranger's"])
async def test_a_client_that_cannot_prove_itself_is_told(
    kind: Kind, mutual_server: EtcdServer, authority: Authority, stranger: Authority, show: str
) -> None:
    theirs = stranger.issue("client", "127.0.0.2")
    tls = (
        Tls(authority.certificate) if show == "nothing" else Tls(authority.certificate, theirs.certificate, theirs.key)
    )
    async with connected(kind, mutual_server.endpoint, tls=tls) as store:
        with pytest.raises((Denied, Unavailable), match="--etcd-certfile"):
            await store.get("/a")


async def test_certificates_are_read_again_where_they_fail(
    kind: Kind, mutual_server: EtcdServer, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """They may have been wrong, or have ended, and be replaced by now."""
    files = Tls(authority.certificate, tmp_path / "certificate", tmp_path / "key")

    def install(issued: Tls) -> None:
        for source, target in ((issued.certificate, files.certificate), (issued.key, files.key)):
            assert source
            assert target
            target.write_bytes(source.read_bytes())

    install(stranger.issue("client", "127.0.0.2"))
    async with connected(kind, mutual_server.endpoint, tls=files) as store:
        with pytest.raises((Denied, Unavailable), match="--etcd-certfile"):
            await store.get("/a")
        install(authority.issue("client", "127.0.0.2"))
        with suppress(Denied, Unavailable):  # Which makes it look at the files.
            await store.get("/a")
        await eventually(lambda: store.get("/a"))
        await works(store)


async def test_a_running_watch_outlives_other_certificates(kind: Kind, authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("own", "127.0.0.1")
    server = EtcdServer(tmp_path / "data", cert=own.certificate, key=own.key, ca=own.ca)
    ca = tmp_path / "ca"
    ca.write_bytes(authority.certificate.read_bytes())
    with server:
        async with connected(kind, server.endpoint, tls=Tls(ca)) as store:
            revision = await store.commit([], [Put("/tls", b"1")])
            async with watching(store, "/tls", revision) as stream:
                await take(stream, 1)
                ca.write_bytes(ca.read_bytes() + b"\n")
                server.freeze()
                with pytest.raises(Unavailable):
                    await store.get("/a")
                server.thaw()
                with pytest.raises(Unavailable):
                    await take(stream, 1)
            await works(store)


def test_tls_settings_that_cannot_work_are_refused_at_once(kind: Kind, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without its key"):
        kind(["https://127.0.0.1"], tls=Tls(certificate=authority.certificate))
    with pytest.raises(ValueError, match=r"cannot read the etcd CA file .*absent"):
        kind(["https://127.0.0.1"], tls=Tls(ca=tmp_path / "absent"))
    (tmp_path / "der").write_bytes(b"\x30\x82")
    with pytest.raises(ValueError, match="not in PEM format"):
        kind(["https://127.0.0.1"], tls=Tls(ca=tmp_path / "der"))


# Users


def enable_auth(server: EtcdServer) -> None:
    for command in (
        f"user add root:{PASSWORD}",
        "user grant-role root root",
        f"user add flannel:{PASSWORD}",
        "role add flannel",
        "role grant-permission flannel readwrite /net/ --prefix",
        "user grant-role flannel flannel",
        "auth enable",
    ):
        server.ctl(*command.split())


@pytest.fixture
def closed_server(kind: Kind, authority: Authority, tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that wants a login; with TLS for the client that cannot log in without."""
    own = authority.issue("closed", "127.0.0.1")
    tls = {"cert": own.certificate, "key": own.key, "ca": own.ca} if kind is Etcd3Store else {}
    with EtcdServer(tmp_path / "closed", **tls) as server:  # type: ignore[arg-type]
        enable_auth(server)
        yield server


async def test_a_user_may_do_what_the_role_allows(kind: Kind, closed_server: EtcdServer, authority: Authority) -> None:
    login = Credentials("flannel", PASSWORD)
    tls = Tls(authority.certificate)
    async with connected(kind, closed_server.endpoint, tls=tls, credentials=login) as store:
        revision = await store.commit([], [Put("/net/a", b"1")])
        async with watching(store, "/net/", revision) as stream:
            assert [event.mod_revision for event in await take(stream, 1)] == [revision]
        assert await store.keepalive(await store.grant(60)) == 60
        with pytest.raises(Denied, match="denies permission"):
            await store.commit([], [Put("/elsewhere", b"1")])
        with pytest.raises(Denied, match="denies permission"):
            await anext(store.watch("/elsewhere", 1))


async def test_a_wrong_password_is_denied_and_not_shown(
    kind: Kind, closed_server: EtcdServer, authority: Authority
) -> None:
    login = Credentials("flannel", PASSWORD + "!")
    assert PASSWORD not in repr(login)
    tls = Tls(authority.certificate)
    async with connected(kind, closed_server.endpoint, tls=tls, credentials=login) as store:
        with pytest.raises(Denied, match="user name or password") as raised:
            await store.get("/net/a")
        with pytest.raises(Denied, match="user name or password"):
            await anext(store.watch("/net/a", 1))
    assert PASSWORD not in str(raised.value)
    async with connected(kind, closed_server.endpoint, tls=tls) as store:
        with pytest.raises(Denied, match="wants a user name and password"):
            await store.get("/net/a")


@pytest.mark.parametrize("first", ["call", "watch"])
async def test_a_forgotten_token_is_asked_for_again(
    kind: Kind, closed_server: EtcdServer, authority: Authority, first: str
) -> None:
    """etcd keeps its simple tokens in memory: they die with it."""
    login = Credentials("flannel", PASSWORD)
    tls = Tls(authority.certificate)
    async with connected(kind, closed_server.endpoint, tls=tls, credentials=login) as store:
        revision = await store.commit([], [Put("/net/a", b"1")])
        closed_server.stop()
        closed_server.start()
        if first == "call":
            await eventually(lambda: store.get("/net/a"))
        assert await eventually(lambda: anext(store.watch("/net/", revision + 1))) == Batch((), revision)
        assert await eventually(lambda: store.commit([], [Put("/net/a", b"2")])) == revision + 1


async def test_credentials_may_be_given_before_authentication_is_enabled(server: EtcdServer) -> None:
    async with connected(EtcdStore, server.endpoint, credentials=Credentials("flannel", PASSWORD)) as store:
        await store.commit([], [Put("/net/a", b"1")])
        enable_auth(server)
        await store.commit([], [Put("/net/a", b"2")])


def test_etcd3_without_tls_cannot_log_in() -> None:
    with pytest.raises(ValueError, match="without TLS"):
        Etcd3Store(["http://127.0.0.1:2379"], credentials=Credentials("flannel", PASSWORD))


# Packages


def test_the_default_client_does_not_need_etcd3() -> None:
    code = "import sys, flanneld_py.registry.etcd.client; sys.exit('etcd3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_etcd3_is_named() -> None:
    code = (
        "import sys; sys.modules['etcd3'] = None\n"
        "from flanneld_py.registry.etcd.etcd3_client import Etcd3Store\n"
        "from flanneld_py.registry.store import RegistryError\n"
        "try: Etcd3Store(['http://127.0.0.1:2379'])\n"
        "except RegistryError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install flanneld-py[etcd3]" in done.stdout
