"""One etcd endpoint over grpc.aio: a channel, single calls, watch streams. What fails is a Refusal.

Which endpoint to use, with which token, and what a refusal means for the caller is decided in client.py.

- A watch stream proves by progress requests that it lives: gRPC's keepalive only tests the connection, and a
  server that is frozen or cut off for a while can leave a stream that is never served again. One that never answers
  one may be a proxy's, which drops them: there the endpoint has to answer a read.
- A read that is cancelled takes its stream with it (grpc.aio works so): a stream that fell silent is over.
- A call is cancelled by grpc.aio itself if its channel is closed: that is a Refusal, no cancellation of ours.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

# gRPC reads these when it is loaded. Its fork handlers cannot cope with its own threads, and complain at every
# subprocess; what it would log, the exceptions say.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from flanneld_py.registry.etcd import api
from flanneld_py.registry.etcd.endpoint import CHANNEL_OPTIONS, Endpoint, Secrets
from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.store import RegistryError


class Link:
    """One endpoint: its channel, and calls on it that raise Refusal."""

    def __init__(self, endpoint: Endpoint, secrets: Secrets | None) -> None:
        self.endpoint = endpoint
        self.secrets = secrets
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}
        self._waiting: set[asyncio.Timeout] = set()

    async def call(self, method: api.Method, request: api.Message, token: str, deadline: float) -> api.Message:
        """Send one request and return its answer."""
        if method.path not in self._calls:
            serialize, parse = method.request.SerializeToString, method.response.FromString
            kind = self._open().stream_stream if method.streams else self._open().unary_unary
            self._calls[method.path] = kind(method.path, serialize, parse)
        ask = _exchange if method.streams else _ask
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting.add(limit)
                return await ask(self._calls[method.path], request, timeout=left, metadata=_metadata(token))
        except TimeoutError as error:
            raise Refusal("CANCELLED", "another connection is made") from error
        except asyncio.CancelledError as error:
            _require_not_asked(error)
            raise Refusal("CANCELLED", "its channel is closed") from error
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error
        finally:
            self._waiting.discard(limit)

    def stream(self, requests: AsyncIterator[api.Message], token: str) -> Any:
        """Open a watch stream that sends `requests`."""
        serialize, parse = api.WATCH.request.SerializeToString, api.WATCH.response.FromString
        opener = self._open().stream_stream(api.WATCH.path, serialize, parse)
        return opener(requests, metadata=_metadata(token))

    async def renew(self, secrets: Secrets, longest: float) -> None:
        """Use other certificates from the next call on; those under way end within `longest` seconds."""
        self.secrets = secrets
        if (old := self._detach()) is not None:
            await close(old, longest)

    def leave(self) -> grpc.aio.Channel | None:
        """Let waiting calls raise Refusal and later ones use a new channel; return the old one, to be closed."""
        for limit in self._waiting:
            _end_now(limit)
        return self._detach()

    def _detach(self) -> grpc.aio.Channel | None:
        channel, self._channel, self._calls = self._channel, None, {}
        return channel

    async def close(self, longest: float) -> None:
        """Close the channel; calls under way end within `longest` seconds."""
        if self._channel is not None:
            await close(self._channel, longest)

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            target = self.endpoint.target
            if self.endpoint.secure and self.secrets is not None:
                pem = self.secrets
                trust = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
                self._channel = grpc.aio.secure_channel(target, trust, options=CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        return self._channel


class Stream:
    """One watch on one link."""

    def __init__(self, link: Link, token: str, first: api.Message) -> None:
        self.link = link
        self._requests: asyncio.Queue[api.Message] = asyncio.Queue()
        self._requests.put_nowait(first)
        self._call = link.stream(_drain(self._requests), token)
        self._limit: asyncio.Timeout | None = None
        self._ended: Exception | None = None
        self._progresses = False

    async def first(self, deadline: float) -> api.Message:
        """Return the first answer. Raises Refusal."""
        timer = asyncio.get_running_loop().call_at(deadline, self.end, "no answer to the watch", "DEADLINE_EXCEEDED")
        try:
            return await self._read()
        finally:
            timer.cancel()

    async def read(self, liveness: float, probe: Callable[[Link], Awaitable[object]]) -> api.Message:
        """Return the next answer. Raises Refusal, also when `end` is called meanwhile, and what `probe` raises.

        After `liveness` seconds of silence one is asked for. If none comes within as long again, the stream is given
        up if it answered such a request before; else `probe` decides, which asks the endpoint for something else.
        """
        answer: api.Message = None
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            minding = tasks.create_task(self._mind(liveness, probe))
            try:
                answer = await self._read()
            except (Refusal, RegistryError) as error:
                failure = error  # Not out of the group, which would wrap it.
            minding.cancel()
        if failure is not None:
            raise failure
        self._progresses = self._progresses or api.is_progress(answer)
        return answer

    async def _read(self) -> api.Message:
        try:
            async with asyncio.timeout(None) as self._limit:
                if self._ended is not None:
                    raise self._ended
                answer = await self._call.read()
        except TimeoutError as error:
            assert self._ended is not None
            raise self._ended from error
        except asyncio.CancelledError as error:
            _require_not_asked(error)
            raise self._ended or Refusal("CANCELLED", "its channel is closed") from error
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error
        finally:
            self._limit = None
        if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise Refusal("UNAVAILABLE", "the watch was ended by the server")
        return answer

    async def _mind(self, liveness: float, probe: Callable[[Link], Awaitable[object]]) -> None:
        """End the stream if its silence has to mean that it is dead."""
        silence = liveness
        while True:
            await _pass(silence)
            self._requests.put_nowait(api.PROGRESS)
            await _pass(liveness)
            if self._progresses:
                self.end("the watch fell silent", "DEADLINE_EXCEEDED")
                return
            try:
                await probe(self.link)
            except (Refusal, RegistryError) as error:
                self._end(error)
                return
            silence = api.PROBES * liveness

    def end(self, reason: str, code: str = "CANCELLED") -> None:
        """Let the read that is under way, or else the next, raise Refusal."""
        self._end(Refusal(code, reason))

    def _end(self, error: Exception) -> None:
        self._ended = error
        if self._limit is None:
            self._call.cancel()
        else:
            _end_now(self._limit)

    def cancel(self) -> None:
        """End the stream, which nobody reads any more."""
        self._call.cancel()


async def close(channel: grpc.aio.Channel, longest: float) -> None:
    """Close a channel on which a call may go on for so many seconds: one that still goes on then is cancelled."""
    await channel.close(longest + 1.0)


def _end_now(limit: asyncio.Timeout) -> None:
    # Cancelling the call itself would look to the reader like a cancellation of its task.
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


def _require_not_asked(error: asyncio.CancelledError) -> None:
    """Raise the cancellation again if it is one of the running task, and not grpc's own of its call."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error


async def _ask(call: Any, request: api.Message, **how: Any) -> api.Message:
    return await call(request, **how)


async def _exchange(call: Any, request: api.Message, **how: Any) -> api.Message:
    """Send one request on a stream that stays open until the answer is there (a proxy gives none after), no longer."""
    answered = asyncio.Event()

    async def requests() -> AsyncIterator[api.Message]:
        yield request
        await answered.wait()

    stream = call(requests(), **how)
    try:
        answer = await stream.read()
    finally:
        answered.set()
        stream.cancel()
    if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise Refusal("UNAVAILABLE", "the stream was ended without an answer")
    return answer


async def _pass(seconds: float) -> None:
    """Let some time pass."""
    loop = asyncio.get_running_loop()
    passed: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(seconds, passed.set_result, None)
    try:
        await passed
    finally:
        timer.cancel()


async def _drain(requests: asyncio.Queue[api.Message]) -> AsyncIterator[api.Message]:
    while True:
        yield await requests.get()


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (api.REQUIRE_LEADER, ("token", token)) if token else (api.REQUIRE_LEADER,)


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    return Refusal(error.code().name, error.details() or "")
