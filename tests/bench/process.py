"""Memory and CPU of one process, from /proc (proc(5)), and which process listens on a unix socket, from ss(8)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.lab.namespace import LabError, Namespace

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU in all threads of a process, outside and inside the kernel; 10 ms exact."""

    user: float
    system: float


def cpu(pid: int) -> Cpu:
    """CPU time that the process has used so far."""
    return parse_cpu(Path(f"/proc/{pid}/stat").read_text())


def parse_cpu(stat: str) -> Cpu:
    """Read /proc/<pid>/stat."""
    # The command may contain spaces and parentheses: count fields from the last ")" on.
    fields = stat.rpartition(")")[2].split()
    return Cpu(int(fields[11]) * _TICK, int(fields[12]) * _TICK)


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used so far, in the kernel and outside."""
    used = cpu(pid)
    return used.user + used.system


def megabytes(pid: int, field: str) -> float:
    """Return VmRSS (resident now) or VmHWM (its peak), in 10^6 bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"/proc/{pid}/status has no {field}: the process has ended")
    return int(match[1]) * 1024 / 1e6


def listener(namespace: Namespace, path: Path) -> int:
    """The process that listens on a unix socket; it notices nothing. Raises LabError if there is none."""
    pid = parse_listener(namespace.run(["ss", "--no-header", "--unix", "--listening", "--processes"]).stdout, path)
    if pid is None:
        raise LabError(f"nobody in namespace {namespace.name} listens on {path}")
    return pid


def children(pid: int) -> list[int]:
    """The processes that a process has made: the workers of a data plane."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def parse_listener(text: str, path: Path) -> int | None:
    """Read what `ss --listening --processes` says."""
    for line in text.splitlines():
        if str(path) in line.split() and (match := re.search(r"\bpid=(\d+)", line)):
            return int(match[1])
    return None
