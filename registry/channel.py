"""One etcd endpoint over grpc.aio: a channel, single calls, watch streams. What fails is a Refusal.

Which endpoint to use, with which token, and what a refusal means for the caller is decided in etcd.py.

- A watch stream proves by progress requests that it lives: gRPC's keepalive only tests the connection, and a
  server that is frozen or cut off for a while can leave a stream that is never served again.
- A read that is cancelled takes its stream with it (grpc.aio works so): a stream that fell silent is over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

# gRPC reads these when it is loaded. Its fork handlers cannot cope with its own threads, and complain at every
# subprocess; what it would log, the exceptions say.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from flanneld_py.registry import etcd_api as api
from flanneld_py.registry.endpoint import CHANNEL_OPTIONS, Endpoint, Secrets
from flanneld_py.registry.refusal import Refusal


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
            self._calls[method.path] = self._open().unary_unary(method.path, serialize, parse)
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(None) as limit:
                self._waiting.add(limit)
                return await self._calls[method.path](request, timeout=left, metadata=_metadata(token))
        except TimeoutError as error:
            raise Refusal("CANCELLED", "another connection is made") from error
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from error
        finally:
            self._waiting.discard(limit)

    def stream(self, requests: AsyncIterator[api.Message], token: str) -> Any:
        """Open a watch stream that sends `requests`."""
        serialize, parse = api.WATCH.request.SerializeToString, api.WATCH.response.FromString
        opener = self._open().stream_stream(api.WATCH.path, serialize, parse)
        return opener(requests, metadata=_metadata(token))

    async def renew(self, secrets: Secrets, grace: float) -> None:
        """Use other certificates from the next call on; calls under way have `grace` seconds to end."""
        self.secrets = secrets
        if (old := self._detach()) is not None:
            await old.close(grace)

    def leave(self) -> grpc.aio.Channel | None:
        """Let waiting calls raise Refusal and later ones use a new channel; return the old one, to be closed."""
        for limit in self._waiting:
            _end_now(limit)
        return self._detach()

    def _detach(self) -> grpc.aio.Channel | None:
        channel, self._channel, self._calls = self._channel, None, {}
        return channel

    async def close(self, grace: float) -> None:
        """Close the channel; calls under way have `grace` seconds to end."""
        if self._channel is not None:
            await self._channel.close(grace)

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
        self.endpoint = link.endpoint
        self._requests: asyncio.Queue[api.Message] = asyncio.Queue()
        self._requests.put_nowait(first)
        self._call = link.stream(_drain(self._requests), token)
        self._limit: asyncio.Timeout | None = None
        self._ended = ""

    async def read(self, ask_after: float | None, patience: float) -> api.Message:
        """Return the next answer; after `ask_after` seconds of silence ask for one, `patience` seconds later give up.

        Raises Refusal, also when `end` is called meanwhile.
        """
        loop = asyncio.get_running_loop()
        with ExitStack() as scope:
            if ask_after is not None:
                scope.callback(loop.call_later(ask_after, self._requests.put_nowait, api.PROGRESS).cancel)
            try:
                async with asyncio.timeout((ask_after or 0.0) + patience) as self._limit:
                    if self._ended:
                        raise Refusal("CANCELLED", self._ended)
                    answer = await self._call.read()
            except TimeoutError as error:
                if self._ended:
                    raise Refusal("CANCELLED", self._ended) from error
                raise Refusal("DEADLINE_EXCEEDED", "the watch fell silent") from error
            except grpc.aio.AioRpcError as error:
                raise _refusal(error) from error
            finally:
                self._limit = None
        if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise Refusal("UNAVAILABLE", "the watch was ended by the server")
        return answer

    def end(self, reason: str) -> None:
        """Let the read that is under way, or else the next, raise Refusal."""
        self._ended = reason
        if self._limit is None:
            self._call.cancel()
        else:
            _end_now(self._limit)

    def cancel(self) -> None:
        """End the stream, which nobody reads any more."""
        self._call.cancel()


def _end_now(limit: asyncio.Timeout) -> None:
    # Cancelling the call itself would look to the reader like a cancellation of its task.
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


async def _drain(requests: asyncio.Queue[api.Message]) -> AsyncIterator[api.Message]:
    while True:
        yield await requests.get()


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (api.REQUIRE_LEADER, ("token", token)) if token else (api.REQUIRE_LEADER,)


def _refusal(error: grpc.aio.AioRpcError) -> Refusal:
    return Refusal(error.code().name, error.details() or "")
