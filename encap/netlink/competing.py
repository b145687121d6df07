"""Routes that others have to the subnets of ours, with another metric: the kernel refuses neither, and one is idle.

EXCL refuses the same metric only. Ours is the kernel's default, 0 over IPv4 and 1024 over IPv6; NetworkManager, netplan
and networkd give theirs 100 and more, the kernel its own over IPv6 256. So over IPv4 ours goes before theirs, and over
IPv6 theirs before ours. Asked for by protocol, which keeps the large tables of routing daemons out. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from sys import byteorder

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.rtsocket import RequestFailed, RouteSocket, list_links
from flanneld_py.encap.state import text

_PROTOCOLS = {2: "kernel", 3: "boot", 4: "static", 9: "ra", 16: "dhcp"}  # linux/rtnetlink.h, RTPROT_*
_RTA_PRIORITY = 6
_OURS = {4: 0, 16: 1024}
"""The metric of our routes, by the length of an address."""

Subnet = tuple[bytes, int]
"""Base and prefix length."""


def routes_beside(subnets: Collection[Subnet], devices: Collection[str]) -> dict[Subnet, str]:
    """Find routes to subnets, in the main table and on none of our devices; say of each what comes of it.

    Raises KernelError.
    """
    found = {}
    try:
        with RouteSocket() as asker:
            names = {link.ifindex: link.name for link in list_links(asker)}
            for family in {rt.AF_INET if len(base) == 4 else rt.AF_INET6 for base, _ in subnets}:
                for subnet, index, protocol, metric in _routes(asker, family):
                    device = names.get(index, "several devices or none")
                    if subnet not in subnets or device in devices or metric == (ours := _OURS[len(subnet[0])]):
                        continue  # The same metric is refused, and named, when ours is made.
                    found[subnet] = _words(device, protocol, metric, first=ours < metric)
    except RequestFailed as error:
        raise KernelError(f"the routes cannot be listed: {error}") from error
    return found


def _routes(asker: RouteSocket, family: int) -> Iterator[tuple[Subnet, int, int, int]]:
    for protocol in _PROTOCOLS:
        for buffer, messages in asker.whole(partial(request.dump_marked_routes, family=family, protocol=protocol)):
            for message in messages:
                told, length, _, _, table, by, _, kind, _ = rt.ROUTE.unpack_from(buffer, message.at)
                if (told, table, by, kind) != (family, rt.RT_TABLE_MAIN, protocol, rt.RTN_UNICAST):
                    continue
                known = rt.attributes(buffer, message.at + rt.ROUTE.size, message.end)
                numbers = (int.from_bytes(known.get(each, b""), byteorder) for each in (rt.RTA_OIF, _RTA_PRIORITY))
                index, metric = numbers
                yield (bytes(known.get(rt.RTA_DST, b"")), length), index, protocol, metric


def _words(device: str, protocol: int, metric: int, *, first: bool) -> str:
    outcome = "ours goes before it, and what it leads to is not reached"
    if not first:
        outcome = "it goes before ours, and the host with that subnet is not reached"
    return (
        f"there is another route on {device} (proto {_PROTOCOLS[protocol]}, metric {metric}): {outcome}; "
        f"remove it, or keep that subnet out of the overlay"
    )


def describe(subnet: Subnet) -> str:
    """Show a subnet to people."""
    return f"route {text(subnet[0])}/{subnet[1]}"
