"""Etcd3Store: the store over the `etcd3` package, driven from worker threads. An optional extra.

Not the default: its release (0.12.0) is of 2020, knows one endpoint, has no asyncio, and does not load with
protobuf 4 or later unless it is helped (etcd3_session.py says how, and what else is wrong with it). It is for those
who want that package, and a second opinion in the tests.

- A call blocks a thread of the store's pool; so does a running watch, on a session of its own.
- A call uses one endpoint. If that fails, the next call uses the next one.
- User and password work with TLS only; asking for them without raises ValueError: use the default store.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from flanneld_py.registry.etcd import api
from flanneld_py.registry.etcd.endpoint import Credentials, Tls, parse_endpoints, read_tls
from flanneld_py.registry.etcd.etcd3_session import Session, Watch, kv, load_etcd3, renew
from flanneld_py.registry.etcd.reads import Reads
from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.store import (
    Batch,
    Conflict,
    Delete,
    Expect,
    LeaseGone,
    Put,
    Unavailable,
)

T = TypeVar("T")

# Each running watch keeps one; this project has two watches at most.
_THREADS = 16


class Etcd3Store(Reads):
    """The store over `etcd3`. See `registry.store.Store`, and `EtcdStore` for the arguments.

    Raises ValueError if the settings cannot be used, RegistryError if `etcd3` is not installed.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        timeout: float = 5.0,
        liveness: float = 5.0,
    ) -> None:
        self._endpoints = parse_endpoints(endpoints, tls)
        if credentials is not None and not all(endpoint.secure for endpoint in self._endpoints):
            raise ValueError(
                "the etcd3 client cannot log in to etcd with user and password without TLS; "
                "use https:// endpoints or the default client"
            )
        if any(endpoint.secure for endpoint in self._endpoints):
            read_tls(tls)
        etcd3 = load_etcd3()
        self._connect = partial(Session, etcd3, tls=tls or Tls(), credentials=credentials, timeout=timeout)
        self._new_watch = partial(Watch, etcd3)
        self._timeout = timeout
        self._liveness = liveness
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="etcd3")
        # Guards the session and the choice of its endpoint, which threads of the pool share.
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._index = 0
        self._watches: set[Watch] = set()
        self._closed = False

    async def _range(self, action: str, request: api.Message) -> api.Message:
        return await self._call(action, partial(kv, name="Range", request=request))

    @property
    def _url(self) -> str:
        return self._endpoints[self._index].url

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        """Do all operations if every expectation holds, else none. Raises Conflict, LeaseGone."""
        keys = ", ".join(operation.key for operation in operations)
        request = api.transaction(expect, operations)
        answer = await self._call(f"write {keys}", partial(kv, name="Txn", request=request))
        if not answer.succeeded:
            wanted = ", ".join(want.key for want in expect)
            raise Conflict(f"nothing was written to {keys}: {wanted} is not as expected; somebody else was first")
        return int(answer.header.revision)

    async def grant(self, ttl: int) -> int:
        """Create an etcd lease of `ttl` seconds and return its id."""
        lease = await self._call(f"create an etcd lease of {ttl} s", lambda client: client.lease(ttl))
        return int(lease.id)

    async def keepalive(self, lease_id: int) -> int:
        """Set the lease back to its full TTL; return that TTL in seconds. Raises LeaseGone."""
        action = f"renew etcd lease {lease_id:x}"
        answer = await self._call(action, partial(renew, lease_id=lease_id))
        if answer.TTL <= 0:
            raise LeaseGone(f"cannot {action}: it does not exist (any more)")
        return int(answer.TTL)

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease. Raises LeaseGone."""
        action = f"read etcd lease {lease_id:x}"
        answer = await self._call(action, lambda client: client.get_lease_info(lease_id))
        if answer.TTL < 0:
            raise LeaseGone(f"cannot {action}: it does not exist (any more)")
        return int(answer.TTL), int(answer.grantedTTL)

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        try:
            await self._call(f"revoke etcd lease {lease_id:x}", lambda client: client.revoke_lease(lease_id))
        except LeaseGone:
            return

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        """Stream every change under `prefix` from `start_revision` on. Raises Unavailable, HistoryLost, Denied."""
        action = f"watch {prefix}"
        watch = self._new_watch(lambda: self._connect(self._endpoints[self._index]))
        self._watches.add(watch)
        try:
            open_watch = partial(watch.open, prefix, start_revision, self._cluster_id)
            await self._in_thread(action, open_watch, self._timeout)
            reader = api.WatchReader(start_revision)
            batch: Batch | None = Batch((), start_revision - 1)
            reached = start_revision - 1
            while True:
                if batch is not None:
                    reached = batch.revision
                    yield batch
                batch = await self._next(action, prefix, watch, reader, reached)
        finally:
            self._watches.discard(watch)
            watch.close()

    async def _next(
        self, action: str, prefix: str, watch: Watch, reader: api.WatchReader, reached: int
    ) -> Batch | None:
        """Read the next answer of a watch; see `Stream.read` in channel.py for what its silence means."""
        self._require_open(action)
        reading = asyncio.get_running_loop().run_in_executor(self._pool, lambda: reader.read(watch.read()))
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        silence = self._liveness
        try:
            while not (await asyncio.wait({reading}, timeout=silence))[0]:
                watch.ask()
                if (await asyncio.wait({reading}, timeout=self._liveness))[0]:
                    break
                if watch.progresses:
                    raise Refusal("DEADLINE_EXCEEDED", "the watch fell silent", self._endpoints[self._index].url)
                probe = partial(watch.probe, prefix, reached + 1, self._cluster_id)
                await self._in_thread(action, probe, self._timeout)
                silence = api.PROBES * self._liveness
            return reading.result()
        except Refusal as refusal:
            raise refusal.error(action) from refusal

    def _require_open(self, action: str) -> None:
        if self._closed:
            raise Unavailable(f"cannot {action}: the connection to etcd is closed")

    async def reconnect(self) -> None:
        """Let go of all connections; running watches and calls end with Unavailable."""
        for watch in self._watches:
            watch.close()
        await self._in_thread("connect again", self._drop, self._timeout)

    async def close(self) -> None:
        """Let go of all connections; running watches end with Unavailable."""
        self._closed = True
        for watch in self._watches:
            watch.close()
        if self._session is not None:
            self._session.close()
        self._pool.shutdown(wait=False)

    async def _call(self, action: str, work: Callable[[Any], T]) -> T:
        return await self._in_thread(action, partial(self._attempt, work), self._timeout)

    async def _in_thread(self, action: str, work: Callable[[], T], patience: float) -> T:
        self._require_open(action)
        try:
            async with asyncio.timeout(patience):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError as error:
            urls = ", ".join(endpoint.url for endpoint in self._endpoints)
            raise Unavailable(f"cannot {action}: etcd at {urls} did not answer within {patience:.0f} s") from error
        except Refusal as refusal:
            raise refusal.error(action) from refusal

    def _attempt(self, work: Callable[[Any], T]) -> T:
        """Let `work` use the client; if its token has gone stale, a new one. In a thread of the pool."""
        session = self._current()
        try:
            return session.call(work)
        except Refusal as refusal:
            if not (refusal.stale_token or refusal.moves_on):
                raise
            self._leave(session, next_endpoint=refusal.moves_on)
            if not refusal.stale_token:
                raise
        return self._current().call(work)

    def _drop(self) -> None:
        if self._session is not None:
            self._leave(self._session, next_endpoint=False)

    def _current(self) -> Session:
        with self._lock:
            if self._session is None:
                try:
                    self._session = self._connect(self._endpoints[self._index])
                except Refusal:
                    self._index = (self._index + 1) % len(self._endpoints)
                    raise
            return self._session

    def _leave(self, session: Session, *, next_endpoint: bool) -> None:
        with self._lock:
            # Another thread may have left it already.
            if self._session is session:
                self._session = None
                self._index = (self._index + next_endpoint) % len(self._endpoints)
        session.close()
