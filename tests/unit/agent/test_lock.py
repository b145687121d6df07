"""Who has what on a host: real abstract sockets, whose names are this test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.lock import Held, Locks, held_names

HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"
HELD = HEADER + "00000000f: 00000002 00000000 00000000 0002 01 4711 @flanneld-py/device flannel.1\n"
OTHERS = HEADER + "00000000f: 00000003 00000000 00000000 0001 03 4712\n0: 2 0 0 0002 01 1 /run/flanneld-py/x\n"


@pytest.fixture
def two() -> Iterator[tuple[Locks, Locks]]:
    one, other = Locks(), Locks()
    yield one, other
    one.close()
    other.close()


def test_who_runs_is_seen_by_the_locks() -> None:
    assert held_names(HELD) == {"device flannel.1"}
    assert held_names(OTHERS) == held_names("") == set()


def test_a_subnet_file_has_one_agent_by_whatever_path(two: tuple[Locks, Locks], tmp_path: Path) -> None:
    one, other = two
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("subnet.env", "x" * 120):
        one.take_file(tmp_path / name)
        one.take_file(tmp_path / name)
        with pytest.raises(FatalError, match=r"another flanneld-py on this host has subnet file .*--subnet-file"):
            other.take_file(tmp_path / "link" / name)
    other.take_file(tmp_path / "another.env")


def test_what_others_have_is_known_and_keeps_nobody_from_anything_but_the_same(two: tuple[Locks, Locks]) -> None:
    one, other = two
    device, network = f"device test-{os.getpid()}", ip_network("10.203.0.0/16")
    one.take(device)
    one.serve([network])
    other.serve([ip_network("10.204.0.0/16")])
    assert device.removeprefix("device ") in other.others().devices
    assert network in other.others().networks
    assert device not in one.others().names
    with pytest.raises(FatalError, match=r"another Backend\.VNI"):
        other.take(device)
    one.close()
    other.take(device)
    assert Held(["nonsense of process 1"]).networks == []
