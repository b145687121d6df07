from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest

from flanneld_py.agent.health import CLIENTS, HealthServer


async def state() -> dict[str, object]:
    return {"state": "waiting for a lease – still", "peers": 0}


@pytest.mark.parametrize(
    ("line", "ready", "status", "body"),
    [
        ("GET /healthz HTTP/1.1", False, 200, "flanneld is running"),
        ("GET /readyz HTTP/1.1", False, 503, "flanneld is not ready yet"),
        ("GET /readyz?verbose HTTP/1.0", True, 200, "flanneld is ready"),
        ("GET /other HTTP/1.1", True, 404, "there are /healthz, /readyz and /status"),
        ("POST /healthz HTTP/1.1", True, 405, "only GET is served here"),
        ("nonsense", True, 405, "only GET is served here"),
        ("", True, 405, "only GET is served here"),
    ],
)
async def test_answers_are_flannels(line: str, ready: bool, status: int, body: str) -> None:
    answer = await HealthServer(lambda: ready, state).respond(line)
    assert (answer.status, answer.body, answer.content_type) == (status, body, "text/plain")


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
    server = HealthServer(lambda: True, state)
    await server.start("127.0.0.1", 0)
    try:
        assert server._server is not None
        port = server._server.sockets[0].getsockname()[1]
        answer = await ask(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nflanneld is ready")
        answer = await ask(port, b"GET /status HTTP/1.1\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Type: application/json\r\n" in head
        assert f"Content-Length: {len(body)}\r\n".encode() in head
        assert json.loads(body) == await state()
        assert (await ask(port, b"HEAD /status HTTP/1.1\r\n\r\n")) == head + b"\r\n\r\n"
        assert await ask(port, b"\x16\x03\x01 not http") == b""
        assert await ask(port, b"GET /" + b"x" * 20000) == b""
    finally:
        server.close()


@asynccontextmanager
async def serving(server: HealthServer) -> AsyncIterator[int]:
    await server.start("127.0.0.1", 0)
    try:
        assert server._server is not None
        yield server._server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_client_that_takes_nothing_is_let_go_of_and_its_answer_with_it() -> None:
    async def long() -> dict[str, object]:
        return {"state": "x" * 30_000_000}

    server = HealthServer(lambda: True, long, patience=0.1)
    async with serving(server) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        try:
            writer.write(b"GET /status HTTP/1.1\r\n\r\n")
            await reader.read(1)
            async with asyncio.timeout(10):
                while server.clients:  # noqa: ASYNC110 -- the server tells of no such event
                    await asyncio.sleep(0.01)
            assert len(await reader.read()) < 29_000_000
        finally:
            writer.close()


async def test_the_limit_holds_however_many_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flanneld_py.agent.health.CLIENTS", 8)

    def is_cut(client: socket.socket) -> bool:
        try:
            return client.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    server = HealthServer(lambda: True, state)
    async with serving(server) as port:
        with ExitStack() as files:
            clients = [files.enter_context(socket.socket()) for _ in range(90)]
            for client in clients:  # All of them wait when the server looks next.
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            async with asyncio.timeout(2):
                while sum(map(is_cut, clients)) < 90 - 8:  # noqa: ASYNC110 -- the server tells of no such event
                    await asyncio.sleep(0.01)
            assert server.clients == 8


async def test_clients_that_ask_nothing_do_not_use_up_our_files() -> None:
    server = HealthServer(lambda: True, state)
    async with serving(server) as port:
        clients = []
        try:
            async with asyncio.timeout(10):
                for _ in range(CLIENTS + 10):
                    clients.append(await asyncio.open_connection("127.0.0.1", port))
                for reader, _ in clients[:10]:
                    with suppress(ConnectionResetError):
                        assert await reader.read() == b"", "the oldest make room"
                assert server.clients == CLIENTS
                assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        finally:
            for _, writer in clients:
                writer.close()
