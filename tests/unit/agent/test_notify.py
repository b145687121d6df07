from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.notify import Notifier


def listen(path: Path) -> socket.socket:
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    unix.bind(str(path))
    unix.settimeout(5)
    return unix


def test_state_reaches_the_service_manager(tmp_path: Path) -> None:
    with listen(tmp_path / "notify") as manager:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).tell(READY="1", STATUS="9 peers")
        assert manager.recv(1000) == b"READY=1\nSTATUS=9 peers"


def test_abstract_sockets_work() -> None:
    name = f"flanneld-py-test-{id(object())}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).tell(READY="1")
        assert manager.recv(1000) == b"READY=1"


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).tell(READY="1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).tell(READY="1")


async def test_the_watchdog_is_fed(tmp_path: Path) -> None:
    with listen(tmp_path / "notify") as manager:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(notifier.keep_watchdog(SystemClock()))
            for _ in range(3):
                assert await asyncio.to_thread(manager.recv, 1000) == b"WATCHDOG=1"
            feeding.cancel()
