from __future__ import annotations

from pathlib import Path

import pytest

from flanneld_py.agent import subnetfile
from flanneld_py.agent.cleanup import _remove_file, clean_up
from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.signature import Signature, sign

HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"
HELD = HEADER + "00000000f: 00000002 00000000 00000000 0002 01 4711 @flanneld-py/device flannel.1\n"


async def test_nothing_is_removed_while_an_agent_runs(tmp_path: Path) -> None:
    file, table = tmp_path / "subnet.env", tmp_path / "proc/net/unix"
    file.write_text("FLANNEL_MTU=1450\n")
    table.parent.mkdir(parents=True)
    table.write_text(HELD)
    with pytest.raises(FatalError, match=r"an agent runs on this host and has device flannel\.1: stop it"):
        await clean_up(file, print, tmp_path)
    assert file.exists()


async def test_an_agent_that_waits_for_etcd_runs_too(tmp_path: Path) -> None:
    file, table = tmp_path / "subnet.env", tmp_path / "proc/net/unix"
    table.parent.mkdir(parents=True)
    table.write_text(HELD.replace("device flannel.1", f"subnet file {file}"))
    with pytest.raises(FatalError, match=r"an agent runs on this host and has .*subnet file"):
        await clean_up(file, print, tmp_path)


def test_the_subnet_file_goes_if_we_wrote_it(tmp_path: Path) -> None:
    """flannel's daemon writes the same words, once, by replacing the file; without it every container fails."""
    file, words = tmp_path / "subnet.env", "FLANNEL_SUBNET=10.42.5.1/24\n"
    file.write_text(words)
    assert _remove_file(file, print) == []
    assert file.exists(), "never ours"
    sign(file, Signature("/coreos.com/network"))
    flannels = tmp_path / ".subnet.env"
    flannels.write_text(words)
    flannels.replace(file)
    assert _remove_file(file, print) == []
    assert [each.name for each in tmp_path.iterdir()] == ["subnet.env"]
    sign(file, Signature("/coreos.com/network"))
    assert _remove_file(file, print) == []
    assert list(tmp_path.iterdir()) == []


def test_a_subnet_file_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text, is_one in (("FLANNEL_MTU=1450\n", True), ("", False), ("FLANNEL_MTU=1450\nPATH=/bin\n", False)):
        path.write_text(text)
        assert subnetfile.is_one(path) is is_one
