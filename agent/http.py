"""`/healthz` and `/readyz` over HTTP, as flannel answers them. Not a web server: GET, one answer, close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

REQUEST_LIMIT = 8192
"""Bytes; a request that is longer is none for us."""

PATIENCE = 3.0
"""Seconds in which a client must have sent its request and taken its answer."""


class HealthServer:
    """Answer whether we run, and whether we are ready."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._server: asyncio.Server | None = None

    async def start(self, address: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._answer, address, port, limit=REQUEST_LIMIT)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def respond(self, request_line: str) -> tuple[int, str]:
        """Return status and body for the first line of a request."""
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return 405, "only GET is served here"
        if path == "/healthz":
            return 200, "flanneld is running"
        if path == "/readyz":
            return (200, "flanneld is ready") if self._ready() else (503, "flanneld is not ready yet")
        return 404, "there are /healthz and /readyz"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                line = head.split(b"\r\n", 1)[0].decode("latin-1")
                status, body = self.respond(line)
                reason = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}[status]
                content = b"" if line.startswith("HEAD ") else body.encode()
                writer.write(
                    f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + content
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # A client that is gone, slow or no HTTP client gets no answer.
        finally:
            writer.close()
