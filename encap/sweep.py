"""Everything in the kernel that bears our mark, removed: for `--cleanup`, when no agent runs.

    VXLAN devices with our alias, and all on them -> nexthop objects with our protocol, and their routes -> our routes

What has our name and not our mark is somebody else's and stays. Firewall rules are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from sys import byteorder

from flanneld_py.encap import request
from flanneld_py.encap import rtnetlink as rt
from flanneld_py.encap.rtsocket import Refused, RouteSocket, explain, list_links
from flanneld_py.encap.state import ROUTE_PROTOCOL, text

Removal = tuple[str, Callable[[int], bytes]]
"""What goes, in an operator's words, and the request for it, given a sequence number."""


def sweep(tell: Callable[[str], None]) -> list[str]:
    """Remove it all in the network namespace of this thread, telling of each; return what the kernel refused, and why.

    Raises Interrupted if others change the tables meanwhile: call it again.
    """
    refused: list[str] = []
    with RouteSocket() as asker:
        for found in (_devices, _nexthops, _routes):
            for what, build in list(found(asker)):
                seq = asker.next_seq()
                failed = asker.send([(seq, build(seq))])
                if seq in failed:
                    refused.append(f"{what}: {explain(*failed[seq])}")
                else:
                    tell(f"removed {what}")
    return refused


def marked_devices() -> list[str]:
    """List the VXLAN devices that bear our mark."""
    with RouteSocket() as asker:
        return [link.name for link in list_links(asker) if link.kind == "vxlan" and link.marked]


def _devices(asker: RouteSocket) -> Iterator[Removal]:
    for link in list_links(asker):
        if link.kind == "vxlan" and link.marked:
            yield f"device {link.name} and all on it", partial(request.delete_link, ifindex=link.ifindex)


def _nexthops(asker: RouteSocket) -> Iterator[Removal]:
    try:
        for buffer, messages in asker.dump(request.dump_nexthops):
            for message in messages:
                found = rt.read_nexthop(buffer, message.at, message.end)
                if found.protocol == ROUTE_PROTOCOL:
                    what = f"nexthop {found.id} and the routes through it"
                    yield what, partial(request.nexthop_delete, object_id=found.id)
    except Refused:
        return  # A kernel before 5.3 has none.


def _routes(asker: RouteSocket) -> Iterator[Removal]:
    names = {link.ifindex: link.name for link in list_links(asker)}
    for family in (rt.AF_INET, rt.AF_INET6):
        for buffer, messages in asker.dump(partial(request.dump_our_routes, family=family)):
            for message in messages:
                _, length, _, _, _, protocol, _, _, _ = rt.ROUTE.unpack_from(buffer, message.at)
                if protocol != ROUTE_PROTOCOL:
                    continue  # A kernel before 4.20 tells all.
                found = rt.attributes(buffer, message.at + rt.ROUTE.size, message.end)
                device = names.get(int.from_bytes(found.get(rt.RTA_OIF, b""), byteorder), "no device")
                what = f"route {text(found[rt.RTA_DST]) if rt.RTA_DST in found else 'default'}/{length} on {device}"
                body = buffer[message.at : message.end]
                yield what, partial(request.delete_route_as_told, body=body)
