"""What was delegated for each attachment (a container's interface): files in the plugin's `dataDir`.

    <container>:<interface>    the delegate's configuration, as it was when the interface was added
    <container>                the same, written by flannel's plugin, which knows one interface for each container

The file is also the lock of its attachment: two calls for one wait for each other, for two do not. It is written and
synced before the delegate is called, so an empty or torn one says that the delegate was not called.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flanneld_py.agent.cni.spec import Json


class Attachment:
    """An attachment's file, locked. `lock` is its descriptor: who inherits it, holds the lock as well."""

    def __init__(self, path: Path, lock: int) -> None:
        self.lock = lock
        self._path = path

    def conf(self) -> Json | None:
        """Return what was delegated, None if nothing was. Raises OSError."""
        try:
            conf = json.loads(self._path.read_bytes())
        except ValueError:
            return None
        return conf if isinstance(conf, dict) else None

    def save(self, conf: Json) -> None:
        """Keep what will be delegated. Raises OSError."""
        # In place: a file renamed over it would not be the one that is locked.
        data = json.dumps(conf).encode()
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, data, 0)
        os.fsync(self.lock)

    def forget(self) -> None:
        """Remove the file. Raises OSError."""
        self._path.unlink(missing_ok=True)


class Attachments:
    """The attachments in a directory, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def made(self, container: str, interface: str) -> Iterator[Attachment]:
        """Lock an attachment, made if it is not there. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{container}:{interface}"
        lock = _lock(path, os.O_RDWR | os.O_CREAT)
        try:
            yield Attachment(path, lock)
        finally:
            os.close(lock)

    @contextmanager
    def found(self, container: str, interface: str) -> Iterator[Attachment | None]:
        """Lock an attachment, ours or one that flannel's plugin left; None if there is none. Raises OSError."""
        for path in (self._directory / f"{container}:{interface}", self._directory / container):
            try:
                lock = _lock(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                yield Attachment(path, lock)
            finally:
                os.close(lock)
            return
        yield None

    def listed(self) -> list[tuple[str, str]]:
        """Return (container, interface) of all that this plugin made."""
        try:
            names = [path.name.partition(":") for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        return sorted((container, interface) for container, _, interface in names if interface)


def _lock(path: Path, flags: int) -> int:
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        # Whoever held it removed the file: this lock is on nothing.
        os.close(descriptor)
