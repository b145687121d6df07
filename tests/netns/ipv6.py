"""IPv6 beside a lab's IPv4: addresses of hosts and containers, and by hand the kernel's VXLAN as flannel has it.

container fd00:42:0:n::2 ── cni0 fd00:42:0:n::1 ── host n ── flannel-v6.1 ── eth0 fd00:30::1n ── underlay

The subnets are those of the overlay by hand (`containers6`), or what the agents have leased (`underlay6` before they
start, `attach6` after).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from tests.lab.host import Host
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


def underlay6(lab: Lab) -> None:
    """Give the hosts IPv6 addresses on the underlay."""
    for host, end in zip(lab.hosts, ends6(lab), strict=True):
        host.namespace.write_sysctl("net.ipv6.conf.all.forwarding", "1")
        host.namespace.ip(f"addr add {end.underlay}/{UNDERLAY6.prefixlen} dev eth0 nodad")


def attach6(lab: Lab, hosts: Sequence[Host] | None = None) -> list[Container6]:
    """Make the containers of all hosts, or of these, from the agents' subnet files: both families, or IPv6 alone.

    Without IPv4 in the overlay they have IPv4 addresses that lead nowhere.
    """
    made = []
    for host in lab.hosts if hosts is None else hosts:
        env = host.agent.subnet_env()
        mtu = int(env["FLANNEL_MTU"])
        host.attach(lab.run, 1, IPv4Interface(env.get("FLANNEL_SUBNET", "192.168.99.1/24")), mtu)
        made.append(_address(host, IPv6Interface(env["FLANNEL_IPV6_SUBNET"]), mtu))
    return made


def _addressed(lab: Lab) -> Iterator[Container6]:
    underlay6(lab)
    for host, end in zip(lab.hosts, ends6(lab), strict=True):
        yield _address(host, IPv6Interface((int(end.subnet[1]), end.subnet.prefixlen)), end.mtu)


def _address(host: Host, router: IPv6Interface, mtu: int) -> Container6:
    length, container = router.network.prefixlen, host.containers[0]
    host.namespace.ip(
        f"addr add {router} dev cni0 nodad",
        "addr add fe80::1/64 dev cni0 nodad",  # who forwards asks for neighbours from a link-local address
        f"link set cni0 mtu {mtu}",
    )
    container.namespace.ip(
        f"link set eth0 mtu {mtu}",
        f"addr add {router.ip + 1}/{length} dev eth0 nodad",
        f"route add default via {router.ip} dev eth0",
    )
    return Container6(container.name, container.namespace, router.ip + 1)


def program6(lab: Lab, number: int) -> None:
    """Make the kernel's VXLAN device for IPv6 on a host, with the entries for all others."""
    vteps = [Vtep(end.underlay, end.mac, end.subnet) for end in ends6(lab)]
    own = vteps[number - 1]
    program(lab.hosts[number - 1].namespace, own, [vtep for vtep in vteps if vtep != own])
