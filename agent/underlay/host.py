"""What the choice of the underlay needs to know of this host, asked of the kernel by our own codec and from /proc.

By our own codec because hosts have thousands of interfaces of containers: 4000 are read in 0.1 s, by pyroute2 in 3 s.
Not here: the choice itself (choose.py).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from flanneld_py.agent.underlay.choose import Host, Interface, InterfaceAddress, IPAddress
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.rtsocket import RequestFailed, RouteSocket

RTF_UP = 0x0001  # linux/route.h
RTF_REJECT = 0x0200
IFF_LOOPBACK = 0x8  # linux/if.h
IFA_FLAGS = 8  # linux/if_addr.h
_RTA_PRIORITY = 6  # linux/rtnetlink.h
_INFINIBAND_MAC = 20


async def read_host(can_reach: IPAddress | None) -> Host:
    """Ask the kernel for what `choose` needs. Raises OSError."""
    try:
        with RouteSocket() as asker:
            addresses = _addresses(asker)
            found = tuple(sorted(_interfaces(asker, addresses), key=lambda interface: interface.index))
            defaults6 = _defaults6(asker, {interface.name: interface.index for interface in found})
        reach = await _reach(can_reach) if can_reach is not None else None
    except (KernelError, RequestFailed, rt.Malformed) as error:
        raise OSError(f"the kernel's interfaces cannot be read: {error}") from error
    return Host(found, default_interfaces(routing_table("route")), reach, defaults6)


def _addresses(asker: RouteSocket) -> dict[int, list[InterfaceAddress]]:
    found: dict[int, list[InterfaceAddress]] = {}
    for family in (rt.AF_INET, rt.AF_INET6):
        for buffer, messages in asker.whole(partial(request.dump_addresses, family=family, ifindex=0)):
            for message in messages:
                told, length, flags, scope, ifindex = rt.ADDRESS.unpack_from(buffer, message.at)
                known = rt.attributes(buffer, message.at + rt.ADDRESS.size, message.end)
                packed = known.get(rt.IFA_LOCAL) or known.get(rt.IFA_ADDRESS, b"")
                if told != family or len(packed) not in (4, 16):
                    continue
                local = ip_address(bytes(packed))
                flags = rt.U32.unpack(known[IFA_FLAGS])[0] if IFA_FLAGS in known else flags
                entry = InterfaceAddress(local, scope, flags, broadcast_of(local, length), base_of(local, length))
                found.setdefault(ifindex, []).append(entry)
    return found


def _interfaces(asker: RouteSocket, addresses: dict[int, list[InterfaceAddress]]) -> Iterator[Interface]:
    for buffer, messages in asker.whole(request.dump_links):
        for message in messages:
            link = rt.read_link(buffer, message.at, message.end)
            _, _, _, flags, _ = rt.LINK.unpack_from(buffer, message.at)
            yield Interface(
                link.name,
                link.ifindex,
                link.mtu,
                lasting(bytes(link.mac)),
                tuple(addresses.get(link.ifindex, ())),
                link.kind,
                live=link.up and link.running,
                loopback=bool(flags & IFF_LOOPBACK),
            )


def lasting(mac: bytes) -> bytes:
    """Return what lasts of a hardware address: of InfiniBand's 20 bytes the last 8; the others may change at a boot."""
    return mac[-8:] if len(mac) == _INFINIBAND_MAC else mac


def broadcast_of(address: IPAddress, length: int) -> IPv4Address | None:
    """Return the address that means everybody on the link; None where there is none: IPv6, and a /31 (RFC 3021)."""
    if isinstance(address, IPv6Address) or length >= 31:
        return None
    return IPv4Network((int(address), length), strict=False).broadcast_address


def base_of(address: IPAddress, length: int) -> IPv4Address | None:
    """Return the address that names the link's network; None where there is none, as with `broadcast_of`."""
    if isinstance(address, IPv6Address) or length >= 31:
        return None
    return IPv4Network((int(address), length), strict=False).network_address


def routing_table(name: str) -> str:
    """Read the kernel's routes of a family as text; empty where the kernel does not have the family."""
    try:
        return Path("/proc/net", name).read_text(encoding="ascii")
    except FileNotFoundError:
        return ""


def default_interfaces(table: str) -> tuple[str, ...]:
    """Find the interfaces of the default routes in the text of /proc/net/route, that with the lowest metric first.

    The text, because it takes 10 ms to read beside ten thousand routes of ours. It has the main table only.
    """
    found = []
    for line in table.splitlines()[1:]:
        name, destination, _, flags, _, _, metric, mask = line.split()[:8]
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
            found.append((int(metric), name))
    return _in_order(found)


def default_interfaces6(table: str) -> tuple[str, ...]:
    """Find the interfaces of the default routes, of any table, in the text of /proc/net/ipv6_route."""
    found = []
    for line in table.splitlines():
        destination, length, _, _, _, metric, _, _, flags, name = line.split()
        if int(destination, 16) == int(length, 16) == 0 and int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
            found.append((int(metric, 16), name))
    return _in_order(found)


def _in_order(found: list[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name in sorted(found, key=lambda each: each[0])))


def _defaults6(asker: RouteSocket, indexes: dict[str, int]) -> tuple[str, ...]:
    """Find the interfaces of the main table's default routes for IPv6: /proc does not tell tables (VRF, VPN) apart."""
    found = []
    for name in default_interfaces6(routing_table("ipv6_route")):
        if (index := indexes.get(name)) is not None:
            found += [(metric, name) for metric in _metrics6(asker, index)]
    return _in_order(found)


def _metrics6(asker: RouteSocket, index: int) -> Iterator[int]:
    for buffer, messages in asker.whole(partial(request.dump_routes, family=rt.AF_INET6, ifindex=index)):
        for message in messages:
            _, length, _, _, table, _, _, kind, _ = rt.ROUTE.unpack_from(buffer, message.at)
            if length or kind != rt.RTN_UNICAST:
                continue
            known = rt.attributes(buffer, message.at + rt.ROUTE.size, message.end)
            table = rt.U32.unpack(known[rt.RTA_TABLE])[0] if rt.RTA_TABLE in known else table
            device = rt.U32.unpack(known[rt.RTA_OIF])[0] if rt.RTA_OIF in known else index
            if (table, device) == (rt.RT_TABLE_MAIN, index):
                yield rt.U32.unpack(known[_RTA_PRIORITY])[0] if _RTA_PRIORITY in known else 0


async def _reach(target: IPAddress) -> tuple[int, IPAddress | None] | None:
    from pyroute2 import AsyncIPRoute  # Few ask for it.
    from pyroute2.netlink.exceptions import NetlinkError

    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    async with AsyncIPRoute() as netlink:
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
