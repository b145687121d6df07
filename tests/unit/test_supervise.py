"""The agent's hold on a data plane that is a fake: it takes over, feeds levels, replaces, and waits for no one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.line import DatapathError, stop_process
from flanneld_py.agent.supervise import Supervisor
from flanneld_py.encap import orders
from tests.fake_datapath import FakeProcess

CONFIGURE = orders.Configure(
    orders.Mode.RAW, "flannel0", bytes([10, 0, 0, 1]), 8285, 1472, (IPv4Network("10.5.1.0/24"),)
)


def peer(number: int) -> orders.Peer:
    return orders.Peer(f"10.5.{number}.0-24", bytes([10, 5, number, 0]), 24, bytes([10, 0, 0, number]))


class World:
    """A control socket, the processes that were started at it, and the agent's supervisor."""

    def __init__(self, directory: Path, tasks: asyncio.TaskGroup, probe_every: float) -> None:
        self.control = directory / "control"
        self.processes: list[FakeProcess] = []
        self.running: list[asyncio.Task[None]] = []
        self.prepared = 0
        self.failures = 0
        self._tasks = tasks
        self.supervisor = Supervisor(
            self.control, self.start, self._prepare, CONFIGURE, SystemClock(), Random(1), probe_every=probe_every
        )

    async def start(self, control: Path, refusal: orders.Refused | None = None) -> None:
        if self.failures:
            self.failures -= 1
            raise DatapathError("no TUN here")
        self.processes.append(FakeProcess(control, refusal))
        self.running.append(self._tasks.create_task(self.processes[-1].run()))

    async def _prepare(self) -> None:
        self.prepared += 1

    def supervise(self) -> asyncio.Task[None]:
        return self._tasks.create_task(self.supervisor.run())

    async def crash(self) -> None:
        self.running[-1].cancel()
        await asyncio.wait([self.running[-1]])


@asynccontextmanager
async def world_at(directory: Path, probe_every: float = 0.02) -> AsyncIterator[World]:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        world = World(directory, tasks, probe_every)
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
        await until(lambda: world.supervisor.status == orders.Status(1, True, 3))


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


async def test_one_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        world.failures = 2
        await world.supervisor.fed.wait()
        assert len(world.processes) == 1


async def test_one_that_cannot_change_in_place_is_replaced(tmp_path: Path) -> None:
    async with world_at(tmp_path) as world:
        await world.start(world.control, orders.Refused("the port is fixed", restart=True))
        await world.supervisor.fed.wait()
        assert [process.stopped for process in world.processes] == [True, False]


async def test_one_that_refuses_is_asked_again_and_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with world_at(tmp_path) as world:
        await world.start(world.control, orders.Refused("the port is taken"))
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
            assert report.status == orders.Status(1, True, 5)
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
