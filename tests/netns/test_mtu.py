"""Hosts of different MTUs behind a router: containers keep their old MTU, learn what fits, and transfers end.

h1c1 ── h1 ══ 1500 ══ core (router, etcd) ══ 1400 ══ h2 ── h2c1
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_interface

import pytest

from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, throughput
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import Container6
from tests.netns.test_underlay import KINDS, carried, connected, until

pytestmark = pytest.mark.root

SMALL, BEHIND, BEHIND6 = 1400, "10.99.2.2", "2001:db8:99::2"
TOO_BIG = re.compile(r"mtu ?= ?(\d+)")


def move_behind_a_router(lab: Lab, host: Host) -> None:
    """Give a host a link of its own, of another MTU, to the router that the core becomes."""
    lab.core.write_sysctl("net.ipv4.ip_forward", "1")
    lab.core.write_sysctl("net.ipv6.conf.all.forwarding", "1")
    lab.core.ip(
        "addr add 2001:db8:30::ff/64 dev br0 nodad",
        f"link set {host.name} nomaster",
        f"link set {host.name} mtu {SMALL} up",
        f"addr add 10.99.2.1/24 dev {host.name}",
        f"addr add 2001:db8:99::1/64 dev {host.name} nodad",
    )
    host.namespace.ip(
        "addr flush dev eth0 scope global",
        f"link set eth0 mtu {SMALL}",
        f"addr add {BEHIND}/24 dev eth0",
        f"addr add {BEHIND6}/64 dev eth0 nodad",
        "route add default via 10.99.2.1",
        "route add ::/0 via 2001:db8:99::1",
    )


def told(source: Container | Container6, target: Container | Container6, size: int) -> set[str]:
    """What a container is told the largest packet is, when it sends packets of `size` bytes that must stay whole."""
    payload = size - (28 if target.address.version == 4 else 48)
    command = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(payload), str(target.address)]
    done = source.namespace.run(command, check=False)
    return set(TOO_BIG.findall(done.stdout + done.stderr))


@KINDS
def test_ipv4(make_lab: MakeLab, kind: str) -> None:
    with carried(make_lab, kind) as lab:
        move_behind_a_router(lab, lab.hosts[1])
        until(lambda: lab.hosts[1].agent.subnet_env()["FLANNEL_MTU"] == "1350", "the MTU is followed")
        connected(lab)
        one, two = lab.containers
        until(lambda: told(two, one, 1450) == {"1350"}, "ICMP says what fits")
        assert ping(two, one, payload=1350 - 28).received
        assert ping(one, two, payload=1350 - 28).received
        assert throughput(one, two) > 0
        assert throughput(two, one) > 0


def test_ipv6(make_lab: MakeLab) -> None:
    config = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
    lab = make_lab(hosts=2, overlay="none", config=config)
    for number, host in enumerate(lab.hosts, 1):
        host.namespace.write_sysctl("net.ipv6.conf.all.forwarding", "1")
        host.namespace.ip(f"addr add 2001:db8:30::{number}/64 dev eth0 nodad")
        host.agent.start()
    containers = []
    for host in lab.hosts:
        host.agent.wait_ready()
        lab.attach(host)
        containers.append(inhabit(host))
    lab.hosts[0].namespace.ip("route add ::/0 via 2001:db8:30::ff")
    one, two = containers
    until(lambda: ping(one, two, count=1, patience=0.3).received, "IPv6")
    move_behind_a_router(lab, lab.hosts[1])
    until(lambda: lab.hosts[1].agent.subnet_env()["FLANNEL_MTU"] == "1330", "the MTU is followed")
    until(lambda: ping(one, two, count=1, patience=0.3).received, "IPv6 again")
    until(lambda: told(two, one, 1430) == {"1330"}, "the own host's device says what fits")
    until(lambda: told(one, two, 1430) == {"1330"}, "the router's error about the tunnel reaches the container")
    assert ping(one, two, payload=1330 - 48).received
    assert throughput(one, two) > 0
    assert throughput(two, one) > 0


def inhabit(host: Host) -> Container6:
    """Give a host's container an address of its IPv6 subnet."""
    router = ip_interface(host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"])
    address = router.ip + 1
    assert isinstance(address, IPv6Address)
    host.namespace.ip(f"addr add {router} dev cni0 nodad", "addr add fe80::1/64 dev cni0 nodad")
    container = host.containers[0]
    container.namespace.ip(
        f"addr add {address}/{router.network.prefixlen} dev eth0 nodad", f"route add ::/0 via {router.ip} dev eth0"
    )
    return Container6(container.name, container.namespace, address)
