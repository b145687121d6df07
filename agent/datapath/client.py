"""The data-plane process (encap/datapath/__main__.py) as the agent reaches it: started, connected to, told, heard,
ended.

What it is told and when is not here (supervise.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from flanneld_py.encap.datapath.control import messages, protocol

PATIENCE = 10.0
"""Seconds within which a living process answers: it serves its control socket in every turn of its loop."""

START_PATIENCE = 30.0
"""Seconds within which a process starts and listens, on a slow machine as well."""

SO_SNDBUFFORCE = 32
BUFFER = 1 << 20
"""Bytes: a table of ten thousand peers fits, so that feeding it takes few turns of the agent's loop. Of SEQPACKET
sockets it is the sender's buffer that counts."""


class DatapathError(Exception):
    """The process cannot be started, or refuses its configuration; the text is for the operator."""


class Lost(Exception):
    """The connection to the process has ended; the text says how."""


async def start_process(control: Path) -> None:
    """Start the process; return when it listens on the control socket, detached from us. Raises DatapathError."""
    # -P: what happens to lie in the working directory is not imported.
    command = (sys.executable, "-P", "-m", "flanneld_py.encap.datapath", "--control", str(control))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(START_PATIENCE):
            said, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise DatapathError(f"the data-plane process does not start within {START_PATIENCE:g} s") from error
    if process.returncode != 0:
        reason = said.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise DatapathError(f"the data-plane process does not start: {reason}")


async def stop_process(control: Path) -> bool:
    """End the process for good, and with it its device; return whether there was one.

    Call it when no Supervisor runs: that one would start it again. Raises DatapathError if it does not end.
    """
    try:
        line = await connect(control)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    with closing(line), suppress(Lost):
        await line.send(protocol.encode(messages.Stop()))
        for _ in range(2):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while True:
                        await line.receive()
            line.kill()  # It hangs.
        raise DatapathError(
            f"the data-plane process {line.pid} at {control} does not end: see its state in /proc/{line.pid}/stack"
        )
    return True


def clear_away(control: Path) -> list[Path]:
    """Remove the files of a process that has ended; return those that there were. Raises OSError."""
    found = [path for path in (control, control.with_name(f"{control.name}.lock")) if path.exists()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


class DatapathClient:
    """A connection to the process, which has `patience` seconds to do what it is asked."""

    def __init__(self, connection: socket.socket, patience: float = PATIENCE) -> None:
        self._socket = connection
        self._patience = patience
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]

    async def send(self, data: bytes) -> None:
        """Send one message. Raises Lost."""
        try:
            async with self.in_time():
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise Lost(f"sending failed: {error.strerror}") from error

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Wait for no more than `patience` seconds inside: then the process is ended. Raises Lost."""
        try:
            async with asyncio.timeout(self._patience):
                yield
        except TimeoutError as error:
            self.kill()
            raise Lost(f"process {self.pid} gave no answer within {self._patience:g} s and was killed") from error

    async def receive(self) -> messages.Message:
        """Receive one message. Raises Lost at the end, or if it is none."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, protocol.MAX_MESSAGE + 1)
        except OSError as error:
            raise Lost(f"receiving failed: {error.strerror}") from error
        if not data:
            raise Lost("it ended")
        try:
            return protocol.decode(data)
        except protocol.Malformed as error:
            raise Lost(f"it speaks another language: {error}") from error

    def kill(self) -> None:
        """End a process that does not answer; its device goes with it."""
        if self.pid > 0:  # 0: it lives in a pid namespace that we cannot see
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up: the process goes on."""
        self._socket.close()


async def connect(control: Path, patience: float = PATIENCE) -> DatapathClient:
    """Connect to the process that listens there. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        for size in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            with suppress(PermissionError):  # The second takes CAP_NET_ADMIN, and goes beyond the system's limit.
                connection.setsockopt(socket.SOL_SOCKET, size, BUFFER)
        await asyncio.get_running_loop().sock_connect(connection, str(control))
        return DatapathClient(connection, patience)
    except BaseException:
        connection.close()
        raise
