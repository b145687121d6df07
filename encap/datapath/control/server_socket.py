"""The place where agents come in: the control socket of the data-plane process, and that only one process has it.

A unix SEQPACKET socket, 0600. A lock file beside it, held while the process lives, tells a socket in use from one that
a killed process left behind: that one is replaced. Somebody may remove either file (who tidies up /run): nobody would
find the process any more, and a second one would be started. So it looks now and then, and makes again what is gone.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

Identity = tuple[int, int, int] | None


class ControlSocketError(Exception):
    """The control socket cannot be had; the text says why and what to do."""


class ControlSocket:
    """A listening control socket, non-blocking. Raises ControlSocketError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _lock(path)
        try:
            self._socket, self._bound = _listen(path)
        except BaseException:
            os.close(self._lock)
            raise

    def lost(self) -> bool:
        """Tell whether nobody can find us: our files are gone, or others'."""
        return not self._locked() or _identity(self._path) != self._bound

    def come_back(self) -> None:
        """Listen at our path again, by the same descriptor, to be waited on anew. Raises ControlSocketError."""
        if not self._locked():
            lock = _lock(self._path)
            os.close(self._lock)
            self._lock = lock
        listening, self._bound = _listen(self._path)
        with listening:
            os.dup2(listening.fileno(), self._socket.fileno(), inheritable=False)

    def _locked(self) -> bool:
        ours = os.fstat(self._lock)
        try:
            there = _lock_path(self._path).lstat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the connection of an agent; None if it is gone already, or there is no descriptor for it now."""
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return None
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """Take the socket away. The lock stays until the process ends: only then are device and port free."""
        if _identity(self._path) == self._bound:
            self._path.unlink(missing_ok=True)
        self._socket.close()


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path) -> int:
    """Return the descriptor of the lock file, locked. Raises ControlSocketError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ControlSocketError(f"cannot create the lock file {_lock_path(path)}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ControlSocketError(
            f"another data-plane process serves {path}: connect to it, or stop it first"
        ) from error
    return lock


def _listen(path: Path) -> tuple[socket.socket, Identity]:
    """Return a socket that listens at the path, and how to know its file again. Raises ControlSocketError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen(4)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ControlSocketError(f"cannot listen on the control socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return listening, _identity(path)


def _identity(path: Path) -> Identity:
    """Return what tells a file from a later one of its name, which may have its inode number; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
