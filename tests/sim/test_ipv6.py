"""Whole agents in dual stack: each family programs its own device, and neither waits for the other."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from flanneld_py.agent.agent import Agent
from flanneld_py.encap.state import Key, VxlanLink
from tests.sim.cluster import CONFIG, Cluster, device, entries, on_device

IPV6 = b'"EnableIPv6": true, "IPv6Network": "fd00:5::/48", '
DUAL = CONFIG.replace(b'"Backend"', IPV6 + b'"Backend"')
DEVICE6 = "flannel-v6.1"


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    await cluster.configure(DUAL)
    return cluster


def on_device6(cluster: Cluster, number: int) -> set[Key]:
    """Everything on the IPv6 device but our own address."""
    return {key for key in cluster.kernel(number).tables if key[1] == DEVICE6 and key[0] != "address"}


def wanted6(agent: Agent) -> set[Key]:
    """What an agent's lease has to look like on a peer's IPv6 device."""
    (lease,) = [lease for key, lease in agent.view.leases().items() if key == own_key(agent)]
    subnet, data = lease.subnets.v6, lease.attrs.backend_v6_data
    assert subnet is not None
    assert isinstance(data, dict)
    base = subnet.network_address.packed
    mac = bytes.fromhex(str(data["VtepMAC"]).replace(":", ""))
    return {
        ("neighbour", DEVICE6, base, 0),
        ("fdb", DEVICE6, mac, 0),
        ("nexthop", DEVICE6, base, 0),
        ("route", DEVICE6, base, subnet.prefixlen),
    }


def own_key(agent: Agent) -> str:
    held = agent.keeper._held
    assert held is not None
    return agent._registry.key(held.lease.subnets)


async def test_two_agents_reach_each_other_in_both_families(cluster: Cluster) -> None:
    async with cluster.agent(1) as one, cluster.agent(2) as two:
        await cluster.settle(one)
        await cluster.settle(two)
        lease = one.view.leases()[own_key(one)]
        assert lease.attrs.public_ip6 is not None
        assert on_device(cluster.kernel(2)) == entries(lease)
        assert on_device6(cluster, 2) == wanted6(one)
        assert on_device6(cluster, 1) == wanted6(two)
        link = cluster.kernel(1).links[DEVICE6]
        assert isinstance(link, VxlanLink)
        assert (link.mtu, device(cluster.kernel(1)).mtu) == (1430, 1450)


async def test_a_peer_without_ipv6_is_reached_over_ipv4(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert len(on_device(cluster.kernel(1))) == 4
        assert not on_device6(cluster, 1)


async def test_turning_ipv6_on_and_off_keeps_the_ipv4_subnet_and_the_file_tells(
    cluster: Cluster, tmp_path: Path
) -> None:
    def subnets() -> dict[str, str]:
        lines = (tmp_path / "1.env").read_text().splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines) if "SUBNET" in name}

    seen = []
    for config in (CONFIG, DUAL, CONFIG, DUAL.replace(b'{"', b'{"EnableIPv4": false, "', 1)):
        await cluster.configure(config)
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
            seen.append(subnets())
    assert seen[0] == seen[2] == {"FLANNEL_SUBNET": seen[1]["FLANNEL_SUBNET"]}
    assert seen[1].keys() == {"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}
    assert seen[3].keys() == {"FLANNEL_IPV6_SUBNET"}


async def test_a_lost_subnet_is_replaced_in_its_family(cluster: Cluster) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = agent.view.leases()[own_key(agent)].subnets
        name = own_key(agent).rpartition("/")[2]
        await cluster.take_over(name, "192.0.2.99", "02:00:00:00:00:99")
        await cluster.clock.run_for(600)
        after = agent.view.leases()[own_key(agent)].subnets
        assert isinstance(after.v4, IPv4Network)
        assert isinstance(after.v6, IPv6Network)
        assert not after.overlaps(before)
        addresses = {key[2] for key in cluster.kernel(1).tables if key[0] == "address"}
        assert addresses == {after.v4.network_address.packed, after.v6.network_address.packed}
