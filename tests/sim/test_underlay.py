"""Hosts whose underlay changes under them: the subnet stays, the others follow, and nothing breaks meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from flanneld_py.agent.agent import Agent
from flanneld_py.agent.underlay.choose import Network
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.table import DatapathChoice
from flanneld_py.encap.state import RTPROT_BOOT, Address, Entry, FdbEntry, Neighbour, Route, TunLink, VxlanLink
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease
from tests.sim.cluster import DEVICE, Cluster, device, entries, on_device

NEW = IPv4Address("198.51.100.1")
NEW6 = IPv6Address("2001:db8:7::1")
MOVED = Underlay("eth0", 1500, NEW, NEW)
DUAL = b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd42::/48", "Backend": {"Type": "vxlan"}}'


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    await cluster.configure()
    return cluster


def lease(agent: Agent, address: str) -> Lease:
    return next(each for each in agent.view.leases().values() if str(each.attrs.public_ip) == address)


async def test_an_address_that_changes_is_published_and_the_others_follow(cluster: Cluster, tmp_path: Path) -> None:
    async with cluster.agent(1) as one, cluster.agent(2) as two:
        await cluster.settle(one)
        await cluster.settle(two)
        before, file = lease(two, "192.0.2.1"), (tmp_path / "1.env").read_text()
        vtep = device(cluster.kernel(1)).mac
        cluster.move(1, MOVED)
        await cluster.clock.run_for(10)
        after = lease(two, str(NEW))
        assert after.subnets == before.subnets
        assert after.create_revision == before.create_revision
        assert device(cluster.kernel(1)).local == NEW.packed
        assert device(cluster.kernel(1)).mac == vtep
        assert on_device(cluster.kernel(2)) == entries(after)
        assert on_device(cluster.kernel(1)) == entries(lease(one, "192.0.2.2"))
        assert (tmp_path / "1.env").read_text() == file


async def test_after_a_restart_the_host_is_still_itself(cluster: Cluster) -> None:
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        before = lease(one, "192.0.2.1")
        cluster.move(1, MOVED)
        await cluster.clock.run_for(10)
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        assert [each.subnets for each in one.view.leases().values()] == [before.subnets]
        assert lease(one, str(NEW)).create_revision == before.create_revision


async def test_without_an_underlay_everything_stays_and_peers_are_still_learnt(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        before, link = lease(one, "192.0.2.1"), device(cluster.kernel(1))
        cluster.move(1, None)
        await cluster.clock.run_for(500)
        assert sum("underlay is gone" in message for message in caplog.messages) == 1
        assert lease(one, "192.0.2.1") == before
        assert device(cluster.kernel(1)) == link
        await cluster.put("10.5.77.0-24", "192.0.2.77", "02:00:00:00:00:77")
        await cluster.clock.run_for(5)
        assert on_device(cluster.kernel(1)) == entries(lease(one, "192.0.2.77"))
        cluster.move(1, MOVED)
        await cluster.clock.run_for(10)
        assert lease(one, str(NEW)).subnets == before.subnets


async def test_the_registry_may_be_away_meanwhile(cluster: Cluster) -> None:
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        cluster.store.fail(10_000)
        cluster.move(1, MOVED)
        await cluster.clock.run_for(60)
        assert device(cluster.kernel(1)).local == NEW.packed
        cluster.store.recover()
        await cluster.clock.run_for(120)
        assert [str(each.attrs.public_ip) for each in one.view.leases().values()] == [str(NEW)]


async def test_connections_that_are_bound_to_the_old_address_hold_nobody_up(cluster: Cluster) -> None:
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        cluster.store.strand()
        cluster.move(1, MOVED)
        await cluster.clock.run_for(2)
        assert [str(each.attrs.public_ip) for each in one.view.leases().values()] == [str(NEW)]


async def test_another_interface_and_mtu(cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster.kernel(1).interfaces.add("wlan0")
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        cluster.move(1, Underlay("wlan0", 1400, NEW, NEW))
        await cluster.clock.run_for(10)
        link = device(cluster.kernel(1))
        assert (link.parent, link.mtu, link.local) == ("wlan0", 1350, NEW.packed)
        assert "FLANNEL_MTU=1350" in (tmp_path / "1.env").read_text()
        assert any("MTU has changed" in message for message in caplog.messages)


async def test_an_mtu_that_is_too_small_changes_nothing(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        link, file = device(cluster.kernel(1)), (tmp_path / "1.env").read_text()
        cluster.move(1, replace(MOVED, mtu=100))
        await cluster.clock.run_for(10)
        assert device(cluster.kernel(1)) == link
        assert (tmp_path / "1.env").read_text() == file
        assert any("cannot be carried" in message for message in caplog.messages)
        cluster.move(1, replace(MOVED, mtu=1400))
        await cluster.clock.run_for(10)
        assert device(cluster.kernel(1)).mtu == 1350


async def test_at_the_start_an_underlay_is_waited_for(cluster: Cluster) -> None:
    async with cluster.agent(1) as one:
        cluster.move(1, None)
        await cluster.clock.run_for(60)
        assert not one.ready.is_set()
        cluster.move(1, MOVED)
        await cluster.settle(one)
        assert device(cluster.kernel(1)).local == NEW.packed


async def test_flapping_is_settled(cluster: Cluster) -> None:
    """A host that changes its address twice a second for a minute does not write to everybody as often."""
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        revision = one.view.revision
        for turn in range(120):
            other = IPv4Address(f"198.51.100.{turn % 2 + 1}")
            cluster.move(1, replace(MOVED, address=other, public_ip=other))
            await cluster.clock.run_for(0.5)
        assert one.view.revision - revision <= 15
        await cluster.clock.run_for(10)
        assert device(cluster.kernel(1)).local == IPv4Address("198.51.100.2").packed


async def test_an_address_is_followed_sooner_than_another_interface(cluster: Cluster) -> None:
    cluster.kernel(1).interfaces.add("wlan0")
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        cluster.move(1, replace(MOVED, interface="wlan0"))
        await cluster.clock.run_for(0.5)
        assert device(cluster.kernel(1)).parent == "eth0", "it may come back"
        cluster.move(1, MOVED)
        await cluster.clock.run_for(0.5)
        assert device(cluster.kernel(1)).local == NEW.packed
        cluster.move(1, replace(MOVED, interface="wlan0"))
        await cluster.clock.run_for(2)
        assert device(cluster.kernel(1)).parent == "wlan0"


async def test_behind_nat_only_the_local_address_is_followed(cluster: Cluster) -> None:
    async with cluster.agent(1) as one:
        public = IPv4Address("203.0.113.9")
        cluster.move(1, replace(MOVED, public_ip=public))
        await cluster.settle(one)
        before = one.view.revision
        other = IPv4Address("198.51.100.8")
        cluster.move(1, replace(MOVED, address=other, public_ip=public))
        await cluster.clock.run_for(10)
        assert device(cluster.kernel(1)).local == other.packed
        assert one.view.revision == before


async def test_in_both_families(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.configure(DUAL)
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        before = lease(one, "192.0.2.1")
        cluster.move(1, replace(MOVED, address6=NEW6, public_ip6=NEW6))
        await cluster.clock.run_for(10)
        after = lease(one, str(NEW))
        assert (after.subnets, after.attrs.public_ip6) == (before.subnets, NEW6)
        link = cluster.kernel(1).links["flannel-v6.1"]
        assert isinstance(link, VxlanLink)
        assert link.local == NEW6.packed


async def test_a_userspace_data_plane_is_replaced(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    await cluster.configure(b'{"Network": "10.5.0.0/16"}')
    await cluster.put_raw("10.5.9.0-24", b'{"PublicIP":"192.0.2.9","PublicIPv6":null}')
    async with cluster.processes(), cluster.agent(1) as one:
        await cluster.settle(one)
        cluster.move(1, replace(MOVED, mtu=1400))
        await cluster.clock.run_for(30)
        process = cluster.datapaths[1, "flannel0"]
        assert process.configured is not None
        assert (process.configured.local, process.configured.mtu) == (NEW.packed, 1372)
        assert len(process.peers) == 1
        assert cluster.kernel(1).links["flannel0"] == TunLink("flannel0", 1372)
        assert "FLANNEL_MTU=1372" in (tmp_path / "1.env").read_text()


async def test_an_interface_that_is_renamed_leaves_the_device_in_use(cluster: Cluster) -> None:
    """`--iface` names one that is not there any more: the device cannot be changed, and its peers still can."""
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        kernel = cluster.kernel(1)
        kernel.interfaces = {"eth9"}
        kernel.meddle_create_link(replace(device(kernel), parent="eth9"))
        cluster.move(1, None)
        await cluster.put("10.5.77.0-24", "192.0.2.77", "02:00:00:00:00:77")
        await cluster.clock.run_for(5)
        assert on_device(kernel) == entries(lease(one, "192.0.2.77"))
        assert DEVICE in kernel.links


INSIDE = b"""{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0",
  "Backend": {"Type": "%s"}}"""
"""flannel's own example (Documentation/configuration.md), whose Network is that of many a data centre as well."""


def inside(cluster: Cluster, number: int) -> None:
    """Let a host be in that data centre."""
    address = IPv4Address(f"10.240.0.{number}")
    cluster.underlays[number] = Underlay("eth0", 1500, address, address)
    entry = Address("eth0", address.packed, 24)
    cluster.kernel(number).tables[entry.key] = entry


@pytest.mark.parametrize(
    ("backend", "datapath"), [("vxlan", "kernel"), ("vxlan", "userspace"), ("host-gw", "auto"), ("udp", "auto")]
)
async def test_hosts_inside_network_are_peers(tmp_path: Path, backend: str, datapath: DatapathChoice) -> None:
    cluster = Cluster(tmp_path)
    await cluster.configure(INSIDE % backend.encode())
    inside(cluster, 1)
    inside(cluster, 2)
    async with cluster.processes(), cluster.agent(1, datapath) as one, cluster.agent(2, datapath) as two:
        await cluster.settle(one)
        await cluster.settle(two)
        for agent in (one, two):
            about = await agent.describe()
            assert (about["peers"], about["rejected_leases"]) == (1, []), backend


async def test_at_a_migration_the_entries_of_hosts_inside_network_stay(tmp_path: Path) -> None:
    cluster, mac, base = Cluster(tmp_path), bytes([2, 0, 0, 0, 0, 2]), bytes([10, 30, 0, 0])
    await cluster.configure(INSIDE % b"vxlan")
    await cluster.put("10.20.0.0-20", "10.240.0.1", "02:00:00:00:00:01")
    await cluster.put("10.30.0.0-20", "10.240.0.2", "02:00:00:00:00:02")
    inside(cluster, 1)
    kernel, local = cluster.kernel(1), bytes([10, 240, 0, 1])
    kernel.meddle_create_link(VxlanLink(DEVICE, 1, 8472, 1450, bytes([2, 0, 0, 0, 0, 1]), "eth0", local, marked=False))
    route = Route(DEVICE, base, 20, base, RTPROT_BOOT)
    flannels: list[Entry] = [Neighbour(DEVICE, base, mac), FdbEntry(DEVICE, mac, bytes([10, 240, 0, 2])), route]
    for entry in flannels:
        kernel.meddle_set(entry)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert [kernel.tables.get(entry.key) for entry in flannels] == flannels


async def test_a_look_that_fails_is_soon_done_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        right, failing = agent._find, [True, True]

        async def find(config: NetworkConfig, overlay: Sequence[Network], keep: Underlay | None) -> Underlay:
            if failing:
                failing.pop()
                raise OSError(24, "Too many open files")
            return await right(config, overlay, keep)

        monkeypatch.setattr(agent, "_find", find)
        cluster.move(1, MOVED)
        await cluster.clock.run_until(lambda: str(lease_address(agent)) == str(NEW), 10)


async def test_a_network_that_an_interface_cannot_carry_is_tried_again(cluster: Cluster) -> None:
    """Its MTU is put right, and no event is about the interface that we are still on."""
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        cluster.move(1, Underlay("eth1", 100, NEW, NEW))
        await cluster.clock.run_for(20)
        cluster.underlays[1] = Underlay("eth1", 1400, NEW, NEW)
        await cluster.clock.run_until(lambda: str(lease_address(agent)) == str(NEW), 90)


async def test_addresses_of_containers_cause_few_looks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        right, looks = agent._find, 0

        async def find(config: NetworkConfig, overlay: Sequence[Network], keep: Underlay | None) -> Underlay:
            nonlocal looks
            looks += 1
            return await right(config, overlay, keep)

        monkeypatch.setattr(agent, "_find", find)
        for number in range(100):
            cluster.kernel(1).meddle_host(f"veth{number}")
            await cluster.clock.run_for(1)
        assert 5 <= looks <= 11
        cluster.move(1, MOVED)
        await cluster.clock.run_until(lambda: str(lease_address(agent)) == str(NEW), 3)


def lease_address(agent: Agent) -> IPv4Address:
    assert agent.keeper.lease is not None
    return agent.keeper.lease.attrs.public_ip
