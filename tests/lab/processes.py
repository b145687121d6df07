"""Processes by the network namespace they live in, and their end.

A lab's namespace is a host, and a host that is switched off takes everything on it along: agents, what agents
started, forgotten pings. So the kernel's own record is read (/proc/<pid>/ns/net), not a list of ours that a crash
could leave incomplete. A process is pinned by a pidfd before it is looked at a second time and killed: its number
cannot come to mean another process in between.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from tests.patience import within

NETNS = Path("/run/netns")
Identity = tuple[int, int]
"""(device, inode) of a namespace."""


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none. With the pid it names one process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may contain spaces and parentheses: count fields from the last ")" on (proc(5), field 22).
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def kill_in_namespaces(names: Iterable[str], timeout: float = 10) -> None:
    """Kill every process in these network namespaces and wait until none is left. Raises TimeoutError."""
    identities = {identity for name in names if (identity := _identity(NETNS / name))}
    identities.discard(_identity(Path("/proc/self/ns/net")) or (0, 0))
    deadline = within(timeout)
    while pids := [pid for pid in _all_pids() if _namespace_of(pid) in identities]:
        for pid in pids:
            _kill(pid, identities, deadline)


def _kill(pid: int, identities: set[Identity], deadline: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _namespace_of(pid) not in identities:
            return
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"process {pid} did not end after SIGKILL: see /proc/{pid}/stack")
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _namespace_of(pid: int) -> Identity | None:
    return _identity(Path(f"/proc/{pid}/ns/net"))


def _identity(path: Path) -> Identity | None:
    try:
        stat = path.stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return stat.st_dev, stat.st_ino
