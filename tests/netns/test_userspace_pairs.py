"""Every kind of packet between two hosts, of which one or both have the userspace data plane.

h1c1 ── h1 (TUN)                ──┐
h2c1 ── h2 (TUN, or VXLAN)      ──┼── core      (the picture: tests/lab/__init__.py)

IPv6 is carried over IPv6 by a device of its own (ipv6.py). "As a NIC without offloads": veth hands on packets uncut and
with unfinished checksums, which no wire does; without its offloads it behaves as the plainest card there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from flanneld_py.encap.datapath.control import messages
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping
from tests.netns.conftest import MakeLab
from tests.netns.ipv6 import containers6, program6
from tests.netns.transfer import datagrams, transfer
from tests.netns.userspace import Userspace

pytestmark = pytest.mark.root

OFFLOADS = (
    "tso",
    "gso",
    "gro",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-checksum-ip-generic",
)
ICMP_AND_IP = {4: 28, 6: 48}
DATAGRAMS = 600

StartUserspace = Callable[..., Userspace]


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(2, overlay="manual")


@pytest.fixture
def userspace(lab: Lab) -> Iterator[StartUserspace]:
    made: list[Userspace] = []

    def start(number: int, version: int = 4) -> Userspace:
        made.append(Userspace(lab, number, messages.Mode.VXLAN, version))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.hang_up()


def switch_offloads_off(lab: Lab, features: Sequence[str] = OFFLOADS) -> None:
    """At both ends of the underlay's cables, and of the containers'."""
    state = [word for feature in features for word in (feature, "off")]
    for host in lab.hosts:
        host.namespace.run(["ethtool", "-K", "eth0", *state])
        lab.core.run(["ethtool", "-K", host.name, *state])
    for container in lab.containers:
        container.namespace.run(["ethtool", "-K", "eth0", *state])


def refused(one: Userspace) -> dict[str, int]:
    """What was dropped, and why."""
    drops = {name: count for name, count in one.status().counters.items() if name.startswith(("in-", "out-"))}
    if one.own.subnet.version == 6:
        drops.pop("out-multicast", None)  # the kernel's own multicast listener reports
    return drops


@pytest.mark.parametrize("plain", [False, True], ids=["as veth is", "as a NIC without offloads"])
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("numbers", [(1, 2), (1,)], ids=["both userspace", "userspace and kernel"])
def test_everything_arrives(
    lab: Lab, userspace: StartUserspace, numbers: Sequence[int], version: int, plain: bool
) -> None:
    if plain:
        switch_offloads_off(lab)
    a, b = _stations(lab, version, numbers)
    planes = [userspace(number, version) for number in numbers]
    largest = planes[0].configuration.mtu - ICMP_AND_IP[version]
    for source, target in ((a, b), (b, a)):
        assert ping(source, target).loss == 0
        assert ping(source, target, payload=largest).loss == 0
        for payload in (largest + 1, 5000, 60_000):
            assert ping(source, target, payload=payload, fragment=True, count=3).loss == 0
    for source, target in ((a, b), (b, a)):
        transfer(source, target, 16 << 20)
        arrivals = datagrams(source, target, DATAGRAMS)
        assert (arrivals.broken, arrivals.repeated) == (0, 0)
        assert arrivals.whole > DATAGRAMS // 2
    assert [refused(plane) for plane in planes] == [{}] * len(planes)


def _stations(lab: Lab, version: int, numbers: Sequence[int]) -> Sequence[Station]:
    if version == 4:
        return lab.containers
    containers = containers6(lab)
    if 2 not in numbers:
        program6(lab, 2)
    return containers
