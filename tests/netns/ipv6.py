"""IPv6 beside a lab's IPv4, by hand: addresses of hosts and containers, and the kernel's VXLAN as flannel has it.

container fd00:42:0:n::2 ── cni0 fd00:42:0:n::1 ── host n ── flannel-v6.1 ── eth0 fd00:30::1n ── underlay
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from tests.lab.lab import Lab
from tests.lab.manual import Vtep, program
from tests.lab.namespace import Namespace
from tests.netns.userspace import UNDERLAY6, ends6


@dataclass(frozen=True, slots=True)
class Container6:
    """A container by its IPv6 address."""

    name: str
    namespace: Namespace
    address: IPv6Address


def containers6(lab: Lab) -> list[Container6]:
    """Give hosts and their first containers IPv6 addresses, which need no detection of duplicates."""
    return list(_addressed(lab))


def _addressed(lab: Lab) -> Iterator[Container6]:
    for host, end in zip(lab.hosts, ends6(lab), strict=True):
        router, address = end.subnet[1], end.subnet[2]
        assert isinstance(address, IPv6Address)
        host.namespace.write_sysctl("net.ipv6.conf.all.forwarding", "1")
        host.namespace.ip(
            f"addr add {end.underlay}/{UNDERLAY6.prefixlen} dev eth0 nodad",
            f"addr add {router}/{end.subnet.prefixlen} dev cni0 nodad",
            "addr add fe80::1/64 dev cni0 nodad",  # who forwards asks for neighbours from a link-local address
            f"link set cni0 mtu {end.mtu}",
        )
        container = host.containers[0]
        container.namespace.ip(
            f"link set eth0 mtu {end.mtu}",
            f"addr add {address}/{end.subnet.prefixlen} dev eth0 nodad",
            f"route add default via {router} dev eth0",
        )
        yield Container6(container.name, container.namespace, address)


def program6(lab: Lab, number: int) -> None:
    """Make the kernel's VXLAN device for IPv6 on a host, with the entries for all others."""
    vteps = [Vtep(end.underlay, end.mac, end.subnet) for end in ends6(lab)]
    own = vteps[number - 1]
    program(lab.hosts[number - 1].namespace, own, [vtep for vtep in vteps if vtep != own])
