"""What there is already where an entry of ours is to go: asked of the kernel, after a refusal. Changes nothing."""

from __future__ import annotations

from contextlib import suppress
from errno import EINVAL

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.nexthops import NexthopIds
from flanneld_py.encap.netlink.rtsocket import RequestFailed, RouteSocket, find_link
from flanneld_py.encap.state import Address, Route, text


def find_route(asker: RouteSocket, route: Route) -> rt.RouteMessage | None:
    """Return the first route to exactly this subnet, whatever its device; None also where rules hide it."""
    try:
        buffer, message = asker.ask(lambda seq: request.get_route(seq, route.subnet))
    except RequestFailed:
        return None
    found = rt.read_route(buffer, message.at, message.end)
    same = found is not None and (found.subnet, found.prefix_length) == (route.subnet, route.prefix_length)
    return found if same else None


def in_the_way(asker: RouteSocket, nexthops: NexthopIds, route: Route, found: rt.RouteMessage) -> str:
    """Say what was found instead of our route, and what to do."""
    ifindex, gateway = nexthops.resolve(found)
    link = find_link(asker, ifindex) if ifindex else None
    device = "several devices or none" if link is None else link.name
    via = "" if gateway is None else f" via {text(gateway)}"
    return (
        f"{text(route.subnet)}/{route.prefix_length} has a route{via} on {device} (proto {found.protocol}), "
        "which is not ours and is left alone; remove it, or keep that subnet out of the overlay"
    )


def prefix_lengths(address: Address, ifindex: int) -> set[int]:
    """Read with which prefix lengths an address is on a device, through a socket of its own; none if there is none."""
    family = rt.AF_INET if len(address.address) == 4 else rt.AF_INET6
    found: set[int] = set()
    with suppress(KernelError), RouteSocket() as reader:
        for buffer, messages in reader.dump(lambda seq: request.dump_addresses(seq, family, ifindex)):
            for message in messages:
                there = rt.read_address(buffer, message.at, message.end, {ifindex: address.device})
                if there is not None and there.address == address.address:
                    found.add(there.prefix_length)
    return found


def is_misled(errno: int, gateway: bytes | None) -> bool:
    """Tell whether a refusal may mean that the route to an IPv6 gateway is on another device."""
    return errno == EINVAL and gateway is not None and len(gateway) == 16
