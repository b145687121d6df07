"""Clusters without a tunnel: routes by way of the hosts, as long as these are on the link, in each family."""

from __future__ import annotations

from dataclasses import replace
from errno import EEXIST
from ipaddress import ip_address
from pathlib import Path

import pytest

from flanneld_py.agent.agent import Agent
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.state import ROUTE_PROTOCOL, Address, Entry, Route
from tests.fakes.kernel import FakeKernel
from tests.sim.cluster import CONFIG, DEVICE, Cluster, device

HOSTGW = b'{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}'
DIRECT = b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}'
LEASE = b'{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"host-gw"}'
ROUTE = Route("eth0", bytes([10, 5, 9, 0]), 24, bytes([192, 0, 2, 9]))
DETOUR = Route("eth0", bytes([192, 0, 2, 9]), 32, bytes([192, 0, 2, 254]), protocol=4)
STATIC = 4
UNDERLAY = Address("eth0", bytes([192, 0, 2, 1]), 24)


def packed(address: str) -> bytes:
    return ip_address(address).packed


IPV6 = b'"EnableIPv6": true, "IPv6Network": "fd42::/48", "Backend"'
ALONE = b'"EnableIPv4": false, ' + IPV6
DUAL_KEY, ALONE_KEY = "10.5.9.0-24&fd42:0:0:9::-64", "0.0.0.0-31&fd42:0:0:8::-64"
LEASE6 = LEASE.replace(b"null", b'"2001:db8::9"')
ALONE_LEASE = LEASE.replace(b"192.0.2.9", b"240.1.2.3").replace(b"null", b'"2001:db8::8"')
ROUTE6 = Route("eth0", packed("fd42:0:0:9::"), 64, packed("2001:db8::9"))
ALONE_ROUTE = Route("eth0", packed("fd42:0:0:8::"), 64, packed("2001:db8::8"))
DETOUR6 = Route("eth0", packed("2001:db8::9"), 128, packed("2001:db8::fe"), protocol=4)
UNDERLAY6 = Address("eth0", packed("2001:db8::1"), 64)
DEVICE6 = "flannel-v6.1"
NAMES = (b"vxlan", b"udp", b"alloc", b"host-gw")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    cluster.kernel(1).tables |= {UNDERLAY.key: UNDERLAY, UNDERLAY6.key: UNDERLAY6}
    return cluster


def ours(kernel: FakeKernel) -> set[Entry]:
    entries = kernel.tables.values()
    return {entry for entry in entries if isinstance(entry, Route) and entry.protocol == ROUTE_PROTOCOL}


async def test_a_peer_is_there_while_it_is_on_the_link(cluster: Cluster, tmp_path: Path) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    await cluster.put_raw("10.5.8.0-24", LEASE.replace(b"192.0.2.9", b"198.51.100.8"))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert kernel.links == {}
        assert ours(kernel) == {ROUTE}
        assert "FLANNEL_MTU=1500" in (tmp_path / "1.env").read_text()
        assert "198.51.100.8 is not on the link of eth0" in str((await agent.describe())["rejected_leases"])
        kernel.meddle_set(DETOUR)
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 2)
        kernel.meddle_remove(DETOUR.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 2)
        kernel.meddle_remove(ROUTE.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 1)
        await cluster.delete("10.5.9.0-24")
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 1)


async def test_a_link_that_flaps_is_no_flood_in_the_log(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        for _ in range(20):
            kernel.meddle_set(DETOUR)
            await cluster.clock.run_until(lambda: ours(kernel) == set(), 2)
            kernel.meddle_remove(DETOUR.key)
            await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 2)
        assert [record.message for record in caplog.records] == ["lease is not used"]
        await cluster.clock.run_for(600)
        kernel.meddle_set(DETOUR)
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 2)
        assert [record.message for record in caplog.records] == ["lease is not used"] * 2, "that was long ago"


async def test_what_somebody_else_routes_is_never_touched(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    same, other = ROUTE._replace(protocol=STATIC), ROUTE._replace(subnet=bytes([10, 5, 8, 0]), protocol=STATIC)
    for entry in (same, other):
        kernel.tables[entry.key] = entry
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    await cluster.put_raw("10.5.8.0-24", LEASE.replace(b"2.9", b"2.8"))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        failing = (await agent.describe())["failing_entries"]
        assert isinstance(failing, list)
        assert len(failing) == 2
        await cluster.delete("10.5.9.0-24")
        await cluster.delete("10.5.8.0-24")
        await cluster.settle(agent)
        assert [kernel.tables[entry.key].protocol for entry in (same, other)] == [STATIC] * 2  # type: ignore[union-attr]


async def test_a_foreign_route_that_goes_makes_room_at_once(cluster: Cluster) -> None:
    kernel, theirs = cluster.kernel(1), ROUTE._replace(gateway=bytes([192, 0, 2, 254]), protocol=STATIC)
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel.meddle_replace(theirs)
        await cluster.settle(agent)
        assert kernel.tables[theirs.key] == theirs
        kernel.meddle_remove(theirs.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 0.1)


async def test_a_restart_removes_what_it_left_and_keeps_the_rest(cluster: Cluster) -> None:
    kernel, left = cluster.kernel(1), ROUTE._replace(subnet=bytes([10, 5, 7, 0]))
    kernel.tables[left.key] = left
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE}


@pytest.mark.parametrize("config", [DIRECT.replace(b"true", b"false"), b'{"Network": "10.5.0.0/16"}'])
async def test_another_backend_removes_what_host_gw_left(cluster: Cluster, config: bytes) -> None:
    kernel = cluster.kernel(1)
    kernel.tables[ROUTE.key] = ROUTE
    await cluster.configure(config)
    await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert not [entry for entry in ours(kernel) if entry.device == "eth0"]


async def test_host_gw_leaves_nothing_of_what_vxlan_had(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(CONFIG)
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert DEVICE in kernel.links
    theirs = replace(device(kernel), name="flannel.7", vni=7)
    kernel.links["flannel.7"] = theirs
    address = Address("flannel.7", bytes([10, 77, 1, 0]), 32)
    kernel.tables[address.key] = address
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert kernel.links == {"flannel.7": theirs}, "another network's stays"
        assert ours(kernel) == {ROUTE}


@pytest.mark.parametrize("backend", [b'"host-gw"', b'"vxlan", "DirectRouting": true', b'"vxlan"', b'"udp"'])
async def test_a_family_that_was_turned_off_leaves_nothing(cluster: Cluster, backend: bytes) -> None:
    kernel = cluster.kernel(1)
    dual = HOSTGW.replace(b'"Backend"', IPV6).replace(b'"host-gw"', backend)
    kernel.tables[ROUTE6.key] = ROUTE6
    await cluster.configure(dual)
    async with cluster.processes():
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
            kernel.tables[ROUTE6.key] = ROUTE6
        there = set(kernel.links)
        await cluster.configure(HOSTGW.replace(b'"host-gw"', backend))
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
            assert set(kernel.links) == {name for name in there if "v6" not in name}
            assert not [entry for entry in kernel.tables.values() if entry.key[2] == ROUTE6.subnet]


@pytest.mark.parametrize("config", [HOSTGW, DIRECT], ids=["host-gw", "DirectRouting"])
async def test_another_underlay_interface_is_followed_with_all_routes(cluster: Cluster, config: bytes) -> None:
    kernel = cluster.kernel(1)
    kernel.interfaces.add("wlan0")
    over = Address("wlan0", bytes([198, 51, 100, 1]), 24)
    kernel.tables[over.key] = over
    await cluster.configure(config)
    lease = LEASE if config is HOSTGW else None
    for name, address in (("10.5.9.0-24", "192.0.2.9"), ("10.5.8.0-24", "198.51.100.8")):
        if lease is not None:
            await cluster.put_raw(name, lease.replace(b"192.0.2.9", address.encode()))
        else:
            await cluster.put(name, address, f"02:00:00:00:00:{address[-1]:0>2}")
    near = Route("wlan0", bytes([10, 5, 8, 0]), 24, bytes([198, 51, 100, 8]))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ROUTE in ours(kernel)
        new = ip_address("198.51.100.1")
        cluster.move(1, Underlay("wlan0", 1500, new, new))  # type: ignore[arg-type]
        await cluster.clock.run_for(10)
        assert {entry for entry in ours(kernel) if entry.device in ("eth0", "wlan0")} == {near}
        kernel.meddle_remove(near.key)
        await cluster.clock.run_until(lambda: near in ours(kernel), 1)
        assert [str(each.attrs.public_ip) for each in agent.view.leases().values()].count(str(new)) == 1


async def test_direct_routing_is_decided_again_and_the_route_is_replaced(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(DIRECT)
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    tunneled = Route(DEVICE, ROUTE.subnet, 24, ROUTE.subnet)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE}
        assert {key[0] for key in kernel.tables if key[1] == DEVICE} == {"address"}
        kernel.fail(
            lambda operation: operation.verb.value == "remove" and isinstance(operation.entry, Route), EEXIST, 99
        )
        kernel.meddle_set(DETOUR)
        await cluster.clock.run_until(lambda: ours(kernel) == {tunneled}, 2)
        assert len([key for key in kernel.tables if key[1] == DEVICE]) == 5
        kernel.meddle_remove(DETOUR.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 2)
        await cluster.settle(agent)
        assert {key[0] for key in kernel.tables if key[1] == DEVICE} == {"address"}


async def test_a_change_that_no_event_told_is_found(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel.tables[DETOUR.key] = DETOUR
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 400)


async def test_routes_of_others_on_the_underlay_interface_are_no_change_of_ours(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW)
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel.meddle_set(DETOUR)
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 2)
        kernel.meddle_remove(DETOUR.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE}, 2)
        await cluster.settle(agent)
        assert "somebody else changed" not in caplog.text
        kernel.meddle_remove(ROUTE.key)
        await cluster.clock.run_until(lambda: "somebody else changed our kernel entries" in caplog.text, 1)
        assert ours(kernel) == {ROUTE}


async def test_in_both_families_each_decides_alone(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW.replace(b'"Backend"', IPV6))
    await cluster.put_raw(DUAL_KEY, LEASE6)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE, ROUTE6}
        for detour, left, reason in (
            (DETOUR, ROUTE6, "PublicIP 192.0.2.9 is not on the link of eth0"),
            (DETOUR6, ROUTE, "PublicIPv6 2001:db8::9 is not on the link of eth0"),
        ):
            kernel.meddle_set(detour)
            await cluster.clock.run_until(lambda left=left: ours(kernel) == {left}, 2)  # type: ignore[misc]
            (rejected,) = await rejections(agent)
            assert rejected[0].endswith(DUAL_KEY)
            assert reason in rejected[1]
            kernel.meddle_remove(detour.key)
            await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE, ROUTE6}, 2)
        await cluster.delete(DUAL_KEY)
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 1)


async def test_a_change_of_both_families_at_once_is_seen_by_both(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW.replace(b'"Backend"', IPV6))
    await cluster.put_raw(DUAL_KEY, LEASE6)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel.meddle_set(DETOUR)
        kernel.meddle_set(DETOUR6)
        await cluster.clock.run_until(lambda: ours(kernel) == set(), 2)


async def test_in_dual_stack_a_peer_may_have_one_family_only(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(HOSTGW.replace(b'"Backend"', IPV6))
    await cluster.put_raw("10.5.9.0-24", LEASE)
    await cluster.put_raw(ALONE_KEY, ALONE_LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE, ALONE_ROUTE}
        reasons = {(key.rpartition("/")[2], reason.partition(",")[0]) for key, reason in await rejections(agent)}
        assert reasons == {("10.5.9.0-24", "it has no IPv6 subnet"), (ALONE_KEY, "it has no IPv4 subnet")}


@pytest.mark.parametrize("backend", [HOSTGW, DIRECT])
async def test_ipv6_alone(cluster: Cluster, backend: bytes) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(backend.replace(b'"Backend"', ALONE))
    await cluster.put_raw(ALONE_KEY, vxlan6(ALONE_LEASE) if backend == DIRECT else ALONE_LEASE)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ALONE_ROUTE}
        kernel.meddle_remove(UNDERLAY6.key)
        kernel.meddle_set(Route("eth0", bytes(16), 0, packed("2001:db8:1::1")))
        await cluster.clock.run_until(lambda: ALONE_ROUTE not in ours(kernel), 2)


async def test_what_somebody_else_routes_over_ipv6_is_never_touched(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    same, wider = ROUTE6._replace(protocol=STATIC), ROUTE6._replace(prefix_length=56, protocol=STATIC)
    kernel.tables |= {same.key: same, wider.key: wider}
    await cluster.configure(HOSTGW.replace(b'"Backend"', IPV6))
    await cluster.put_raw(DUAL_KEY, LEASE6)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE}
        failing = (await agent.describe())["failing_entries"]
        assert isinstance(failing, list)
        assert ["fd42:0:0:9::/64" in each["entry"] for each in failing] == [True]
        await cluster.delete(DUAL_KEY)
        await cluster.settle(agent)
        assert {same, wider} <= set(kernel.tables.values())


@pytest.mark.parametrize("config", [b'{"Network": "10.5.0.0/16", "Backend": {"Type": "%s"}}' % name for name in NAMES])
async def test_another_backend_removes_what_host_gw_left_of_ipv6(cluster: Cluster, config: bytes) -> None:
    kernel = cluster.kernel(1)
    kernel.tables[ROUTE6.key] = ROUTE6
    await cluster.configure(config.replace(b'"Backend"', IPV6))
    await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert not [entry for entry in ours(kernel) if entry.device == "eth0"]


async def test_direct_routing_is_decided_in_each_family(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.configure(DIRECT.replace(b'"Backend"', IPV6))
    await cluster.put_raw(DUAL_KEY, vxlan6(LEASE6))
    tunneled = Route(DEVICE6, ROUTE6.subnet, 64, ROUTE6.subnet)
    led = Route(
        DEVICE6, ROUTE6.subnet, 128, None
    )  # What an agent leaves that is killed while it goes back to the tunnel.
    kernel.tables[led.key] = led
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert ours(kernel) == {ROUTE, ROUTE6}
        kernel.fail(
            lambda operation: operation.verb.value == "remove" and isinstance(operation.entry, Route), EEXIST, 99
        )
        kernel.meddle_set(DETOUR6)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE, tunneled}, 2)
        assert len([key for key in kernel.tables if key[1] == DEVICE6]) == 5
        kernel.meddle_remove(DETOUR6.key)
        await cluster.clock.run_until(lambda: ours(kernel) == {ROUTE, ROUTE6}, 2)
        await cluster.settle(agent)
        for device in (DEVICE, DEVICE6):
            assert {key[0] for key in kernel.tables if key[1] == device} == {"address"}


def vxlan6(lease: bytes) -> bytes:
    """The lease of a host on vxlan, with a VTEP for each family."""
    data = b'{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}'
    return lease.replace(b'"host-gw"}', b'"vxlan","BackendData":%s,"BackendV6Data":%s}' % (data % 9, data % 10))


async def rejections(agent: Agent) -> list[tuple[str, str]]:
    found = (await agent.describe())["rejected_leases"]
    assert isinstance(found, list)
    return [(each["key"], each["reason"]) for each in found]
