"""Dual stack whose packets are carried in userspace: each family has a device, a process and peers of its own."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from flanneld_py.encap.family import IPV4, IPV6, Family
from flanneld_py.encap.state import Address, Route, TunLink
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Lease
from tests.sim.cluster import Cluster

FAMILIES = '"EnableIPv6": true, "IPv6Network": "fd00:5::/48"'
VXLAN = f'{{"Network": "10.5.0.0/16", {FAMILIES}, "Backend": {{"Type": "vxlan"}}}}'
UDP = f'{{"Network": "10.5.0.0/16", {FAMILIES}, "Backend": {{"Type": "udp"}}}}'
DEVICES = {VXLAN: {IPV4: "flannel.1", IPV6: "flannel-v6.1"}, UDP: {IPV4: "flannel0", IPV6: "flannel0-v6"}}
MTUS = {VXLAN: {IPV4: 1450, IPV6: 1430}, UDP: {IPV4: 1472, IPV6: 1452}}
LEASE = b'{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}'
both_backends = pytest.mark.parametrize("config", [VXLAN, UDP], ids=["vxlan", "udp"])
either_family = pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def peers(cluster: Cluster, number: int, device: str) -> set[tuple[str, str]]:
    """Subnet base and underlay address of the peers that a data plane has."""
    found = cluster.datapaths[number, device].peers.values()
    return {(str(ip_address(peer.subnet)), str(ip_address(peer.address))) for peer in found}


def shown(lease: Lease, family: Family) -> tuple[str, str]:
    subnet, address = family.subnet(lease.subnets), family.public(lease.attrs)
    assert subnet is not None
    return str(subnet.network_address), str(address)


@both_backends
async def test_hosts_find_each_other_in_both_families(cluster: Cluster, tmp_path: Path, config: str) -> None:
    await cluster.configure(config.encode())
    async with (
        cluster.processes(),
        cluster.agent(1, "userspace") as one,
        cluster.agent(2, "userspace") as two,
    ):
        await cluster.settle(one)
        await cluster.settle(two)
        leases = {str(lease.attrs.public_ip6): lease for lease in one.view.leases().values()}
        for number, other in ((1, 2), (2, 1)):
            own = leases[f"2001:db8::{number}"]
            kernel = cluster.kernel(number)
            assert kernel.links == {
                DEVICES[config][family]: TunLink(DEVICES[config][family], MTUS[config][family])
                for family in (IPV4, IPV6)
            }
            for family, device in DEVICES[config].items():
                assert peers(cluster, number, device) == {shown(leases[f"2001:db8::{other}"], family)}
                configured = cluster.datapaths[number, device].configured
                assert configured is not None
                assert (configured.subnets, configured.workers) == ((family.subnet(own.subnets),), number)
                assert len(configured.local) == family.bits // 8
                (address,) = [entry for entry in kernel.tables.values() if entry.key[:2] == ("address", device)]
                assert address == Address(device, configured.subnets[0].network_address.packed, family.bits)
            assert f"FLANNEL_MTU={MTUS[config][IPV6]}" in (tmp_path / f"{number}.env").read_text()


async def test_the_macs_of_the_lease_are_those_of_the_processes(cluster: Cluster) -> None:
    await cluster.configure(VXLAN.encode())
    async with cluster.processes(), cluster.agent(1, "userspace") as agent:
        await cluster.settle(agent)
        (lease,) = agent.view.leases().values()
        for family, device in DEVICES[VXLAN].items():
            configured, data = cluster.datapaths[1, device].configured, family.data(lease.attrs)
            assert configured is not None
            assert isinstance(data, dict)
            assert configured.mac.hex(":") == data["VtepMAC"]


async def test_udp_has_one_route_for_all_of_ipv6(cluster: Cluster) -> None:
    await cluster.configure(UDP.encode())
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        routes = {entry for entry in cluster.kernel(1).tables.values() if isinstance(entry, Route)}
        assert routes == {
            Route("flannel0", bytes([10, 5, 0, 0]), 16, None),
            Route("flannel0-v6", bytes.fromhex("fd000005") + bytes(12), 48, None),
        }


@both_backends
async def test_ipv6_alone(cluster: Cluster, tmp_path: Path, config: str) -> None:
    await cluster.configure(config.replace("{", '{"EnableIPv4": false, ', 1).encode())
    async with (
        cluster.processes(),
        cluster.agent(1, "userspace") as one,
        cluster.agent(2, "userspace") as two,
    ):
        await cluster.settle(one)
        await cluster.settle(two)
        device = DEVICES[config][IPV6]
        assert cluster.kernel(1).links.keys() == {device}
        assert {address for _, address in peers(cluster, 1, device)} == {"2001:db8::2"}
        assert "FLANNEL_SUBNET" not in (tmp_path / "1.env").read_text()
        document = await one.describe()
        assert document["userspace"] is None
        assert document["userspace_ipv6"]


async def test_a_host_of_flannels_is_a_peer_over_ipv4_alone(cluster: Cluster) -> None:
    """Its udp publishes no IPv6 address, whatever it has leased."""
    await cluster.configure(UDP.encode())
    await cluster.put_raw("10.5.9.0-24&fd00:5:0:9::-64", LEASE.replace(b'"2001:db8::9"', b"null"))
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert peers(cluster, 1, "flannel0") == {("10.5.9.0", "192.0.2.9")}
        assert peers(cluster, 1, "flannel0-v6") == set()


async def test_a_restart_finds_both_processes_running(cluster: Cluster) -> None:
    await cluster.configure(UDP.encode())
    await cluster.put_raw("10.5.9.0-24&fd00:5:0:9::-64", LEASE)
    async with cluster.processes():
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
        processes, tables = dict(cluster.datapaths), dict(cluster.kernel(1).tables)
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
            assert cluster.datapaths == processes
            assert peers(cluster, 1, "flannel0-v6") == {("fd00:5:0:9::", "2001:db8::9")}
            assert cluster.kernel(1).tables == tables


@either_family
async def test_the_death_of_one_process_leaves_the_other_family_alone(cluster: Cluster, family: Family) -> None:
    await cluster.configure(UDP.encode())
    await cluster.put_raw("10.5.9.0-24&fd00:5:0:9::-64", LEASE)
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        before, tables = dict(cluster.datapaths), dict(cluster.kernel(1).tables)
        victim = DEVICES[UDP][family]
        await cluster.crash(1, victim)
        await cluster.settle(agent)
        for key, process in cluster.datapaths.items():
            assert (process is before[key]) == (key[1] != victim)
        assert len(peers(cluster, 1, victim)) == 1
        assert cluster.kernel(1).tables == tables


async def test_the_status_shows_each_process(cluster: Cluster) -> None:
    await cluster.configure(UDP.encode())
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        document = await agent.describe()
        ipv4, ipv6 = document["userspace"], document["userspace_ipv6"]
        assert isinstance(ipv4, dict)
        assert isinstance(ipv6, dict)
        assert (ipv4["served"], ipv6["served"]) == (True, True)
        assert len(ipv4["peers"]) == 1
        assert ipv6["peers"] == []


async def test_a_lost_ipv6_subnet_is_replaced_in_its_process(cluster: Cluster) -> None:
    await cluster.configure(VXLAN.encode())
    async with cluster.processes(), cluster.agent(1, "userspace") as agent:
        await cluster.settle(agent)
        ((key, lost),) = agent.view.leases().items()
        await cluster.take_over(key.rpartition("/")[2], "192.0.2.99", "02:00:00:00:00:99")
        await cluster.clock.run_for(600)
        (mine,) = [lease for lease in agent.view.leases().values() if str(lease.attrs.public_ip) == "192.0.2.1"]
        assert not mine.subnets.overlaps(lost.subnets)
        for family, device in DEVICES[VXLAN].items():
            configured = cluster.datapaths[1, device].configured
            assert configured is not None
            assert configured.subnets == (family.subnet(mine.subnets),)


async def test_an_emptied_registry_takes_no_peer_from_either_family(cluster: Cluster) -> None:
    await cluster.configure(UDP.encode())
    await cluster.put_raw("10.5.9.0-24&fd00:5:0:9::-64", LEASE)
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        cluster.store.replace()
        await cluster.settle(agent)
        assert [len(peers(cluster, 1, device)) for device in DEVICES[UDP].values()] == [1, 1]
        await cluster.clock.run_for(TTL + 60)
        assert [len(peers(cluster, 1, device)) for device in DEVICES[UDP].values()] == [0, 0]
