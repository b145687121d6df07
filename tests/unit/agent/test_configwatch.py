from __future__ import annotations

import asyncio
import re
from random import Random

import pytest

from flanneld_py.agent.configwatch import EVERY, ConfigWatch
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Delete, Put
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore

KEY = "/net/config"
USED = b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}'
SAME = b'{"network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"type": "VXLAN"}}'
OTHER = USED.replace(b'"vxlan"', b'"vxlan", "VNI": 7')


async def test_another_config_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flanneld-py")
    clock = ManualClock()
    store = MemoryStore(clock.now)
    registry = Registry(store, "/net")

    async def write(value: bytes | None) -> list[str]:
        caplog.clear()
        await store.commit([], [Delete(KEY) if value is None else Put(KEY, value)])
        await clock.run_for(4 * EVERY)
        return [f"{record.levelname} {re.split('[:;]', record.message)[0]}" for record in caplog.records]

    await store.commit([], [Put(KEY, USED)])
    watch = ConfigWatch(registry, await registry.config(), clock, Random(1))
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(watch.run())
        assert await write(SAME) == []
        assert await write(OTHER) == ["WARNING the network config has changed"]
        assert await write(b"{") == ["WARNING the network config cannot be used any more"]
        store.fail(4)
        await clock.run_for(10 * EVERY)
        assert len(caplog.records) == 1, "etcd was away, and says the same as before"
        assert await write(None) == ["WARNING the network config cannot be used any more"]
        assert await write(USED) == ["INFO the network config is again the one that this agent runs with"]
        life.cancel()
