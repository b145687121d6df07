"""A cluster on flannel's udp backend: the peers are in the data planes, the kernels have one route each."""

from __future__ import annotations

from pathlib import Path

import pytest

from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.state import Address, Route, TunLink
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Lease
from tests.sim.cluster import Cluster

CONFIG = b'{"Network": "10.5.0.0/16"}'
DEVICE = "flannel0"
LEASE = b'{"PublicIP":"192.0.2.9","PublicIPv6":null}'


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    await cluster.configure(CONFIG)
    return cluster


def peers(cluster: Cluster, number: int) -> set[tuple[str, str]]:
    """Subnet base and underlay address of the peers that a host's data plane has."""
    found = cluster.datapaths[number, DEVICE].peers.values()
    return {(".".join(map(str, peer.subnet)), ".".join(map(str, peer.address))) for peer in found}


def shown(lease: Lease) -> tuple[str, str]:
    return str(lease.subnets.v4.network_address), str(lease.attrs.public_ip)


async def test_hosts_find_each_other(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.processes(), cluster.agent(1) as one, cluster.agent(2) as two:
        await cluster.settle(one)
        await cluster.settle(two)
        leases = one.view.leases()
        assert len(leases) == 3
        for number in (1, 2):
            own = next(lease for lease in leases.values() if str(lease.attrs.public_ip) == f"192.0.2.{number}")
            assert own.attrs.backend_type == ""
            assert own.attrs.backend_data is None
            assert peers(cluster, number) == {shown(lease) for lease in leases.values() if lease is not own}
            configured = cluster.datapaths[number, DEVICE].configured
            assert configured is not None
            assert (configured.mode, configured.subnets) == (messages.Mode.RAW, (own.subnets.v4,))
            kernel = cluster.kernel(number)
            assert kernel.links == {DEVICE: TunLink(DEVICE, 1472)}
            assert set(kernel.tables.values()) == {
                Address(DEVICE, own.subnets.v4.network_address.packed, 32),
                Route(DEVICE, bytes([10, 5, 0, 0]), 16, None),
            }
            assert "FLANNEL_MTU=1472" in (tmp_path / f"{number}.env").read_text()


async def test_what_changes_reaches_a_data_plane_that_runs(cluster: Cluster) -> None:
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert peers(cluster, 1) == set()
        await cluster.put_raw("10.5.9.0-24", LEASE)
        await cluster.clock.run_until(lambda: peers(cluster, 1) == {("10.5.9.0", "192.0.2.9")}, 1)
        await cluster.put_raw("10.5.9.0-24", LEASE.replace(b"2.9", b"2.7"))
        await cluster.clock.run_until(lambda: peers(cluster, 1) == {("10.5.9.0", "192.0.2.7")}, 1)
        await cluster.delete("10.5.9.0-24")
        await cluster.clock.run_until(lambda: peers(cluster, 1) == set(), 1)


async def test_a_restart_finds_its_data_plane_running(cluster: Cluster) -> None:
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.processes():
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
        process, tables = cluster.datapaths[1, DEVICE], dict(cluster.kernel(1).tables)
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
            assert cluster.datapaths[1, DEVICE] is process
            assert peers(cluster, 1) == {("10.5.9.0", "192.0.2.9")}
            assert cluster.kernel(1).tables == tables


async def test_a_route_that_somebody_deletes_is_back(cluster: Cluster) -> None:
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel, before = cluster.kernel(1), dict(cluster.kernel(1).tables)
        kernel.meddle_flush("route", DEVICE)
        await cluster.clock.run_until(lambda: kernel.tables == before, 1)


async def test_a_lost_subnet_means_a_new_one_in_kernel_and_data_plane(cluster: Cluster) -> None:
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        ((key, lost),) = agent.view.leases().items()
        await cluster.take_over(key.rpartition("/")[2], "192.0.2.77", "02:00:00:00:00:77")
        await cluster.settle(agent)
        (mine,) = [lease for lease in agent.view.leases().values() if str(lease.attrs.public_ip) == "192.0.2.1"]
        assert mine.subnets != lost.subnets
        configured = cluster.datapaths[1, DEVICE].configured
        assert configured is not None
        assert configured.subnets == (mine.subnets.v4,)
        assert peers(cluster, 1) == {(str(lost.subnets.v4.network_address), "192.0.2.77")}
        addresses = {key[2] for key in cluster.kernel(1).tables if key[0] == "address"}
        assert addresses == {mine.subnets.v4.network_address.packed}


async def test_an_emptied_registry_takes_no_peer_from_a_data_plane_for_a_day(cluster: Cluster) -> None:
    for number in (8, 9):
        await cluster.put_raw(f"10.5.{number}.0-24", LEASE.replace(b"2.9", b"2.%d" % number))
    both = {("10.5.8.0", "192.0.2.8"), ("10.5.9.0", "192.0.2.9")}
    async with cluster.processes(), cluster.agent(1) as agent:
        await cluster.settle(agent)
        cluster.store.replace()
        await cluster.settle(agent)
        assert len(agent.view.leases()) == 1, "our own lease is back"
        assert peers(cluster, 1) == both
        await cluster.put_raw("10.5.9.0-24", LEASE)
        await cluster.settle(agent)
        await cluster.delete("10.5.9.0-24")
        await cluster.settle(agent)
        assert peers(cluster, 1) == {("10.5.8.0", "192.0.2.8")}, "a peer that came back and left is an ordinary one"
        await cluster.crash(1, DEVICE)
        await cluster.settle(agent)
        assert peers(cluster, 1) == {("10.5.8.0", "192.0.2.8")}, "another process is told of it too"


async def test_a_restart_finds_an_empty_registry_and_takes_no_peer_from_a_data_plane(cluster: Cluster) -> None:
    await cluster.put_raw("10.5.9.0-24", LEASE)
    async with cluster.processes():
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
        cluster.store.replace()
        await cluster.configure(CONFIG)
        async with cluster.agent(1) as agent:
            await cluster.put_raw("10.5.8.0-24", LEASE.replace(b"2.9", b"2.8"))
            await cluster.settle(agent)
            assert peers(cluster, 1) == {("10.5.8.0", "192.0.2.8"), ("10.5.9.0", "192.0.2.9")}
            await cluster.clock.run_until(lambda: peers(cluster, 1) == {("10.5.8.0", "192.0.2.8")}, TTL + 60)
