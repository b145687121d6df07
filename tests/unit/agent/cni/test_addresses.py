"""Where host-local keeps addresses: below /run from the first boot on, and no address is given out twice until then."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flanneld_py.agent.cni.addresses import directory


def chosen(folder: Path, *, containers: bool = False) -> str:
    return Path(directory("net", lambda: containers, folder / "run", folder / "lib")).name


@pytest.fixture
def former(tmp_path: Path) -> Path:
    folder = tmp_path / "lib" / "net"
    folder.mkdir(parents=True)
    return folder


def write(file: Path, *, this_boot: bool) -> None:
    file.write_text("c1")
    if not this_boot:
        before = time.time() - float(Path("/proc/uptime").read_text().split()[0]) - 60
        os.utime(file, (before, before))


def test_a_new_host_keeps_them_below_run(tmp_path: Path) -> None:
    assert chosen(tmp_path) == "run"
    assert (tmp_path / "run" / "net").is_dir()


def test_what_was_given_out_in_an_earlier_boot_is_nobodys(tmp_path: Path, former: Path) -> None:
    write(former / "10.42.5.2", this_boot=False)
    assert chosen(tmp_path) == "run"
    write(former / "10.42.5.3", this_boot=True)  # By a plugin of flannel's.
    assert chosen(tmp_path, containers=True) == "run", "until the next boot it stays so"


def test_after_an_upgrade_the_former_stays_until_the_next_boot(tmp_path: Path, former: Path) -> None:
    write(former / "10.42.5.2", this_boot=False)
    write(former / "10.42.5.3", this_boot=True)
    assert chosen(tmp_path) == "lib"
    (former / "10.42.5.3").rename(former / "last_reserved_ip.0")
    assert chosen(tmp_path) == "lib", "also when that container is gone"
    assert not (tmp_path / "run").exists()


def test_a_clock_that_was_wrong_at_boot_gives_no_address_out_twice(tmp_path: Path, former: Path) -> None:
    write(former / "10.42.5.3", this_boot=False)
    assert chosen(tmp_path, containers=True) == "lib"


def test_networks_do_not_ask_for_each_other(tmp_path: Path, former: Path) -> None:
    write(former / "10.42.5.3", this_boot=True)
    assert Path(directory("other", lambda: True, tmp_path / "run", tmp_path / "lib")).name == "run"
