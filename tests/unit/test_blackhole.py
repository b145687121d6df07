from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from flanneld_py.agent.blackhole import Blackhole, Network
from flanneld_py.agent.clock import SystemClock

FORMER, OURS = ip_network("fd42:0:0:1::/64"), ip_network("10.42.5.0/24")


class Routes:
    """The kernel's blackhole routes."""

    def __init__(self, *there: Network) -> None:
        self.there = set(there)
        self.changed = asyncio.Event()

    async def put(self, subnet: Network) -> bool:
        missing = subnet not in self.there
        self.there.add(subnet)
        self.changed.set()
        return missing

    async def remove(self, subnet: Network) -> bool:
        there = subnet in self.there
        self.there.discard(subnet)
        return there


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_routes_of_the_former_run_go(wanted: bool) -> None:
    subnets: list[Network] = [OURS, FORMER]
    routes = Routes(OURS, FORMER)
    keeper = Blackhole(lambda: tuple(subnets), routes.put, routes.remove, SystemClock(), 300.0)
    subnets.remove(FORMER)  # What the agent writes into the file once it has its lease.
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keeper.run(wanted=wanted))
        if wanted:
            await routes.changed.wait()
            running.cancel()
    assert routes.there == ({OURS} if wanted else set())
