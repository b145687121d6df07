"""What an earlier run left, by the word of the subnet file: ours goes, a neighbour agent's stays."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from flanneld_py.agent.lock import Held
from flanneld_py.agent.signature import Signature, sign
from flanneld_py.encap.family import Network
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.state import Address, Entry, Neighbour, Route, VxlanLink
from tests.fakes.kernel import FakeKernel
from tests.sim.cluster import DEVICE, PREFIX, Cluster, entries

EARLIER = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
ITS_ADDRESS = Address("flannel.2", bytes([10, 42, 7, 0]), 32)
ITS_ROUTE = Route("flannel.2", bytes([10, 42, 9, 0]), 24, bytes([10, 42, 9, 0]))
DIRECT = Route("eth1", bytes([10, 42, 8, 0]), 24, bytes([198, 51, 100, 8]))


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    await cluster.configure()
    return cluster


def earlier(tmp_path: Path, prefix: str) -> None:
    """Host 1's subnet file, written by the agent of a network."""
    file = tmp_path / "1.env"
    file.write_text(EARLIER)
    sign(file, Signature(prefix))


def left(kernel: FakeKernel) -> set[Entry]:
    """A device flannel.2 in the subnet of that file, and a direct route over another interface into its Network."""
    kernel.meddle_create_link(VxlanLink("flannel.2", 2, 8472, 1450, bytes([2, 0, 0, 0, 0, 7]), "eth0", None))
    found: set[Entry] = {ITS_ADDRESS, ITS_ROUTE, DIRECT}
    for entry in found:
        kernel.meddle_set(entry)
    return found


def there(kernel: FakeKernel) -> set[Entry]:
    return {entry for entry in kernel.tables.values() if entry in (ITS_ADDRESS, ITS_ROUTE, DIRECT)}


async def test_what_our_own_earlier_run_left_goes(cluster: Cluster, tmp_path: Path) -> None:
    earlier(tmp_path, PREFIX)
    left(kernel := cluster.kernel(1))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert there(kernel) == set()
        assert set(kernel.links) == {DEVICE}


async def test_a_running_neighbour_keeps_its_own_though_our_file_was_its_once(cluster: Cluster, tmp_path: Path) -> None:
    earlier(tmp_path, PREFIX)
    cluster.locks.neighbours = Held(["device flannel.2", "10.42.0.0/16 of process 7"])
    everything = left(kernel := cluster.kernel(1))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert there(kernel) == everything
        assert set(kernel.links) == {DEVICE, "flannel.2"}


async def test_a_stopped_neighbour_keeps_its_own_though_it_was_given_our_file(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier(tmp_path, "/net2")
    everything = left(kernel := cluster.kernel(1))
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert there(kernel) == everything
        assert set(kernel.links) == {DEVICE, "flannel.2"}
    assert "the subnet file is another network's" in caplog.text


@pytest.mark.parametrize("whose", ["/net2", PREFIX])
async def test_a_stopped_neighbour_keeps_its_direct_routes_inside_a_wider_earlier_network_of_ours(
    cluster: Cluster, tmp_path: Path, whose: str
) -> None:
    """Its own subnet file is beside ours, and tells which part of that network is its."""
    earlier(tmp_path, PREFIX)
    own, beside = tmp_path / "1.env", tmp_path / "net2.env"
    own.write_text(EARLIER.replace("10.42.7.1", "10.43.7.1"))
    sign(own, Signature(PREFIX))
    beside.write_text(EARLIER.replace("10.0.0.0/8", "10.42.0.0/16"))
    sign(beside, Signature(whose))
    (tmp_path / "garbled.env").write_bytes(b"\xff\0FLANNEL_NETWORK=10.0.0.0/8")
    (tmp_path / "folder.env").mkdir()
    left(kernel := cluster.kernel(1))
    formerly_ours = Route("eth1", bytes([10, 44, 8, 0]), 24, bytes([198, 51, 100, 8]))
    kernel.meddle_set(formerly_ours)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kept = {ITS_ADDRESS, ITS_ROUTE, *([DIRECT] if whose == "/net2" else [])}
        assert there(kernel) == kept
        assert formerly_ours not in kernel.tables.values()


@pytest.mark.parametrize("signed", [True, False])
async def test_another_network_leaves_no_address_of_the_former_on_our_device(
    cluster: Cluster, tmp_path: Path, signed: bool
) -> None:
    """The first address of a device is the source of what the host sends by it; flannel's may be there as well."""
    kernel, former = cluster.kernel(1), Address(DEVICE, bytes([10, 42, 7, 0]), 32)
    (tmp_path / "1.env").write_text(EARLIER.replace("10.0.0.0/8", "10.42.0.0/16"))
    if signed:
        earlier(tmp_path, PREFIX)
    operators = Address(DEVICE, bytes([10, 42, 7, 9]), 32), Neighbour(DEVICE, bytes([192, 168, 9, 9]), bytes([2] * 6))
    kernel.meddle_create_link(VxlanLink(DEVICE, 1, 8472, 1450, bytes([2, 0, 0, 0, 0, 1]), "eth0", None))
    for entry in (former, Neighbour(DEVICE, bytes([10, 42, 9, 0]), bytes([2, 0, 0, 0, 0, 9])), *operators):
        kernel.meddle_set(entry)
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        (lease,) = [each for each in agent.view.leases().values() if str(each.attrs.public_ip) == "192.0.2.9"]
        own = agent.wanted[0].own.subnets.v4
        wanted = {*entries(lease).values(), Address(DEVICE, own.network_address.packed, 32), *operators}
        assert set(kernel.tables.values()) == wanted


async def test_a_table_that_cannot_be_read_is_read_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier(tmp_path, PREFIX)
    left(kernel := cluster.kernel(1))
    right, refusals = kernel.devices_in, ["once", "twice"]

    def devices_in(subnets: Collection[Network]) -> list[str]:
        if refusals:
            raise KernelError(f"others change the kernel's tables, {refusals.pop()}")
        return right(subnets)

    monkeypatch.setattr(kernel, "devices_in", devices_in)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert set(kernel.links) == {DEVICE}
