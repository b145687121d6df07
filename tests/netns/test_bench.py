"""The benchmark of packet paths measures what it says: on one host a process carries the packets, on one the kernel.

h1c1 ── h1 (userspace) ──┬── core: etcd      (the picture: tests/lab/__init__.py)
h2c1 ── h2 (kernel)    ──┘
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import pytest

from tests.bench import packets, userspace
from tests.bench.figures import OURS, Daemon, Setting
from tests.bench.paths import Carrier, PacketPath, opened
from tests.lab.lab import DEFAULT_FLANNELD

pytestmark = pytest.mark.root

MIXED = PacketPath("mixed", Carrier.USERSPACE, Carrier.KERNEL)


def test_a_round_gives_every_figure() -> None:
    said: list[str] = []
    daemons = (Daemon(OURS, DEFAULT_FLANNELD),)
    found = list(userspace.run(Setting(1, 0, daemons, said.append, only=("mixed",))))
    assert len(said) == 1
    assert {figure.subject for figure in found} == {"mixed"}
    assert [figure.name for figure in found if not all(map(isfinite, figure.samples))] == []
    for figure in found:
        assert figure.median > 0, figure.name


def test_packets_are_counted_by_the_kernel_at_both_ends() -> None:
    with opened(MIXED, DEFAULT_FLANNELD) as path:
        (pid,) = path.processes
        assert b"flanneld_py.encap.datapath" in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert path.megabytes() > 1
        capacity = packets.capacity(path.source, path.target)
    assert capacity.best > 0
    assert capacity.overload.offered > 0
    assert capacity.overload.delivered > 0
