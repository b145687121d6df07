"""Memory and CPU of one process, from /proc (proc(5))."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used in all its threads so far, in the kernel and outside; 10 ms exact."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


def megabytes(pid: int, field: str) -> float:
    """Return VmRSS (resident now) or VmHWM (its peak), in 10^6 bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"/proc/{pid}/status has no {field}: the process has ended")
    return int(match[1]) * 1024 / 1e6
