from __future__ import annotations

import os
from pathlib import Path

from tests.bench.process import Cpu, parse_cpu, parse_listener

SOCKETS = """\
u_str LISTEN 0 128 /run/other.sock 41 * 0 users:(("other",pid=8,fd=3))
u_seq LISTEN 0 4 /run/h1/datapath-flannel.1.sock 42 * 0 users:(("python3",pid=4711,fd=5))
u_seq LISTEN 0 4 /run/h1/datapath-flannel.2.sock 43 * 0
"""


def test_cpu_is_read_behind_any_command() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    stat = "12 (a) 1 (b) S 1 12 12 0 -1 4194560 1 2 3 4 250 70 9 9 20 0 1 0 100"
    assert parse_cpu(stat) == Cpu(user=250 * tick, system=70 * tick)


def test_who_listens() -> None:
    assert parse_listener(SOCKETS, Path("/run/h1/datapath-flannel.1.sock")) == 4711


def test_a_socket_that_nobody_holds_and_one_that_is_not_there() -> None:
    for name in ("datapath-flannel.2.sock", "datapath-flannel"):
        assert parse_listener(SOCKETS, Path("/run/h1") / name) is None
