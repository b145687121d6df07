"""A hop of the underlay that is narrower than the interfaces: over IPv6, where no router fragments, and over IPv4.

h1c1 ── h1 ── core (a router to each host, 1400 bytes at the most) ── h2 ── h2c1
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flanneld_py.encap.datapath.control import messages
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping
from tests.netns.conftest import MakeLab
from tests.netns.ipv6 import containers6
from tests.netns.transfer import transfer
from tests.netns.userspace import UNDERLAY6, Userspace, ends6

pytestmark = pytest.mark.root

HOP = 1400
LARGE = 1300
"""Bytes of a ping's payload: with its headers more than the hop carries in one piece, in each mode."""


def narrow(lab: Lab) -> None:
    """Have the hosts reach each other over IPv4 and IPv6 by the core alone, which passes on no more than HOP bytes."""
    router6 = UNDERLAY6[1]
    lab.core.write_sysctl("net.ipv6.conf.all.forwarding", "1")
    lab.core.write_sysctl("net.ipv4.ip_forward", "1")
    lab.core.write_sysctl("net.ipv4.conf.all.send_redirects", "0")
    lab.core.write_sysctl("net.ipv4.conf.br0.send_redirects", "0")
    lab.core.ip(
        f"addr add {router6}/{UNDERLAY6.prefixlen} dev br0 nodad",
        "addr add fe80::1/64 dev br0 nodad",  # who forwards asks for neighbours from a link-local address
    )
    ends = ends6(lab)
    for host, end in zip(lab.hosts, ends, strict=True):
        lab.core.ip(f"route add {end.underlay} dev br0 mtu {HOP}", f"route add {host.address} dev br0 mtu {HOP}")
    for host, other, end in ((lab.hosts[0], lab.hosts[1], ends[1]), (lab.hosts[1], lab.hosts[0], ends[0])):
        host.namespace.ip(
            f"route add {end.underlay} via {router6} dev eth0",
            f"route add {other.address} via {lab.plan.gateway} dev eth0",
        )


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(2, overlay="manual")


@pytest.fixture
def planes(lab: Lab) -> Iterator[list[Userspace]]:
    """Filled by the test, hung up on at its end."""
    made: list[Userspace] = []
    yield made
    for plane in made:
        plane.hang_up()


@pytest.mark.parametrize(("version", "mode"), [(4, messages.Mode.VXLAN), *((6, mode) for mode in messages.Mode)])
def test_tcp_learns_of_it_and_nothing_large_is_lost_for_long(
    lab: Lab, planes: list[Userspace], mode: messages.Mode, version: int
) -> None:
    every = containers6(lab)
    stations: list[Station] = [*every] if version == 6 else [*lab.containers]
    narrow(lab)
    a, b = stations
    for number in (1, 2):
        planes.append(Userspace(lab, number, mode, version))
        planes[-1].start()
    assert ping(a, b, payload=1000).loss == 0
    transfer(a, b, 8 << 20)
    if version == 6:
        # Whoever sends too much at once has been told; what goes alone is fragmented where it is encapsulated.
        assert (
            f"mtu {HOP - (70 if mode is messages.Mode.VXLAN else 48)}"
            in a.namespace.run(["ip", "-6", "route", "get", str(b.address)]).stdout
        )
        assert planes[0].count("out-too-big") > 0
        assert planes[0].status().segmentation
    assert ping(b, a, payload=LARGE, count=2).received, "the first may be lost to learning"
    assert ping(b, a, payload=LARGE).loss == 0
    transfer(b, a, 8 << 20)
