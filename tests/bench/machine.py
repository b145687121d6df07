"""What was measured, and on what: kernel, CPU, memory, versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tests.bench.figures import Daemon
from tests.lab.processes import NETNS
from tests.lab.programs import program

REPOSITORY = Path(__file__).parents[2]


def facts(daemons: Sequence[Daemon]) -> dict[str, object]:
    """Collect them; what cannot be had is `unknown`."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "kernel": platform.release(),
        "cpu": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load": [round(average, 2) for average in os.getloadavg()],
        "network_namespaces": namespaces(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("grpcio", "protobuf", "pyroute2")},
        # Without it the userspace data plane is another one.
        "accelerator": find_spec("flanneld_py.encap.packet.accelerator") is not None,
        "commit": _first_line("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"),
        "etcd": _first_line(program("etcd"), "--version"),
        "iproute2": _first_line("ip", "-V"),
        "iperf3": _first_line("iperf3", "--version"),
        "daemons": {daemon.name: _first_line(str(daemon.path), "--version") for daemon in daemons},
    }


def namespaces() -> int:
    """Count the network namespaces with a name, as other labs have them."""
    return len(list(NETNS.iterdir())) if NETNS.is_dir() else 0


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown"
    # flannel and ours print the version to stderr.
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0] if done.returncode == 0 and lines else "unknown"
