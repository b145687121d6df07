"""What the choice of the underlay needs to know of this host, asked of the kernel by pyroute2 and from /proc.

Not here: the choice itself (interface.py).
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flanneld_py.agent.interface import Host, Interface, InterfaceAddress, IPAddress

RTF_UP = 0x0001  # linux/route.h
RTF_REJECT = 0x0200


async def read_host(can_reach: IPAddress | None) -> Host:
    """Ask the kernel for what `choose` needs. Raises OSError."""
    try:
        return await _read_host(can_reach)
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel's interfaces cannot be read: {error}") from error


async def _read_host(can_reach: IPAddress | None) -> Host:
    async with AsyncIPRoute() as netlink:
        addresses: dict[int, list[InterfaceAddress]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            async for message in await netlink.addr("dump", family=family):
                local = ip_address(message.get("local") or message.get("address"))
                broadcast = broadcast_of(local, message["prefixlen"])
                entry = InterfaceAddress(local, message["scope"], message.get("flags") or message["flags"], broadcast)
                addresses.setdefault(message["index"], []).append(entry)
        interfaces = []
        async for link in await netlink.link("dump"):
            mac = bytes.fromhex((link.get("address") or "").replace(":", ""))
            found = tuple(addresses.get(link["index"], ()))
            interfaces.append(Interface(link.get("ifname"), link["index"], link.get("mtu") or 0, mac, found))
        reach = await _reach(netlink, can_reach) if can_reach is not None else None
        ordered = tuple(sorted(interfaces, key=lambda interface: interface.index))
        default6 = default_interface6(routing_table("ipv6_route"))
        return Host(ordered, default_interface(routing_table("route")), reach, default6)


def broadcast_of(address: IPAddress, length: int) -> IPv4Address | None:
    """Return the address that means everybody on the link; None where there is none: IPv6, and a /31 (RFC 3021)."""
    if isinstance(address, IPv6Address) or length >= 31:
        return None
    return IPv4Network((int(address), length), strict=False).broadcast_address


def routing_table(name: str) -> str:
    """Read the kernel's routes of a family as text; empty where the kernel does not have the family."""
    try:
        return Path("/proc/net", name).read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def default_interface(table: str) -> str | None:
    """Find the interface of the first default route in the text of /proc/net/route.

    The text, because it takes 10 ms to read beside ten thousand routes of ours; pyroute2 takes half a second.
    """
    for line in table.splitlines()[1:]:
        name, destination, _, flags, _, _, _, mask = line.split()[:8]
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & RTF_UP and not int(flags, 16) & RTF_REJECT:
            return name
    return None


def default_interface6(table: str) -> str | None:
    """Find the interface of the default route with the lowest metric in the text of /proc/net/ipv6_route."""
    found = []
    for line in table.splitlines():
        destination, length, _, _, _, metric, _, _, flags, name = line.split()
        if int(destination, 16) == int(length, 16) == 0 and int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
            found.append((int(metric, 16), name))
    return min(found)[1] if found else None


async def _reach(netlink: AsyncIPRoute, target: IPAddress) -> tuple[int, IPAddress | None] | None:
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    try:
        routes = await netlink.route("get", family=family, dst=str(target))
    except NetlinkError:
        return None
    for route in routes:
        index, source = _outgoing(route), route.get("prefsrc")
        if index is not None:
            return index, ip_address(source) if source else None
    return None


def _outgoing(route: Any) -> int | None:
    """Return the interface index of a route; the first nexthop's of a multipath route."""
    index = route.get("oif")
    if index is None and (hops := route.get("multipath")):
        index = hops[0]["oif"]
    return index if isinstance(index, int) else None
