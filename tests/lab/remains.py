"""What a run's container engines leave outside its namespaces: processes in its cgroup, mounts in its directory.

Engines that end in order leave none; this is for those that were killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.patience import within

CGROUPS = Path("/sys/fs/cgroup")


def remove_cgroups(name: str, timeout: float = 10) -> None:
    """Kill every process in the cgroups called `name` (one, or one in each v1 hierarchy) and remove them."""
    roots = [root for root in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")) if root.is_dir()]
    deadline = within(timeout)
    while (pids := {pid for root in roots for pid in _pids(root)}) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for root in roots:
        for directory, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)  # noqa: PTH106 -- a cgroup's files go with it


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, the innermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], stderr=subprocess.DEVNULL, check=False)


def _pids(root: Path) -> list[int]:
    found = []
    for path in root.rglob("cgroup.procs"):
        with suppress(OSError):
            found += [int(line) for line in path.read_text().split()]
    return found
