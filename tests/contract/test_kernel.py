"""What every kernel.Kernel does: one suite over FakeKernel and over Netlink in a throw-away network namespace.

Each runs with nexthop objects and without. The host and the foreigner are in kernel_host.py.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from flanneld_py.encap.kernel import Gone, HostChanged, KernelError, LinkChanged, Lost, Rerouted, Seen
from flanneld_py.encap.netlink.netlink import Netlink
from flanneld_py.encap.state import (
    FORMER_PROTOCOL,
    Address,
    Entry,
    FdbEntry,
    Neighbour,
    Nexthop,
    Operation,
    Route,
    Verb,
    VxlanLink,
)
from tests.contract.kernel_host import (
    DEVICE,
    DEVICE6,
    LINK,
    LINK6,
    UNDERLAY,
    Host,
    Linux,
    Meddler,
    ip,
    mac,
    namespace_with_underlay,
    peer,
)
from tests.fakes.kernel import FakeKernel


@pytest.fixture
def namespace() -> Iterator[str]:
    with namespace_with_underlay() as name:
        yield name


@pytest.fixture(
    params=[
        "fake",
        "fake-classic",
        "fake-telling-twice",
        pytest.param("netlink", marks=pytest.mark.root),
        pytest.param("netlink-classic", marks=pytest.mark.root),
    ]
)
async def bare(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host that listens, without devices of ours."""
    objects = not request.param.endswith("-classic")
    kernel: FakeKernel | Netlink
    if request.param.startswith("fake"):
        twice = request.param.endswith("-telling-twice")
        kernel = FakeKernel(["p0", "p1"], nexthop_objects=objects, part=7, tells_twice=twice)
        host = Host(kernel, Meddler(kernel))
    else:
        request.getfixturevalue("namespace")
        kernel = Netlink(nexthop_objects=objects)
        host = Host(kernel, Linux())
    try:
        host.listen()
        yield host
    finally:
        kernel.close()


@pytest.fixture
async def host(bare: Host) -> Host:
    """A host with both devices up."""
    await bare.kernel.create_link(LINK)
    await bare.kernel.create_link(LINK6)
    await bare.settle()
    return bare


@pytest.fixture
def entries(host: Host) -> list[Entry]:
    """Two peers in each family and our own addresses."""
    objects = host.kernel.nexthop_objects
    own: list[Entry] = [Address(DEVICE, ip("10.5.0.0"), 32), Address(DEVICE6, ip("fd05::"), 128)]
    peers = [peer(n, v6=v6, objects=objects) for v6 in (False, True) for n in (1, 2)]
    return own + [entry for each in zip(*peers, strict=True) for entry in each]


# Devices


async def test_a_device_is_created_as_asked(bare: Host) -> None:
    for want in (LINK, LINK6):
        assert bare.kernel.link(want.name) is None
        await bare.kernel.create_link(want)
        assert bare.kernel.link(want.name) == want
    events = await bare.heard(lambda events: LinkChanged(DEVICE6, True) in events)
    assert LinkChanged(DEVICE, True) in events


async def test_a_device_without_its_parent_is_refused(bare: Host) -> None:
    with pytest.raises(KernelError, match="nosuch0"):
        await bare.kernel.create_link(replace(LINK, parent="nosuch0"))
    assert bare.kernel.link(DEVICE) is None


async def test_a_second_device_with_the_same_vni_is_refused_naming_the_first(host: Host) -> None:
    with pytest.raises(KernelError, match=r"flannel\.1 has VNI 1 on port 8472"):
        await host.kernel.create_link(replace(LINK, name="other"))
    assert host.kernel.link("other") is None


async def test_creating_what_exists_is_refused(host: Host) -> None:
    with pytest.raises(KernelError, match="exists"):
        await host.kernel.create_link(LINK)


async def test_a_device_is_changed_in_place_and_keeps_its_entries(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    for want in (
        replace(LINK, mtu=1400),
        replace(LINK, mtu=1400, learning=True),
        replace(LINK, mtu=1400, learning=True, local=ip("10.0.0.9")),
        replace(LINK, mtu=1400, learning=False, local=ip("10.0.0.9"), parent="p1"),
    ):
        have = host.kernel.link(DEVICE)
        assert isinstance(have, VxlanLink)
        await host.kernel.change_link(have, want)
        assert host.kernel.link(DEVICE) == want
    assert host.foreigner.table() == set(entries)


async def test_a_new_mac_takes_the_neighbours_and_says_so(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    await host.kernel.change_link(LINK, replace(LINK, mac=mac(9)))
    lost = {entry for entry in entries if isinstance(entry, Neighbour) and entry.device == DEVICE}
    assert host.kernel.link(DEVICE) == replace(LINK, mac=mac(9))
    assert host.foreigner.table() == set(entries) - lost
    events = await host.heard(lambda events: LinkChanged(DEVICE, True) in events)
    await host.heard(lambda events: all(Gone(entry.key) in events for entry in lost))
    assert Lost() not in events


@pytest.mark.parametrize(
    "change", [{"vni": 2}, {"port": 4789}, {"gbp": True}, {"local": ip("fd00::1")}, {"group": ip("239.0.0.1")}]
)
async def test_what_cannot_be_changed_is_refused(host: Host, change: dict[str, Any]) -> None:
    with pytest.raises(KernelError, match="create it anew"):
        await host.kernel.change_link(LINK, replace(LINK, **change))
    assert host.kernel.link(DEVICE) == LINK


async def test_a_device_that_is_down_is_read_and_set_up(host: Host) -> None:
    host.foreigner.down(DEVICE)
    have = host.kernel.link(DEVICE)
    assert have == replace(LINK, up=False)
    await host.kernel.change_link(have, LINK)
    assert host.kernel.link(DEVICE) == LINK


async def test_a_device_is_deleted_and_absent_is_no_error(host: Host) -> None:
    await host.kernel.delete_link(DEVICE)
    await host.kernel.delete_link(DEVICE)
    assert host.kernel.link(DEVICE) is None


# Entries


async def test_entries_are_added_and_read_back(host: Host, entries: list[Entry]) -> None:
    assert host.apply(Verb.ADD, *entries) == []
    assert host.foreigner.table() == set(entries)
    assert host.read() == set(entries)


async def test_adding_again_changes_nothing(host: Host, entries: list[Entry]) -> None:
    assert host.apply(Verb.ADD, *entries) == []
    assert host.apply(Verb.ADD, *entries) == []
    assert host.read() == host.foreigner.table() == set(entries)


async def test_entries_are_replaced(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    changed: list[Entry] = [
        FdbEntry(DEVICE, mac(1), ip("10.0.9.9")),
        FdbEntry(DEVICE6, mac(1), ip("fd00::9:9")),
        Neighbour(DEVICE, ip("10.5.1.0"), mac(77)),
        Neighbour(DEVICE6, ip("fd05:1::"), mac(77)),
        Route(DEVICE, ip("10.5.1.0"), 24, ip("10.5.2.0")),
        Route(DEVICE6, ip("fd05:1::"), 64, ip("fd05:2::")),
    ]
    assert host.apply(Verb.REPLACE, *changed) == []
    keys = {entry.key for entry in changed}
    assert host.read() == host.foreigner.table() == {e for e in entries if e.key not in keys} | set(changed)


async def test_entries_are_removed_and_absent_is_no_failure(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    assert host.apply(Verb.REMOVE, *reversed(entries)) == []
    assert host.read() == host.foreigner.table() == set()
    assert host.apply(Verb.REMOVE, *reversed(entries)) == []


async def test_an_entry_on_a_missing_device_fails_and_its_removal_does_not(host: Host) -> None:
    stray = entries_of_peer(host)[0]._replace(device="nosuch0")
    assert host.apply(Verb.ADD, stray) == [(stray, errno.ENODEV)]
    assert host.apply(Verb.REMOVE, stray) == []


def entries_of_peer(host: Host, number: int = 1) -> list[Entry]:
    return peer(number, objects=host.kernel.nexthop_objects)


async def test_one_bad_entry_in_a_batch_fails_alone(host: Host) -> None:
    good = [Route(DEVICE, ip(f"10.5.{n}.0"), 24, ip(f"10.5.{n}.0")) for n in range(100)]
    bad = Route("nosuch0", ip("10.6.0.0"), 24, ip("10.6.0.0"))
    blocked = good[70]
    host.foreigner.put(blocked._replace(device=UNDERLAY, gateway=ip("10.0.0.7")))
    failed = host.apply(Verb.ADD, *good[:50], bad, *good[50:])
    assert sorted(number for _, number in failed) == sorted([errno.ENODEV, errno.EEXIST])
    assert {entry.key for entry, _ in failed} == {bad.key, blocked.key}
    assert host.read() == set(good) - {blocked}


@pytest.mark.parametrize("verb", [Verb.ADD, Verb.REPLACE])
@pytest.mark.parametrize("v6", [False, True])
async def test_a_route_of_another_device_is_left_alone(host: Host, verb: Verb, v6: bool) -> None:
    foreign = (
        Route(UNDERLAY, ip("fd05:1::"), 64, ip("fd00::7"))
        if v6
        else Route(UNDERLAY, ip("10.5.1.0"), 24, ip("10.0.0.7"))
    )
    host.foreigner.put(foreign)
    ours = foreign._replace(device=DEVICE6 if v6 else DEVICE, gateway=foreign.subnet)
    assert host.apply(verb, ours) == [(ours, errno.EEXIST)]
    assert host.apply(Verb.REMOVE, ours) == []
    assert host.foreigner.table() == {foreign}


async def test_a_route_through_a_device_that_is_down_fails_and_says_why(host: Host) -> None:
    host.foreigner.down(DEVICE)
    route = Route(DEVICE, ip("10.5.1.0"), 24, ip("10.5.1.0"))
    assert host.apply(Verb.ADD, route) == [(route, errno.ENETDOWN)]


async def test_routes_of_flannels_daemon_are_taken_for_ours(host: Host) -> None:
    for v6 in (False, True):
        *_, route = peer(1, v6=v6, objects=False)
        host.foreigner.put(route, static=False)
        assert route in host.read()
        assert {entry.protocol for entry in host.read() if isinstance(entry, Route) and entry == route} == {3}
        assert host.apply(Verb.ADD, *peer(1, v6=v6, objects=host.kernel.nexthop_objects)) == []
        assert host.apply(Verb.REMOVE, route) == []
    assert not [entry for entry in host.foreigner.table() if isinstance(entry, Route)]


async def test_a_route_without_gateway_is_read_replaced_and_removed(host: Host) -> None:
    found = Route(DEVICE, ip("10.5.1.0"), 24, None)
    wanted = found._replace(gateway=ip("10.5.1.0"))
    host.foreigner.put(found)
    assert host.read() == {found}
    assert host.apply(Verb.REPLACE, wanted) == []
    assert host.read() == {wanted}
    host.foreigner.put(found)
    assert host.apply(Verb.REMOVE, wanted) == []
    assert host.read() == set()


BOTH = pytest.mark.parametrize("v6", [False, True])


def tunneled_and_direct(v6: bool) -> tuple[Route, Route]:
    """The two forms of the route to a peer's subnet: through the tunnel, and by way of its host on our link."""
    if v6:
        subnet, gateway, length, device = ip("fd05:1::"), ip("fd00::2"), 64, DEVICE6
    else:
        subnet, gateway, length, device = ip("10.5.1.0"), ip("10.0.0.2"), 24, DEVICE
    return Route(device, subnet, length, subnet), Route(UNDERLAY, subnet, length, gateway)


@BOTH
async def test_what_bears_our_former_mark_is_ours_and_is_marked_anew_in_place(host: Host, v6: bool) -> None:
    entries = peer(1, v6=v6, objects=host.kernel.nexthop_objects)
    former = [
        each._replace(protocol=FORMER_PROTOCOL) if isinstance(each, Nexthop | Route) else each for each in entries
    ]
    direct = tunneled_and_direct(v6)[1]._replace(subnet=ip("fd05:2::") if v6 else ip("10.5.2.0"))
    before = direct._replace(protocol=FORMER_PROTOCOL)
    for entry in (*former, before):
        host.foreigner.put(entry)
    assert host.read() == host.foreigner.table() - {before} == set(former)
    assert host.apply(Verb.REPLACE, *entries, direct) == []
    assert host.read() | {direct} == host.foreigner.table() == {*entries, direct}
    host.foreigner.put(before)
    assert host.apply(Verb.ADD, direct) == []
    assert host.foreigner.table() == {*entries, direct}
    host.foreigner.put(former[-1])
    assert host.apply(Verb.REMOVE, *reversed(entries)) == []
    assert host.foreigner.table() == {direct}


@BOTH
async def test_a_route_of_ours_on_another_device_is_replaced_and_a_foreign_one_is_not(host: Host, v6: bool) -> None:
    tunneled, direct = tunneled_and_direct(v6)
    await host.add(tunneled)
    for route in (direct, tunneled):
        assert host.apply(Verb.REPLACE, route) == []
        assert routes(host) == {route}
    host.foreigner.replace(direct)
    assert host.apply(Verb.REPLACE, tunneled) == [(tunneled, errno.EEXIST)]
    assert routes(host) == {direct}


async def test_listening_again_is_about_other_devices_and_events_may_be_lost(host: Host) -> None:
    host.listen([UNDERLAY])
    await host.heard(lambda events: Lost() in events)
    elsewhere, here = (Route(device, ip("10.5.1.0"), 24, ip("10.0.0.2")) for device in (DEVICE, UNDERLAY))
    host.foreigner.put(elsewhere._replace(subnet=ip("10.5.2.0"), gateway=ip("10.5.2.0")))
    host.foreigner.put(here)
    events = await host.heard(lambda events: any(isinstance(event, Seen) for event in events))
    assert {event.entry.key for event in events if isinstance(event, Seen)} == {here.key}
    assert {entry.device for part in host.kernel.dump() for entry in part} == {UNDERLAY}


async def test_devices_of_ours_are_found_by_an_address_in_a_subnet(host: Host) -> None:
    await host.add(Address(DEVICE, ip("10.5.0.0"), 32), Address(DEVICE6, ip("fd05::"), 128))
    host.foreigner.put(Address(UNDERLAY, ip("10.5.0.9"), 32))
    assert host.kernel.devices_in([ip_network("10.5.0.0/24"), ip_network("10.9.0.0/16")]) == [DEVICE]
    assert host.kernel.devices_in([ip_network("fd05::/64")]) == [DEVICE6]
    assert host.kernel.devices_in([ip_network("10.5.1.0/24")]) == []


@BOTH
async def test_routes_of_ours_into_a_network_are_removed_where_nobody_looks_after_them(host: Host, v6: bool) -> None:
    tunneled, direct = tunneled_and_direct(v6)
    networks, version = [ip_network("fd05::/16" if v6 else "10.5.0.0/16")], 6 if v6 else 4
    assert host.apply(Verb.ADD, direct) == []
    foreign = direct._replace(subnet=ip("fd05:7::") if v6 else ip("10.5.7.0"), protocol=4)
    host.foreigner.put(foreign)
    assert host.kernel.remove_routes([ip_network("fd99::/16"), ip_network("10.9.0.0/16")], ()) == []
    assert host.kernel.remove_routes(networks, {(version, UNDERLAY)}) == []
    assert host.kernel.remove_routes(networks, {(version, tunneled.device)}, networks) == [], "another agent's"
    (removed,) = host.kernel.remove_routes(networks, {(version, tunneled.device), (10 - version, UNDERLAY)})
    assert removed.endswith(f"on {UNDERLAY}")
    assert routes(host) == {foreign}
    await host.add(*peer(3, v6=v6, objects=host.kernel.nexthop_objects))
    by_object = routes(host) - {foreign} if host.kernel.nexthop_objects else set()
    host.kernel.remove_routes(networks, ())
    assert routes(host) == {foreign} | by_object


@BOTH
async def test_a_peer_moves_between_tunnel_and_link_with_all_that_it_has(host: Host, v6: bool) -> None:
    _, direct = tunneled_and_direct(v6)
    *rest, tunneled = peer(1, v6=v6, objects=host.kernel.nexthop_objects)
    await host.add(*rest, tunneled)
    for _ in range(2):
        assert host.apply(Verb.REPLACE, direct) == []
        assert host.apply(Verb.REMOVE, *reversed(rest)) == []
        assert host.foreigner.table() == {direct}
        assert host.apply(Verb.ADD, *rest) == []
        assert host.apply(Verb.REPLACE, tunneled) == []
        assert routes(host) == {tunneled}


@BOTH
async def test_a_wider_route_of_others_does_not_keep_a_peer_away(host: Host, v6: bool) -> None:
    wider = (
        Route(UNDERLAY, ip("fd05::"), 32, ip("fd00::7")) if v6 else Route(UNDERLAY, ip("10.5.0.0"), 16, ip("10.0.0.7"))
    )
    host.foreigner.put(wider)
    entries = peer(1, v6=v6, objects=host.kernel.nexthop_objects)
    await host.add(*entries)
    assert host.foreigner.table() == {wider, *entries}


@BOTH
async def test_a_route_by_way_of_a_host_is_taken_over_from_flannel_only(host: Host, v6: bool) -> None:
    _, route = tunneled_and_direct(v6)
    host.foreigner.put(route, static=False)
    assert host.apply(Verb.ADD, route) == []
    host.foreigner.put(route)
    assert host.apply(Verb.ADD, route) == [(route, errno.EEXIST)]
    assert routes(host) == {route}


@BOTH
async def test_a_route_by_way_of_a_host_is_removed_and_no_other_one_to_its_subnet(host: Host, v6: bool) -> None:
    _, route = tunneled_and_direct(v6)
    await host.add(route)
    assert host.apply(Verb.REMOVE, route) == []
    assert routes(host) == set()


def routes(host: Host) -> set[Entry]:
    return {entry for entry in host.foreigner.table() if isinstance(entry, Route)}


@BOTH
async def test_on_link_is_who_is_reached_over_the_interface_without_a_gateway(host: Host, v6: bool) -> None:
    own, length, near, far, behind, gateway = (
        ("fd01::1", 64, "fd01::2", "2001:db8:7::7", "fd01::8001", "fd01::3")
        if v6
        else ("10.0.1.1", 24, "10.0.1.2", "192.0.2.7", "10.0.1.200", "10.0.1.3")
    )
    address = Address(UNDERLAY, ip(own), length)
    detour = Route(UNDERLAY, ip("fd01::8000") if v6 else ip("10.0.1.128"), 113 if v6 else 25, ip(gateway))
    onward = Route(UNDERLAY, ip("2001:db8:7::") if v6 else ip("192.0.2.0"), 64 if v6 else 24, None)
    host.foreigner.put(address)
    asked = [ip(near), ip(far)]
    assert host.kernel.on_link(UNDERLAY, asked) == {ip(near)}
    assert host.kernel.on_link("p1", asked) == set()
    assert host.kernel.on_link("nosuch0", asked) == set()
    for route in (detour, onward):
        await host.settle()
        host.foreigner.put(route)
        await host.heard(lambda events: Rerouted() in events)
    assert host.kernel.on_link(UNDERLAY, [*asked, ip(behind)]) == set(asked)
    await host.settle()
    host.foreigner.remove(address)
    await host.heard(lambda events: Rerouted() in events)
    assert ip(near) not in host.kernel.on_link(UNDERLAY, asked)


async def test_our_own_routes_reroute_nobody(host: Host) -> None:
    await host.add(Route(DEVICE, ip("10.5.1.0"), 24, ip("10.5.1.0")))
    assert Rerouted() not in host.events


async def test_an_ipv6_address_with_another_prefix_length_is_in_the_way(host: Host) -> None:
    there, wanted = Address(DEVICE6, ip("fd05::"), 64), Address(DEVICE6, ip("fd05::"), 128)
    host.foreigner.put(there)
    assert host.apply(Verb.ADD, wanted) == [(wanted, errno.EEXIST)]
    assert there in host.read()


async def test_nexthop_objects_are_refused_where_there_are_none(host: Host) -> None:
    nexthop = Nexthop(DEVICE, ip("10.5.1.0"))
    expected = [] if host.kernel.nexthop_objects else [(nexthop, errno.EOPNOTSUPP)]
    assert host.apply(Verb.ADD, nexthop) == expected
    assert host.read() == ({nexthop} if host.kernel.nexthop_objects else set())


async def test_a_reading_leaves_out_what_was_removed_meanwhile(host: Host) -> None:
    routes = [Route(DEVICE, ip(f"10.{a}.{b}.0"), 24, ip("10.5.1.0")) for a in range(20, 30) for b in range(100)]
    for at in range(0, len(routes), 100):
        assert host.apply(Verb.ADD, *routes[at : at + 100]) == []
    reading = host.kernel.dump()
    first = next(reading)
    for at in range(0, len(routes), 100):
        assert host.apply(Verb.REMOVE, *routes[at : at + 100]) == []
    assert first
    assert [entry for part in reading for entry in part] == []


# Events


async def test_own_changes_are_not_reported(host: Host, entries: list[Entry]) -> None:
    assert host.apply(Verb.ADD, *entries) == []
    assert host.apply(Verb.REPLACE, FdbEntry(DEVICE, mac(1), ip("10.0.9.9"))) == []
    # An IPv6 address is told once more when the kernel has finished with it: a Seen of what is there.
    harmless = [Seen(entry) for entry in entries if isinstance(entry, Address) and len(entry.address) == 16]
    assert [event for event in await host.told() if event not in harmless] == []
    assert host.apply(Verb.REMOVE, *reversed(entries)) == []
    assert await host.told() == []
    assert Lost() not in host.events


@pytest.mark.parametrize("at", range(10))
async def test_changes_of_others_are_reported(host: Host, at: int) -> None:
    objects = host.kernel.nexthop_objects
    peers = [entry for v6 in (False, True) for entry in peer(3, v6=v6, objects=True)]
    entry = [Address(DEVICE, ip("10.5.0.0"), 32), Address(DEVICE6, ip("fd05::"), 128), *peers][at]
    if isinstance(entry, Nexthop) and not objects:
        return
    host.foreigner.put(entry)
    await host.heard(lambda events: Seen(entry) in events)
    assert host.read() == {entry}
    host.foreigner.remove(entry)
    await host.heard(lambda events: Gone(entry.key) in events)
    assert host.read() == set()


async def test_changes_of_the_host_are_told_as_such(host: Host) -> None:
    for change in (
        f"addr add 10.9.9.9/24 dev {UNDERLAY}",
        f"route add default via 10.9.9.1 dev {UNDERLAY}",
        "route del default",
        f"addr del 10.9.9.9/24 dev {UNDERLAY}",
        f"addr add fd00:9::9/64 dev {UNDERLAY} nodad",
        f"-6 route add default via fd00:9::1 dev {UNDERLAY} metric 7",
        "-6 route del default",
        f"addr del fd00:9::9/64 dev {UNDERLAY}",
    ):
        host.events.clear()
        host.foreigner.move_host(change)
        told = HostChanged(UNDERLAY if change.startswith("addr") else None)
        assert told in await host.heard(lambda events, told=told: told in events), change  # type: ignore[misc]


async def test_changes_on_other_devices_are_not_reported(host: Host) -> None:
    route = Route(UNDERLAY, ip("10.77.0.0"), 24, ip("10.0.0.7"))
    host.foreigner.put(route)
    host.foreigner.remove(route)
    assert await host.told() == []


async def test_a_neighbour_that_is_not_permanent_any_more_is_gone(host: Host) -> None:
    neighbour = Neighbour(DEVICE, ip("10.5.1.0"), mac(1))
    await host.add(neighbour)
    host.foreigner.unpin(neighbour)
    await host.heard(lambda events: Gone(neighbour.key) in events)
    assert host.read() == set()


@pytest.mark.parametrize("kind", ["fdb", "neighbour", "route"])
async def test_a_flush_is_reported(host: Host, entries: list[Entry], kind: str) -> None:
    await host.add(*entries)
    flushed = {entry for entry in entries if entry.key[:2] == (kind, DEVICE)}
    host.foreigner.flush(kind, DEVICE)
    await host.heard(lambda events: all(Gone(entry.key) in events for entry in flushed))
    assert host.read() == host.foreigner.table() == set(entries) - flushed


async def test_a_route_replaced_by_one_of_another_device_is_gone(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    *_, ours = entries_of_peer(host)
    assert isinstance(ours, Route)
    foreign = ours._replace(device=UNDERLAY, gateway=ip("10.0.0.7"))
    host.foreigner.replace(foreign)
    await host.heard(lambda events: Gone(ours.key) in events)
    assert host.read() == set(entries) - {ours}
    assert host.apply(Verb.ADD, ours) == [(ours, errno.EEXIST)]
    assert foreign in host.foreigner.table()


async def test_what_others_did_before_our_change_is_not_told_after_it(host: Host) -> None:
    mine, theirs = FdbEntry(DEVICE, mac(1), ip("10.0.1.1")), FdbEntry(DEVICE, mac(1), ip("10.0.9.9"))
    neighbour, stolen = Neighbour(DEVICE, ip("10.5.1.0"), mac(1)), Neighbour(DEVICE, ip("10.5.1.0"), mac(66))
    await host.add(mine, neighbour)
    host.foreigner.put(theirs)
    host.foreigner.put(stolen)
    assert host.apply(Verb.REPLACE, mine, neighbour) == []
    assert await host.told() == []
    assert host.foreigner.table() == {mine, neighbour}


async def test_what_others_did_after_our_change_is_told(host: Host) -> None:
    mine, theirs = FdbEntry(DEVICE, mac(1), ip("10.0.1.1")), FdbEntry(DEVICE, mac(1), ip("10.0.9.9"))
    assert host.apply(Verb.ADD, mine) == []
    host.foreigner.put(theirs)
    await host.heard(lambda events: Seen(theirs) in events)


async def test_a_nexthop_deleted_by_others_is_told_and_took_its_routes(host: Host) -> None:
    if not host.kernel.nexthop_objects:
        return
    for v6 in (False, True):
        entries = peer(1, v6=v6, objects=True)
        await host.add(*entries)
        nexthop = next(entry for entry in entries if isinstance(entry, Nexthop))
        host.foreigner.remove(nexthop)
        await host.heard(lambda events: any(event.key[0] == "nexthop" for event in events if isinstance(event, Gone)))
        host.events.clear()
        left = {entry for entry in entries if not isinstance(entry, Nexthop | Route)}
        assert {entry for entry in host.read() if entry.device == (DEVICE6 if v6 else DEVICE)} == left
        assert host.apply(Verb.ADD, *entries) == []
        assert set(entries) <= host.foreigner.table()


async def test_a_device_that_went_down_is_filled_again(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    host.foreigner.down(DEVICE)
    await host.heard(lambda events: LinkChanged(DEVICE, True) in events)
    host.foreigner.up(DEVICE)
    left = host.read()
    assert left == host.foreigner.table()
    assert not {entry for entry in left if entry.key[:2] == ("route", DEVICE)}
    assert host.apply(Verb.ADD, *entries) == []
    assert host.read() == host.foreigner.table() == set(entries)


async def test_a_deleted_device_is_reported_and_can_be_made_again(host: Host, entries: list[Entry]) -> None:
    await host.add(*entries)
    host.foreigner.delete_link(DEVICE)
    await host.heard(lambda events: LinkChanged(DEVICE, False) in events)
    assert host.kernel.link(DEVICE) is None
    assert host.read() == {entry for entry in entries if entry.device == DEVICE6}
    await host.kernel.create_link(LINK)
    await host.heard(lambda events: LinkChanged(DEVICE, True) in events)
    await host.settle()
    assert host.apply(Verb.ADD, *entries) == []
    assert host.read() == host.foreigner.table() == set(entries)
    host.foreigner.remove(entries[0])
    await host.heard(lambda events: Gone(entries[0].key) in events)


# The fake's own


async def test_the_fake_refuses_on_demand() -> None:
    kernel = FakeKernel()
    await kernel.create_link(replace(LINK, parent="eth0"))
    kernel.fail(lambda operation: isinstance(operation.entry, FdbEntry), errno.ENOBUFS, times=1)
    entries = peer(1, objects=True)
    add = [Operation(Verb.ADD, entry) for entry in entries]
    assert [(failure.operation.entry, failure.errno) for failure in kernel.apply(add)] == [(entries[0], errno.ENOBUFS)]
    assert set(kernel.tables.values()) == set(entries[1:])
    assert kernel.apply(add) == []
    kernel.fail_links("no memory")
    with pytest.raises(KernelError, match="no memory"):
        await kernel.delete_link(DEVICE)
    await kernel.delete_link(DEVICE)
    assert not kernel.tables
