"""The subnet file, kept as it should be while the agent runs."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from flanneld_py.agent import subnetfile
from flanneld_py.agent.signature import Signature, signature_of
from flanneld_py.agent.subnetfile import SubnetFile
from flanneld_py.agent.subnetfile_keeper import SubnetFileKeeper
from tests.fakes.clock import ManualClock

NETWORK, PREFIX = ip_network("10.42.0.0/16"), "/coreos.com/network"
CONTENT = SubnetFile(((NETWORK, ip_network("10.42.5.0/24")),), 1450, ipmasq=False)
OTHER = SubnetFile(((NETWORK, ip_network("10.42.6.0/24")),), 1450, ipmasq=False)


@asynccontextmanager
async def kept(file: SubnetFileKeeper) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(file.run())
        yield
        running.cancel()


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], None]:
    """Let no file be written; what is given ends that."""

    def write(path: Path, content: SubnetFile) -> None:
        raise OSError(number, os.strerror(number))

    right = subnetfile.write
    monkeypatch.setattr(subnetfile, "write", write)
    return lambda: monkeypatch.setattr(subnetfile, "write", right)


@pytest.mark.parametrize("meddle", [Path.unlink, lambda path: path.write_text("FLANNEL_MTU=9\n")])
async def test_what_somebody_removes_or_changes_is_written_again(
    tmp_path: Path, meddle: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    clock, path = ManualClock(), tmp_path / "run" / "subnet.env"
    file = SubnetFileKeeper(path, PREFIX, clock, 30.0)
    async with kept(file):
        file.want(CONTENT)
        meddle(path)
        await clock.run_for(31)
        assert path.read_text() == CONTENT.text()
        assert signature_of(path) == Signature(PREFIX)
        path.parent.joinpath("subnet.env").unlink()
        os.mkfifo(path)
        await clock.run_for(31)
        assert path.read_text() == CONTENT.text(), "nobody waits for a writer"
        path.unlink()
        path.parent.joinpath(".subnet.env.flanneld-py").unlink()
        path.parent.rmdir()
        await clock.run_for(31)
        assert path.read_text() == CONTENT.text()
    assert caplog.text.count("somebody removed or changed the subnet file") == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
async def test_a_running_agent_goes_on_and_writes_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    clock, path = ManualClock(), tmp_path / "subnet.env"
    file = SubnetFileKeeper(path, PREFIX, clock, 30.0)
    async with kept(file):
        file.want(CONTENT)
        again = refuse(monkeypatch, number)
        file.want(OTHER)
        await clock.run_for(60)
        assert path.read_text() == CONTENT.text()
        assert caplog.text.count("the subnet file cannot be written, trying again") == 1
        again()
        await clock.run_for(31)
        assert path.read_text() == OTHER.text()


async def test_a_start_waits_for_room_and_ends_for_what_only_an_operator_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    again, file = refuse(monkeypatch, errno.ENOSPC), SubnetFileKeeper(tmp_path / "subnet.env", PREFIX, clock, 30.0)
    async with kept(file):
        file.want(CONTENT)
        await clock.run_for(31)
        assert not file.written.is_set()
        again()
        await clock.run_for(31)
        assert file.written.is_set()
    refuse(monkeypatch, errno.EROFS)
    with pytest.raises(OSError, match="Read-only"):
        SubnetFileKeeper(tmp_path / "other.env", PREFIX, clock, 30.0).want(CONTENT)
    file = SubnetFileKeeper(tmp_path / "subnet.env", PREFIX, clock, 30.0)
    file.want(CONTENT)
    assert file.written.is_set(), "it says so already"
