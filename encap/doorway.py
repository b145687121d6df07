"""The place where agents come in: the control socket of the data-plane process, and that only one process has it.

A unix SEQPACKET socket, 0600. A lock file beside it, held while the process lives, tells a socket in use from one that
a killed process left behind: that one is replaced.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

BUFFER = 1 << 20
"""Bytes: a table of ten thousand peers fits, so that feeding it takes few turns of the agent's loop."""


class DoorwayError(Exception):
    """The control socket cannot be had; the text says why and what to do."""


class Doorway:
    """A listening control socket, non-blocking. Raises DoorwayError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DoorwayError(f"cannot create the lock file {path}.lock: {error.strerror}") from error
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listen()
        except BaseException:
            self._socket.close()
            os.close(self._lock)
            raise

    def _listen(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DoorwayError(
                f"another data-plane process serves {self._path}: connect to it, or stop it first"
            ) from error
        before = os.umask(0o177)
        try:
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
            self._socket.listen(4)
        except OSError as error:
            raise DoorwayError(
                f"cannot listen on the control socket {self._path}: {error.strerror or error}"
            ) from error
        finally:
            os.umask(before)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the connection of an agent, None if it is gone already."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return None
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return connection

    def close(self) -> None:
        """Take the socket away. The lock stays until the process ends: only then are device and port free."""
        self._path.unlink(missing_ok=True)
        self._socket.close()
