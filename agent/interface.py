"""Choose the underlay interface and address, as flannel does (its flags, its order); facts from the kernel by pyroute2.

    no --iface, --iface-regex or --iface-can-reach:
        --public-ip given and on an interface: that one       (flannel fails if it is on none: NAT)
        else the interface of the default route
    otherwise the first that fits of: each --iface, each --iface-regex, --iface-can-reach

`choose` is pure; `read_host` asks the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

IFA_F_SECONDARY = 0x01  # linux/if_addr.h; for IPv4 "secondary", the same bit as IPv6's "temporary"
IFA_F_DEPRECATED = 0x20
IFA_F_PERMANENT = 0x80
SCOPE_GLOBAL = 0  # linux/rtnetlink.h: rt_scope_t
SCOPE_LINK = 253
RTF_UP = 0x0001  # linux/route.h
RTF_REJECT = 0x0200


class NoInterface(Exception):
    """No interface fits; the text says what was looked for, and what there is."""


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface; flags and scope as the kernel has them."""

    address: IPv4Address
    scope: int = SCOPE_GLOBAL
    flags: int = IFA_F_PERMANENT


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the host; `mtu` in bytes."""

    name: str
    index: int
    mtu: int
    mac: bytes
    addresses: tuple[InterfaceAddress, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """What selection needs to know: interfaces in index order, and where two routes lead, None where there is no such.

    `default` names the interface of the default route; `reach` is the index of the one that leads to
    --iface-can-reach, with the source address the kernel would use.
    """

    interfaces: tuple[Interface, ...]
    default: str | None
    reach: tuple[int, IPv4Address | None] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen interface, our address on it, and the address for the others to send to."""

    interface: Interface
    address: IPv4Address
    public_ip: IPv4Address


def choose(
    host: Host,
    names: Sequence[str],
    regexes: Sequence[str],
    can_reach: IPv4Address | None,
    public_ip: IPv4Address | None,
) -> Choice:
    """Choose the underlay. Raises NoInterface."""
    for wanted in names:
        found = _by_address(host, wanted) or _by_name(host, wanted)
        if found is not None:
            return _choice(*found, public_ip)
    for pattern in regexes:
        found = _by_regex(host, re.compile(pattern))
        if found is not None:
            return _choice(*found, public_ip)
    if can_reach is not None and host.reach is not None:
        index, source = host.reach
        for interface in host.interfaces:
            if interface.index == index and (address := source or best_address(interface)) is not None:
                return _choice(interface, address, public_ip)
    if names or regexes or can_reach is not None:
        asked = [*names, *(f"/{pattern}/" for pattern in regexes), *([f"route to {can_reach}"] if can_reach else [])]
        raise NoInterface(f"no interface with an IPv4 address matches {', '.join(asked)}; there are: {_overview(host)}")
    if public_ip is not None and (found := _by_address(host, str(public_ip))) is not None:
        return _choice(*found, public_ip)
    for interface in host.interfaces:
        if interface.name == host.default and (address := best_address(interface)) is not None:
            return _choice(interface, address, public_ip)
    raise NoInterface(
        f"no default route over an interface with an IPv4 address; give --iface. There are: {_overview(host)}"
    )


def best_address(interface: Interface) -> IPv4Address | None:
    """Return the address flannel would take: not deprecated, global before link-local, permanent before dynamic."""
    usable = [
        entry
        for entry in interface.addresses
        if not entry.flags & IFA_F_DEPRECATED
        and entry.scope in (SCOPE_GLOBAL, SCOPE_LINK)
        and not entry.address.is_loopback
    ]
    usable.sort(key=lambda a: (a.scope != SCOPE_GLOBAL, not a.flags & IFA_F_PERMANENT, bool(a.flags & IFA_F_SECONDARY)))
    return usable[0].address if usable else None


def _choice(interface: Interface, address: IPv4Address, public_ip: IPv4Address | None) -> Choice:
    if interface.mtu == 0:
        raise NoInterface(
            f"interface {interface.name} has an MTU of 0; set one with: ip link set {interface.name} mtu 1500"
        )
    return Choice(interface, address, public_ip or address)


def _by_address(host: Host, wanted: str) -> tuple[Interface, IPv4Address] | None:
    for interface in host.interfaces:
        for entry in interface.addresses:
            if str(entry.address) == wanted:
                return interface, entry.address
    return None


def _by_name(host: Host, wanted: str) -> tuple[Interface, IPv4Address] | None:
    for interface in host.interfaces:
        if interface.name == wanted and (address := best_address(interface)) is not None:
            return interface, address
    return None


def _by_regex(host: Host, pattern: re.Pattern[str]) -> tuple[Interface, IPv4Address] | None:
    for interface in host.interfaces:
        for entry in interface.addresses:
            if pattern.search(str(entry.address)):
                return interface, entry.address
    for interface in host.interfaces:
        if pattern.search(interface.name) and (address := best_address(interface)) is not None:
            return interface, address
    return None


def _overview(host: Host) -> str:
    return ", ".join(
        f"{interface.name} ({', '.join(str(entry.address) for entry in interface.addresses) or 'no IPv4 address'})"
        for interface in host.interfaces
    )


async def read_host(can_reach: IPv4Address | None) -> Host:
    """Ask the kernel for what `choose` needs. Raises OSError."""
    async with AsyncIPRoute() as netlink:
        addresses: dict[int, list[InterfaceAddress]] = {}
        async for message in await netlink.addr("dump", family=2):
            local = message.get("local") or message.get("address")
            entry = InterfaceAddress(IPv4Address(local), message["scope"], message.get("flags") or message["flags"])
            addresses.setdefault(message["index"], []).append(entry)
        interfaces = []
        async for link in await netlink.link("dump"):
            mac = bytes.fromhex((link.get("address") or "").replace(":", ""))
            found = tuple(addresses.get(link["index"], ()))
            interfaces.append(Interface(link.get("ifname"), link["index"], link.get("mtu") or 0, mac, found))
        reach = await _reach(netlink, can_reach) if can_reach is not None else None
        ordered = tuple(sorted(interfaces, key=lambda interface: interface.index))
        return Host(ordered, default_interface(routing_table()), reach)


def routing_table() -> str:
    """Read the kernel's IPv4 routes as text."""
    return Path("/proc/net/route").read_text(encoding="ascii")


def default_interface(table: str) -> str | None:
    """Find the interface of the first default route in the text of /proc/net/route.

    The text, because it takes 10 ms to read beside ten thousand routes of ours; pyroute2 takes half a second.
    """
    for line in table.splitlines()[1:]:
        name, destination, _, flags, _, _, _, mask = line.split()[:8]
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & RTF_UP and not int(flags, 16) & RTF_REJECT:
            return name
    return None


async def _reach(netlink: AsyncIPRoute, target: IPv4Address) -> tuple[int, IPv4Address | None] | None:
    try:
        routes = await netlink.route("get", family=2, dst=str(target))
    except NetlinkError:
        return None
    for route in routes:
        index, source = _outgoing(route), route.get("prefsrc")
        if index is not None:
            return index, IPv4Address(source) if source else None
    return None


def _outgoing(route: Any) -> int | None:
    """Return the interface index of a route; the first nexthop's of a multipath route."""
    index = route.get("oif")
    if index is None and (hops := route.get("multipath")):
        index = hops[0]["oif"]
    return index if isinstance(index, int) else None
