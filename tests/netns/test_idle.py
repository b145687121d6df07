"""An agent with nothing to do does nothing: no entry is written anew, whatever the kernel tells of its own writes.

Up to Linux 6.12 every forwarding entry is told of twice; an agent that takes the second message for somebody's change
repairs for ever what nobody broke.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.conftest import MakeLab
from tests.netns.test_agent import complete, put_lease, until
from tests.patience import patient

pytestmark = pytest.mark.root

PEERS = 10
WATCHED = 30
"""Seconds."""


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used (proc(5): utime, stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_agent_with_peers_writes_nothing(
    make_lab: MakeLab, record_property: Callable[[str, object], None]
) -> None:
    lab = make_lab(hosts=2)
    host = lab.hosts[0]
    for number in range(PEERS - 1):
        put_lease(lab, f"10.42.{number + 1}.0/24", f"172.30.1.{number + 1}", VtepMAC=f"02:99:00:00:01:{number:02x}")
    until(lambda: complete(host, PEERS), f"{PEERS} peers")
    used, began = cpu_seconds(host.agent.pid), time.monotonic()
    monitor = host.namespace.popen(["timeout", str(WATCHED), "bridge", "monitor", "fdb"], stdout=subprocess.PIPE)
    said, _ = monitor.communicate(timeout=patient(WATCHED + 10))
    seconds = time.monotonic() - began
    share = (cpu_seconds(host.agent.pid) - used) / seconds
    record_property("notifications", len(said.splitlines()))
    record_property("CPU share", round(share, 4))
    print(f"{PEERS} peers, {seconds:.1f} s: {share:.2%} of a core")  # pytest -s; not judged
    assert said == b""
    assert "somebody else changed" not in host.agent.log.read_text()
