from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.reconcile.blackhole import Blackhole, Network

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
    keeper = Blackhole(lambda: tuple(subnets), (OURS, FORMER), routes.put, routes.remove, SystemClock(), 300.0)
    subnets.remove(FORMER)  # What the agent writes into the file once it has its lease.
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keeper.run(wanted=wanted))
        if wanted:
            await routes.changed.wait()
            running.cancel()
    assert routes.there == ({OURS} if wanted else set())


async def test_a_subnet_file_that_is_gone_takes_no_route_along() -> None:
    said: list[tuple[Network, ...]] = [(OURS,), ()]
    routes, looked = Routes(OURS), asyncio.Event()

    def ours() -> tuple[Network, ...]:
        if len(said) == 1:
            looked.set()
            return said[0]
        return said.pop(0)

    keeper = Blackhole(ours, (), routes.put, routes.remove, SystemClock(), 0.001)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keeper.run(wanted=True))
        await looked.wait()
        routes.changed.clear()
        await routes.changed.wait()
        running.cancel()
    assert routes.there == {OURS}


async def test_the_route_of_another_networks_file_stays() -> None:
    """Given the same file by mistake: what that agent has is not ours to remove."""
    routes = Routes(FORMER)
    keeper = Blackhole(lambda: (OURS,), (), routes.put, routes.remove, SystemClock(), 300.0)
    await keeper.run(wanted=False)
    assert routes.there == {FORMER}
