"""Who sends without a tunnel: known once every family that may have such hosts was told of, and never kept."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network

from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.encap.delta import Tracker
from flanneld_py.encap.family import IPV4, IPV6
from flanneld_py.encap.state import Route
from tests.unit.agent.firewall.test_reconciler import wanted


def route(subnet: str, gateway: str, device: str = "eth0") -> Route:
    return Route(device, IPv4Network(subnet).network_address.packed, 24, IPv4Address(gateway).packed)


async def test_they_are_those_of_now_and_known_once_told() -> None:
    neighbours = Neighbours(wanted())
    known = asyncio.create_task(neighbours.known())
    await asyncio.sleep(0)
    assert not known.done()
    hosts: set[IPv4Address] = set()
    changes: list[bool] = []
    neighbours.changed = lambda: changes.append(True)
    neighbours.tell(IPV4, lambda: frozenset(hosts))
    await known
    hosts.add(IPv4Address("192.0.2.7"))
    assert neighbours.hosts(IPV4) == hosts
    assert neighbours.hosts(IPV6) == frozenset()
    assert changes == [True]


async def test_nobody_is_waited_for_where_all_is_tunneled() -> None:
    await Neighbours(()).known()


def test_gateways_on_the_underlay_are_neighbours_wanted_or_there() -> None:
    tracker = Tracker(lambda _: True, "flannel.1", "eth0")
    tracker.want("one", [route("10.5.1.0/24", "192.0.2.1"), route("10.5.2.0/24", "10.5.2.0", "flannel.1")])
    left = route("10.5.3.0/24", "192.0.2.3")
    tracker.observe([left])
    assert tracker.neighbours() == {IPv4Address("192.0.2.1"), IPv4Address("192.0.2.3")}
    tracker.gone(left.key)
    assert tracker.neighbours() == {IPv4Address("192.0.2.1")}
