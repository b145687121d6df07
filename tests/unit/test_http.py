from __future__ import annotations

import asyncio

import pytest

from flanneld_py.agent.http import HealthServer


@pytest.mark.parametrize(
    ("line", "ready", "status", "body"),
    [
        ("GET /healthz HTTP/1.1", False, 200, "flanneld is running"),
        ("GET /readyz HTTP/1.1", False, 503, "flanneld is not ready yet"),
        ("GET /readyz?verbose HTTP/1.0", True, 200, "flanneld is ready"),
        ("GET /other HTTP/1.1", True, 404, "there are /healthz and /readyz"),
        ("POST /healthz HTTP/1.1", True, 405, "only GET is served here"),
        ("nonsense", True, 405, "only GET is served here"),
        ("", True, 405, "only GET is served here"),
    ],
)
def test_answers_are_flannels(line: str, ready: bool, status: int, body: str) -> None:
    assert HealthServer(lambda: ready).respond(line) == (status, body)


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_over_the_wire() -> None:
    server = HealthServer(lambda: True)
    await server.start("127.0.0.1", 0)
    try:
        assert server._server is not None
        port = server._server.sockets[0].getsockname()[1]
        answer = await ask(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nflanneld is ready")
        assert await ask(port, b"\x16\x03\x01 not http") == b""
        assert await ask(port, b"GET /" + b"x" * 20000) == b""
    finally:
        server.close()
