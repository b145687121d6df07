from __future__ import annotations

from pathlib import Path

import pytest

from flanneld_py.agent import subnetfile
from flanneld_py.agent.broken import Broken
from flanneld_py.agent.cleanup import clean_up
from flanneld_py.agent.lock import held_devices

HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"
HELD = HEADER + "00000000f: 00000002 00000000 00000000 0002 01 4711 @flanneld-py/device flannel.1\n"
OTHERS = HEADER + "00000000f: 00000003 00000000 00000000 0001 03 4712\n0: 2 0 0 0002 01 1 /run/flanneld-py/x\n"


def test_who_runs_is_seen_by_the_locks() -> None:
    assert held_devices(HELD) == ["device flannel.1"]
    assert held_devices(OTHERS) == []
    assert held_devices("") == []


async def test_nothing_is_removed_while_an_agent_runs(tmp_path: Path) -> None:
    file, table = tmp_path / "subnet.env", tmp_path / "proc/net/unix"
    file.write_text("FLANNEL_MTU=1450\n")
    table.parent.mkdir(parents=True)
    table.write_text(HELD)
    with pytest.raises(Broken, match=r"an agent runs on this host and has device flannel\.1: stop it"):
        await clean_up(file, print, tmp_path)
    assert file.exists()


def test_a_subnet_file_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text, is_one in (("FLANNEL_MTU=1450\n", True), ("", False), ("FLANNEL_MTU=1450\nPATH=/bin\n", False)):
        path.write_text(text)
        assert subnetfile.is_one(path) is is_one
