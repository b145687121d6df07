"""`/healthz` and `/readyz` over HTTP, as flannel answers them, and `/status` in JSON.

Not a web server: GET, one answer, close.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

REQUEST_LIMIT = 8192
"""Bytes; a request that is longer is none for us."""

CLIENTS = 256
"""Connections at a time; one more, and the oldest is cut: whoever is slow must not use up our file descriptors."""

PATIENCE = 3.0
"""Seconds in which a client must have sent its request, and as many in which it must have taken its answer."""

REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets."""

    status: int
    body: str
    content_type: str = "text/plain"


class HealthServer:
    """Answer whether we run, whether we are ready, and how all is; `status` is what `/status` shows as JSON."""

    def __init__(
        self,
        ready: Callable[[], bool],
        status: Callable[[], Awaitable[Mapping[str, object]]],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._ready = ready
        self._status = status
        self._patience = patience
        self._clients: dict[asyncio.StreamWriter, None] = {}
        self._server: asyncio.Server | None = None

    @property
    def clients(self) -> int:
        """How many connections there are."""
        return len(self._clients)

    async def start(self, address: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, address, port, limit=REQUEST_LIMIT)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def respond(self, request_line: str) -> Answer:
        """Answer the first line of a request."""
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return Answer(405, "only GET is served here")
        match path:
            case "/healthz":
                return Answer(200, "flanneld is running")
            case "/readyz":
                return Answer(200, "flanneld is ready") if self._ready() else Answer(503, "flanneld is not ready yet")
            case "/status":
                return Answer(200, json.dumps(await self._status()) + "\n", "application/json")
        return Answer(404, "there are /healthz, /readyz and /status")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients[writer] = None
        if len(self._clients) > CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]  # At once: many come in one turn of the loop, and each is to cut another one.
            oldest.transport.abort()
        try:
            async with asyncio.timeout(self._patience):
                head = await reader.readuntil(b"\r\n\r\n")
            line = head.split(b"\r\n", 1)[0].decode("latin-1")
            answer = await self.respond(line)
            body = answer.body.encode()
            writer.write(
                f"HTTP/1.1 {answer.status} {REASONS[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + (b"" if line.startswith("HEAD ") else body)
            )
            writer.close()
            async with asyncio.timeout(self._patience):
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # A client that is gone, slow or no HTTP client gets no answer.
        finally:
            # What it has not taken by now would stay in memory for as long as it stays connected.
            writer.transport.abort()
            self._clients.pop(writer, None)
