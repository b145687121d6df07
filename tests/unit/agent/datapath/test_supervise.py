"""The agent's hold on a data plane that is a fake: it takes over, feeds levels, replaces, and waits for no one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.contested import AT_ONCE
from flanneld_py.agent.datapath.client import (
    PATIENCE,
    DatapathClient,
    DatapathError,
    connect,
    start_process,
    stop_process,
)
from flanneld_py.agent.datapath.supervise import Supervisor
from flanneld_py.encap.datapath.control import messages, protocol
from tests.fakes.datapath import FakeProcess
from tests.lab.processes import start_time
from tests.patience import patient

CONFIGURE = messages.Configure(
    messages.Mode.RAW, "flannel0", bytes([10, 0, 0, 1]), 8285, 1472, (IPv4Network("10.5.1.0/24"),)
)


def peer(number: int) -> messages.Peer:
    return messages.Peer(f"10.5.{number}.0-24", bytes([10, 5, number, 0]), 24, bytes([10, 0, 0, number]))


class World:
    """A control socket, the processes that were started at it, and the agent's supervisor."""

    def __init__(self, directory: Path, tasks: asyncio.TaskGroup, probe_every: float, patience: float) -> None:
        self.control = directory / "control"
        self.processes: list[FakeProcess] = []
        self.running: list[asyncio.Task[None]] = []
        self.prepared = 0
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.failures = 0
        self._tasks = tasks
        self.supervisor = Supervisor(
            self.control,
            self.start,
            self._prepare,
            CONFIGURE,
            SystemClock(),
            Random(1),
            patience=patience,
            probe_every=probe_every,
        )

    async def start(self, control: Path, refusal: messages.Refused | None = None) -> None:
        if self.failures:
            self.failures -= 1
            raise DatapathError("no TUN here")
        self.processes.append(FakeProcess(control, refusal))
        self.running.append(self._tasks.create_task(self.processes[-1].run()))

    async def _prepare(self) -> None:
        self.prepared += 1
        await self.stuck.wait()

    def supervise(self) -> asyncio.Task[None]:
        return self._tasks.create_task(self.supervisor.run())

    async def crash(self) -> None:
        self.running[-1].cancel()
        await asyncio.wait([self.running[-1]])


@asynccontextmanager
async def world_at(directory: Path, probe_every: float = 0.02, patience: float = PATIENCE) -> AsyncIterator[World]:
    async with asyncio.timeout(patient(20)), asyncio.TaskGroup() as tasks:
        world = World(directory, tasks, probe_every, patience)
        agent = world.supervise()
        try:
            yield world
        finally:
            agent.cancel()
            for task in world.running:
                task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_none_there_is_started_and_gets_configuration_and_table(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.supervisor.update((peer(n).key, peer(n)) for n in range(2, 5))
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1
        assert world.prepared == 1
        assert world.processes[0].configured == CONFIGURE
        assert world.processes[0].peers == {peer(n).key: peer(n) for n in range(2, 5)}
        await until(lambda: world.supervisor.status == messages.Status(1, True, 3))


async def test_a_living_one_is_taken_over_and_what_is_stale_goes(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.start(world.control)
        world.processes[0].peers = {peer(n).key: peer(n) for n in (2, 9)}
        world.supervisor.update([(peer(2).key, peer(2)), (peer(3).key, peer(3))])
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1
        assert set(world.processes[0].peers) == {peer(2).key, peer(3).key}


async def test_one_that_dies_as_soon_as_it_is_fed_is_started_less_and_less_often(tmp_path: Path) -> None:
    began = time.monotonic()
    async with world_at(tmp_path, probe_every=60) as world:
        for _ in range(5):
            await world.supervisor.fed.wait()
            await world.crash()
            await until(lambda: not world.supervisor.fed.is_set())
    assert time.monotonic() - began > 0.75 * (0.05 + 0.1 + 0.2 + 0.4)


async def test_changes_follow_the_table(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.supervisor.update([(peer(2).key, peer(2)), (peer(3).key, peer(3))])
        await world.supervisor.fed.wait()
        moved = replace(peer(2), address=bytes([10, 0, 0, 200]))
        world.supervisor.update([(moved.key, moved), (peer(3).key, None), (peer(4).key, peer(4))])
        await until(lambda: world.processes[0].peers == {moved.key: moved, peer(4).key: peer(4)})


async def test_a_lease_under_another_key_leaves_no_moment_without_the_peer(tmp_path: Path) -> None:
    """As when IPv6 is turned on."""
    async with world_at(tmp_path) as world:
        world.supervisor.update([(peer(2).key, peer(2))])
        await world.supervisor.fed.wait()
        renamed = replace(peer(2), key="10.5.2.0-24&fd00:5:0:2::-64")
        world.supervisor.update([(peer(2).key, None), (renamed.key, renamed)])
        await until(lambda: world.processes[0].peers == {renamed.key: renamed})
        assert world.processes[0].fewest == 1


async def test_who_leaves_while_peers_are_held_goes_when_they_are_released(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.supervisor.update((peer(n).key, peer(n)) for n in (2, 3, 4))
        await world.supervisor.fed.wait()
        process = world.processes[0]
        assert world.supervisor.hold() == 3
        world.supervisor.update(
            [(peer(2).key, None), (peer(3).key, None), (peer(3).key, peer(3)), (peer(5).key, peer(5))]
        )
        await until(lambda: set(process.peers) == {peer(n).key for n in (2, 3, 4, 5)})
        world.supervisor.update([(peer(3).key, None)])
        await until(lambda: set(process.peers) == {peer(n).key for n in (2, 4, 5)})
        world.supervisor.release()
        await until(lambda: set(process.peers) == {peer(n).key for n in (4, 5)})


async def test_what_a_running_one_has_is_held_as_well(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.start(world.control)
        world.processes[0].peers = {peer(9).key: peer(9)}
        world.supervisor.hold()
        world.supervisor.update([(peer(2).key, peer(2))])
        await world.supervisor.fed.wait()
        assert set(world.processes[0].peers) == {peer(2).key, peer(9).key}
        world.supervisor.release()
        await until(lambda: set(world.processes[0].peers) == {peer(2).key})


async def test_one_that_dies_is_replaced_and_gets_everything(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.supervisor.update([(peer(2).key, peer(2))])
        await world.supervisor.fed.wait()
        await world.crash()
        await until(lambda: len(world.processes) == 2 and world.supervisor.fed.is_set())
        assert world.processes[1].peers == {peer(2).key: peer(2)}
        assert world.prepared == 2


@pytest.mark.parametrize("many", [5, 30_000], ids=["a few", "more than its socket takes"])
async def test_one_that_hangs_is_ended_however_much_it_is_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    async with world_at(tmp_path, probe_every=60, patience=patient(0.3)) as world:
        await until(lambda: world.supervisor.status is not None)
        ended: list[int] = []

        def end(line: DatapathClient) -> None:
            ended.append(line.pid)
            world.running[-1].cancel()

        monkeypatch.setattr(DatapathClient, "kill", end)
        world.processes[0].deaf = True
        told = [replace(peer(2), key=str(number)) for number in range(many)]
        world.supervisor.update((one.key, one) for one in told)
        assert await world.supervisor.report() is None, "who asks is answered"
        await until(lambda: len(world.processes) == 2 and world.supervisor.fed.is_set())
        assert len(ended) == 1
        assert len(world.processes[1].peers) == many


async def test_who_asks_is_answered_though_nobody_serves(tmp_path: Path) -> None:
    async with world_at(tmp_path, probe_every=60, patience=0.1) as world:
        await until(lambda: world.supervisor.status is not None)
        world.stuck = asyncio.Event()
        world.supervisor.configure(replace(CONFIGURE, mtu=1400))
        await until(lambda: world.prepared == 2)
        assert await world.supervisor.report() is None
        world.stuck.set()
        await until(lambda: world.processes[0].configured == replace(CONFIGURE, mtu=1400))
        assert await world.supervisor.report() is not None


@pytest.mark.root  # Others get no larger buffer than net.core.wmem_max.
async def test_a_table_of_ten_thousand_peers_is_taken_at_once(tmp_path: Path) -> None:
    """So that feeding it takes few turns of the agent's loop: the sender's buffer counts, not the receiver's."""
    table = [replace(peer(2), key=f"10.{n // 256}.{n % 256}.0-24&fd00:10:{n:x}::-64") for n in range(10_000)]
    with closing(FakeProcess(tmp_path / "control")), closing(await connect(tmp_path / "control")) as line:
        async with asyncio.timeout(5):
            for message in protocol.encode_peers(table):
                await line.send(message)


async def test_one_that_lost_its_device_is_configured_again_at_once_but_not_all_the_time(tmp_path: Path) -> None:
    async with world_at(tmp_path, probe_every=60) as world:
        world.supervisor.update([(peer(2).key, peer(2))])
        await world.supervisor.fed.wait()
        process = world.processes[0]
        for times in range(AT_ONCE):
            process.lose_device()
            await until(partial(process.has_met, times + 2))
            await world.supervisor.fed.wait()
            assert process.peers == {peer(2).key: peer(2)}
            assert world.supervisor.trouble == "", "nothing to speak of"
        process.lose_device()
        await until(lambda: world.supervisor.trouble == "it ended")
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1


async def test_one_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.failures = 2
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1


async def test_one_that_cannot_change_in_place_is_replaced(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.start(world.control, messages.Refused("the port is fixed", restart=True))
        await world.supervisor.fed.wait()
        assert [process.stopped for process in world.processes] == [True, False]


async def test_one_that_refuses_is_asked_again_and_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with world_at(tmp_path) as world:
        await world.start(world.control, messages.Refused("the port is taken"))
        await until(lambda: world.processes[0].connections >= 3)
        assert world.supervisor.trouble == "the port is taken"
        assert len(caplog.records) == 2, "that it was found, and that it refuses"
        assert not world.supervisor.fed.is_set()
        world.processes[0].refusal = None
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1


async def test_another_configuration_is_applied_to_the_same_process(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.supervisor.fed.wait()
        smaller = replace(CONFIGURE, mtu=1400)
        world.supervisor.configure(smaller)
        await until(lambda: world.processes[0].configured == smaller)
        assert len(world.processes) == 1


async def test_a_report_has_every_peer_and_may_be_asked_for_by_many(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        assert await world.supervisor.report() is None, "not served yet"
        world.supervisor.update((peer(n).key, peer(n)) for n in range(2, 7))
        await world.supervisor.fed.wait()
        impatient = asyncio.ensure_future(world.supervisor.report())
        await asyncio.sleep(0)
        impatient.cancel()
        for report in await asyncio.gather(*(world.supervisor.report() for _ in range(5))):
            assert report is not None
            assert report.status == messages.Status(1, True, 5)
            assert [row.key for row in report.traffic] == [peer(n).key for n in range(2, 7)]


async def test_an_offload_that_is_lost_while_it_runs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world_at(tmp_path) as world:
        await world.start(world.control)
        world.processes[0].segmentation = True
        await until(lambda: "slower" in caplog.text)
        assert "udp-segment" not in caplog.records[-1].__dict__["facts"]["lacking"]
        world.processes[0].segmentation = False
        await until(lambda: caplog.text.count("slower") == 2)
        assert "udp-segment" in caplog.records[-1].__dict__["facts"]["lacking"]


async def test_who_asks_a_process_that_dies_is_answered(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.supervisor.fed.wait()
        asked = asyncio.ensure_future(world.supervisor.report())
        await world.crash()
        await asked
        await until(lambda: len(world.processes) == 2 and world.supervisor.fed.is_set())
        assert await world.supervisor.report() is not None


async def test_one_that_hangs_ends_when_it_is_stopped_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        process = FakeProcess(tmp_path / "control")
        process.deaf = True
        running = tasks.create_task(process.run())
        monkeypatch.setattr("flanneld_py.agent.datapath.client.PATIENCE", 0.1)
        monkeypatch.setattr(DatapathClient, "kill", lambda _: running.cancel())
        assert await stop_process(tmp_path / "control")


async def test_one_that_does_not_come_to_listen_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("flanneld_py.agent.datapath.client.START_PATIENCE", 1, raising=False)
    async with asyncio.timeout(10):
        with pytest.raises(DatapathError, match="does not start within 1 s"):
            await start_process(tmp_path / "control")
    assert start_time(int((tmp_path / "pid").read_text())) is None, "it is left behind"


@pytest.mark.parametrize("there", [True, False])
async def test_stop_tells_whether_there_was_one(tmp_path: Path, there: bool) -> None:
    async with asyncio.TaskGroup() as tasks:
        process = FakeProcess(tmp_path / "control")
        if there:
            tasks.create_task(process.run())
        else:
            process.close()
        assert await stop_process(tmp_path / "control") is there
        assert process.stopped is there
