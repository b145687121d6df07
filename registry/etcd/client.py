"""EtcdStore: the store on a real etcd, over grpc.aio and etcd's published API (3.4 and later).

It holds no policy: what fails is raised, what to do about it is decided in `agent/`. One call, from top to bottom:

    get, commit ...         messages out, values back (api.py, reads.py)
      _on_some_endpoint     each endpoint once, beginning with the one that worked last; one deadline for all
        _ask                with our token; if that has gone stale, log in again and repeat, once
          Link.call         one endpoint's channel (channel.py)
    watch                   opened the same way, then read from one `Stream`

A token is known to all members of etcd, and forgotten by a member that restarts (unless etcd uses JWT).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from flanneld_py.registry.etcd import api
from flanneld_py.registry.etcd.channel import Link, Stream, close
from flanneld_py.registry.etcd.endpoint import Credentials, Tls, parse_endpoints, read_tls
from flanneld_py.registry.etcd.reads import Reads
from flanneld_py.registry.etcd.status import Refusal, combined
from flanneld_py.registry.store import (
    Batch,
    Conflict,
    Delete,
    Expect,
    LeaseGone,
    Put,
    Unavailable,
)

__all__ = ["Credentials", "EtcdStore", "Tls"]

T = TypeVar("T")


class EtcdStore(Reads):
    """The store on etcd. See `registry.store.Store`; must be used inside a running event loop.

    `timeout` in seconds is for a whole call, over all endpoints. A watch that is silent for `liveness` seconds is
    asked for a sign of life, and given up after as long again. Raises ValueError if the settings cannot be used.
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
        parsed = parse_endpoints(endpoints, tls)
        secrets = read_tls(tls) if any(endpoint.secure for endpoint in parsed) else None
        self._links = [Link(endpoint, secrets) for endpoint in parsed]
        self._tls = tls
        self._preferred = 0
        self._credentials = credentials
        self._timeout = timeout
        self._liveness = liveness
        self._token = ""
        self._streams: set[Stream] = set()
        self._closed = False

    async def _range(self, action: str, request: api.Message) -> api.Message:
        return await self._call(action, api.RANGE, request)

    @property
    def _url(self) -> str:
        return self._links[self._preferred].endpoint.url

    async def commit(self, expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> int:
        """Do all operations if every expectation holds, else none. Raises Conflict, LeaseGone."""
        keys = ", ".join(dict.fromkeys(operation.key for operation in operations))
        refused: list[Refusal] = []
        answer = await self._call(f"write {keys}", api.TXN, api.transaction(expect, operations), refused)
        if answer.succeeded:
            return int(answer.header.revision)
        unclear = [refusal for refusal in refused if not refusal.never_sent]
        if unclear:
            # An endpoint that failed may have done it before it failed: then we conflict with ourselves.
            raise Unavailable(f"cannot tell whether {keys} was written: {'; '.join(map(str, unclear))}")
        wanted = ", ".join(want.key for want in expect)
        raise Conflict(f"nothing was written to {keys}: {wanted} is not as expected; somebody else was first")

    async def grant(self, ttl: int) -> int:
        """Create an etcd lease of `ttl` seconds and return its id."""
        answer = await self._call(f"create an etcd lease of {ttl} s", api.GRANT, api.GRANT.request(TTL=ttl))
        return int(answer.ID)

    async def keepalive(self, lease_id: int) -> int:
        """Set the lease back to its full TTL; return that TTL in seconds. Raises LeaseGone."""
        action = f"renew etcd lease {lease_id:x}"
        answer = await self._call(action, api.KEEPALIVE, api.KEEPALIVE.request(ID=lease_id))
        if answer.TTL <= 0:
            raise LeaseGone(f"cannot {action}: it does not exist (any more)")
        return int(answer.TTL)

    async def time_to_live(self, lease_id: int) -> tuple[int, int]:
        """Return (remaining, granted) seconds of a lease. Raises LeaseGone."""
        action = f"read etcd lease {lease_id:x}"
        answer = await self._call(action, api.TIME_TO_LIVE, api.TIME_TO_LIVE.request(ID=lease_id))
        if answer.TTL < 0:
            raise LeaseGone(f"cannot {action}: it does not exist (any more)")
        return int(answer.TTL), int(answer.grantedTTL)

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; a lease that is gone already is no error."""
        try:
            await self._call(f"revoke etcd lease {lease_id:x}", api.REVOKE, api.REVOKE.request(ID=lease_id))
        except LeaseGone:
            return

    async def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Batch, None]:
        """Stream every change under `prefix` from `start_revision` on. Raises Unavailable, HistoryLost, Denied."""
        action = f"watch {prefix}"
        with ExitStack() as opened:
            open_one = partial(self._open_watch, opened, prefix, start_revision)
            stream = await self._on_some_endpoint(action, open_one, [])
            reader = api.WatchReader(start_revision)
            batch: Batch | None = Batch((), start_revision - 1)
            reached = start_revision - 1
            while True:
                if batch is not None:
                    reached = batch.revision
                    yield batch
                try:
                    batch = reader.read(await stream.read(self._liveness, partial(self._probe, prefix, reached + 1)))
                except Refusal as refusal:
                    refusal.endpoint = stream.link.endpoint.url
                    raise refusal.error(action) from refusal

    async def reconnect(self) -> None:
        """Let go of all connections; running watches and calls end with Unavailable."""
        for stream in self._streams:
            stream.end("another connection is made")
        left = [channel for link in self._links if (channel := link.leave()) is not None]
        for channel in left:
            await close(channel, self._timeout)

    async def close(self) -> None:
        """Let go of all connections; running watches end with Unavailable."""
        self._closed = True
        for stream in self._streams:
            stream.end("the connection to etcd is closed")
        for link in self._links:
            await link.close(self._timeout)

    async def _call(
        self, action: str, method: api.Method, request: api.Message, refused: list[Refusal] | None = None
    ) -> api.Message:
        async def attempt(link: Link, deadline: float) -> api.Message:
            return await self._ask(link, method, request, deadline)

        return await self._on_some_endpoint(action, attempt, [] if refused is None else refused)

    async def _on_some_endpoint(
        self, action: str, attempt: Callable[[Link, float], Awaitable[T]], refused: list[Refusal]
    ) -> T:
        """Try each endpoint once; `refused` gets what those said that did not do it."""
        now = asyncio.get_running_loop().time
        end = now() + self._timeout
        count, first = len(self._links), self._preferred
        for tried in range(count):
            if self._closed:
                raise Unavailable(f"cannot {action}: the connection to etcd is closed")
            index = (first + tried) % count
            link = self._links[index]
            try:
                result = await attempt(link, now() + (end - now()) / (count - tried))
            except Refusal as refusal:
                refusal.endpoint = link.endpoint.url
                if not refusal.moves_on:
                    raise refusal.error(action) from refusal
                refused.append(refusal)
                await self._reread(link)
            else:
                self._preferred = index
                return result
        raise combined(action, refused) from refused[-1]

    async def _reread(self, link: Link) -> None:
        """Take in certificates that are others by now: those we had may be wrong, or have ended."""
        if link.secrets is None:
            return
        try:
            secrets = read_tls(self._tls)
        except ValueError:
            return  # They are being replaced: the next failure finds them whole.
        if secrets != link.secrets:
            for stream in self._streams:
                if stream.link is link:
                    stream.end("the certificates were replaced")
            await link.renew(secrets, self._timeout)

    async def _ask(self, link: Link, method: api.Method, request: api.Message, deadline: float) -> api.Message:
        token = await self._login(link, deadline)
        try:
            return await link.call(method, request, token, deadline)
        except Refusal as refusal:
            if not refusal.stale_token or not self._drop_token(token):
                raise
        return await link.call(method, request, await self._login(link, deadline), deadline)

    async def _open_watch(
        self, opened: ExitStack, prefix: str, start_revision: int, link: Link, deadline: float
    ) -> Stream:
        """Open a stream and wait until etcd says that the watch stands."""
        # A linearizable read first: a member that lags behind waits until it does not, and a stale token is renewed.
        newest = await self._probe(prefix, start_revision, link, deadline)
        request = api.watch_request(prefix, start_revision, newest)
        stream = Stream(link, await self._login(link, deadline), request)
        self._streams.add(stream)
        opened.callback(self._streams.discard, stream)
        opened.callback(stream.cancel)
        answer = await stream.first(deadline)
        api.WatchReader(start_revision).read(answer)
        return stream

    async def _probe(self, prefix: str, start_revision: int, link: Link, deadline: float | None = None) -> int:
        """Ask one endpoint how far it is. Raises Refusal; StoreReplaced if it has another history until then."""
        deadline = deadline or asyncio.get_running_loop().time() + self._timeout
        header = (await self._ask(link, api.RANGE, api.header_request(prefix), deadline)).header
        api.require_history(header, self._cluster_id, start_revision, link.endpoint.url)
        return int(header.revision)

    async def _login(self, link: Link, deadline: float) -> str:
        """Return a token; empty if no user is configured or etcd has no authentication."""
        if self._credentials is not None and not self._token:
            user = self._credentials
            request = api.AUTHENTICATE.request(name=user.username, password=user.password)
            try:
                self._token = (await link.call(api.AUTHENTICATE, request, "", deadline)).token
            except Refusal as refusal:
                if "authentication is not enabled" not in refusal.details:
                    raise
        return self._token

    def _drop_token(self, token: str) -> bool:
        """Forget a token that was refused; say whether logging in again can bring another."""
        # Another call may have logged in again meanwhile.
        if self._token == token:
            self._token = ""
        return self._credentials is not None
