"""One run of the lab: its name, its directory, and the removal of both with everything that carries the name.

    fpy-<pid>-<n>                                a run: the n-th lab of process <pid>
    /run/flanneld-py-lab/fpy-<pid>-<n>/owner     "<pid> <start time>": one process, even when pids are used again
    /run/netns/fpy-<pid>-<n>-<role>              its namespaces: core, h1, h1c1, …
    /sys/fs/cgroup/fpy-<pid>-<n>                 processes of real container engines (docker.py, lxc.py, podman.py)

The directory is made first and removed last, so whatever is interrupted can be found and finished by the next lab.
Names are the only register: what carries the name of a run whose process is gone, is removed.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

from tests.lab.namespace import LabError, Namespace, batch
from tests.lab.processes import NETNS, kill_in_namespaces, start_time
from tests.lab.remains import remove_cgroups, unmount_below

ROOT = Path("/run/flanneld-py-lab")
NAME = re.compile(r"(fpy-(\d+)-\d+)(-.*)?")


class Run:
    """A run by name, ours or another process's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = ROOT / name

    def namespace(self, role: str) -> Namespace:
        """The namespace of this run with this role; not made yet."""
        return Namespace(f"{self.name}-{role}")

    def namespaces(self) -> list[str]:
        """Names of the namespaces of this run that exist."""
        return sorted(path.name for path in _listing(NETNS) if path.name.startswith(f"{self.name}-"))

    def alive(self) -> bool:
        """Whether the process that owns it still runs."""
        try:
            pid, started = map(int, (self.directory / "owner").read_text().split())
        except (FileNotFoundError, ValueError):
            # Just being made, or only namespaces are left: then the pid in the name decides.
            match = NAME.fullmatch(self.name)
            return match is not None and start_time(int(match[2])) is not None
        return start_time(pid) == started

    def remove(self) -> None:
        """Kill its processes, remove its namespaces and its directory. Raises LabError if something remains."""
        names = self.namespaces()
        kill_in_namespaces(names)
        remove_cgroups(self.name)
        unmount_below(self.directory)
        for name in names:
            try:
                batch("ip", [f"netns del {name}"])
            except LabError:
                # Another lab cleans the same dead run at the same moment; only what is still there is a failure.
                if (NETNS / name).exists():
                    raise
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise LabError(f"cannot remove {self.directory}: remove it by hand")
        with suppress(OSError):  # other runs are in it, or another lab was quicker
            ROOT.rmdir()


def claim() -> Run:
    """Take a free name for a lab of this process."""
    pid = os.getpid()
    for number in count(1):
        run = Run(f"fpy-{pid}-{number}")
        try:
            run.directory.mkdir(parents=True, mode=0o755)
        except FileExistsError:
            continue
        (run.directory / "owner").write_text(f"{pid} {start_time(pid)}\n")
        return run
    raise AssertionError("unreachable")


def leftovers() -> list[Run]:
    """Runs whose process is gone."""
    found = {match[1] for place in (ROOT, NETNS) for path in _listing(place) if (match := NAME.fullmatch(path.name))}
    return [run for name in sorted(found) if not (run := Run(name)).alive()]


def _listing(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
