"""What bears our mark in the kernel, removed: all of it for `--cleanup`, or what an agent does not want any more.

    sweep           VXLAN devices with our alias, and all on them -> nexthop objects -> routes
    devices_in      the devices that an agent of these subnets may have made
    remove_routes   our routes into some networks, but for those on devices where an agent looks after them

A number is no proof: others choose one, too, and our former one is OVN's now. So off our devices only what leads into
a network of ours goes: a route of the main table to a part of it, a nexthop object with a gateway inside. What has our
name and not our mark is somebody else's and stays. Firewall rules are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import product
from struct import Struct
from sys import byteorder

from flanneld_py.encap.family import Network
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.nexthops import is_ours
from flanneld_py.encap.netlink.rtsocket import RequestFailed, RouteSocket, explain, list_links
from flanneld_py.encap.state import MARKS, ROUTE_PROTOCOL, text

_OUT = Struct("=HHI")
"""The attribute of a route that tells its device."""

Removal = tuple[str, Callable[[int], bytes] | None]
"""What goes, in an operator's words, and the request for it, given a sequence number; None if it stays."""


def sweep(networks: Collection[Network], tell: Callable[[str], None]) -> list[str]:
    """Remove it all in the network namespace of this thread, telling of each; return what is left, and why.

    `networks` are those that are known to be ours: without them what is not on our devices is left.
    Raises KernelError, RequestFailed.
    """
    left: list[str] = []
    with RouteSocket() as asker:
        for found in (_devices, _nexthops, _all_routes):
            for what, build in list(found(asker, networks)):
                if build is None:
                    left.append(f"{what}, which has our number {ROUTE_PROTOCOL} and is in no network known to be ours")
                    continue
                seq = asker.next_seq()
                failed = asker.send([(seq, build(seq))])
                if seq in failed:
                    left.append(f"{what}: {explain(*failed[seq])}")
                else:
                    tell(f"removed {what}")
    return left


def devices_in(subnets: Collection[Network]) -> list[str]:
    """List VXLAN devices with our mark, and TUN devices, that have an address in a subnet. Raises KernelError."""
    try:
        with RouteSocket() as asker:
            ours = [link for link in list_links(asker) if link.kind == "tun" or (link.kind == "vxlan" and link.marked)]
            return [link.name for link in ours if any(_is_in(address, subnets) for address in _on(asker, link))]
    except RequestFailed as error:
        raise KernelError(f"the devices cannot be listed: {error}") from error


def remove_routes(
    networks: Collection[Network], keep: Collection[tuple[int, str]], others: Collection[Network] = ()
) -> list[str]:
    """Remove our routes into these networks; those of an IP version on a device to keep, or into `others`, stay.

    So do those through a nexthop object: they go with that, and it with its device.
    Returns the routes that were removed. Raises KernelError if one cannot be.
    """
    removed = []
    try:
        with RouteSocket() as asker:
            for route in list(_routes(asker, keep)):
                if (
                    route.unicast
                    and not route.by_object
                    and route.leads_into(networks)
                    and not route.leads_into(others)
                ):
                    seq = asker.next_seq()
                    for refusal in asker.send([(seq, route.removal(seq))]).values():
                        raise KernelError(f"{route} cannot be removed: {explain(*refusal)}")
                    removed.append(str(route))
    except RequestFailed as error:
        raise KernelError(f"the routes cannot be listed: {error}") from error
    return removed


def _is_in(packed: bytes, networks: Collection[Network]) -> bool:
    return any(ip_address(packed) in network for network in networks)


def _on(asker: RouteSocket, link: rt.LinkMessage) -> Iterator[bytes]:
    """Read the addresses of a device."""
    for family in (rt.AF_INET, rt.AF_INET6):
        for buffer, messages in asker.whole(partial(request.dump_addresses, family=family, ifindex=link.ifindex)):
            for message in messages:
                found = rt.read_address(buffer, message.at, message.end, {link.ifindex: link.name})
                if found is not None:
                    yield found.address


def _devices(asker: RouteSocket, _: Collection[Network]) -> Iterator[Removal]:
    for link in list_links(asker):
        if link.kind == "vxlan" and link.marked:
            yield f"device {link.name} and all on it", partial(request.delete_link, ifindex=link.ifindex)


def _nexthops(asker: RouteSocket, networks: Collection[Network]) -> Iterator[Removal]:
    try:
        for buffer, messages in asker.whole(request.dump_nexthops):
            for message in messages:
                found = rt.read_nexthop(buffer, message.at, message.end)
                if not is_ours(found):
                    continue
                if found.gateway and _is_in(found.gateway, networks):
                    what = f"nexthop {found.id} and the routes through it"
                    yield what, partial(request.nexthop_delete, object_id=found.id)
                elif found.protocol == ROUTE_PROTOCOL:
                    yield f"nexthop {found.id}", None
    except RequestFailed:
        return  # A kernel before 5.3 has none.


@dataclass(frozen=True, slots=True)
class _Marked:
    """A route with our protocol; `body` is how the kernel told it, `subnet` empty for a default route."""

    subnet: bytes
    length: int
    table: int
    protocol: int
    device: str
    unicast: bool
    by_object: bool
    body: bytes

    def __str__(self) -> str:
        table = "" if self.table == rt.RT_TABLE_MAIN else f" in table {self.table}"
        return f"route {text(self.subnet) if self.subnet else 'default'}/{self.length} on {self.device}{table}"

    def leads_into(self, networks: Collection[Network]) -> bool:
        """Tell whether it is ours, where it leads: to a part of one of these networks, by the main table."""
        if self.table != rt.RT_TABLE_MAIN or not self.subnet:
            return False
        return any(network.prefixlen <= self.length and ip_address(self.subnet) in network for network in networks)

    def removal(self, seq: int) -> bytes:
        return request.delete_route_as_told(seq, self.body)


def _all_routes(asker: RouteSocket, networks: Collection[Network]) -> Iterator[Removal]:
    for route in _routes(asker):
        if route.leads_into(networks):
            yield str(route), route.removal
        elif route.protocol == ROUTE_PROTOCOL:
            yield str(route), None


def _routes(asker: RouteSocket, keep: Collection[tuple[int, str]] = ()) -> Iterator[_Marked]:
    """Read the routes with our protocol, now or formerly, but for those of an IP version on a device to keep."""
    names = {link.ifindex: link.name for link in list_links(asker)}
    for (family, version), mark in product(((rt.AF_INET, 4), (rt.AF_INET6, 6)), sorted(MARKS)):
        # Found in the bytes, as there may be ten thousand of them, and taking one apart costs 5 us; so 12 ms in all.
        kept = [_OUT.pack(_OUT.size, rt.RTA_OIF, index) for index, name in names.items() if (version, name) in keep]
        for buffer, messages in asker.whole(partial(request.dump_marked_routes, family=family, protocol=mark)):
            for message in messages:
                body = buffer[message.at : message.end]
                if any(out in body for out in kept):
                    continue
                _, length, _, _, table, protocol, _, kind, _ = rt.ROUTE.unpack_from(buffer, message.at)
                if protocol != mark:
                    continue  # A kernel before 4.20 tells all.
                found = rt.attributes(buffer, message.at + rt.ROUTE.size, message.end)
                table = _number(found.get(rt.RTA_TABLE, b"")) or table
                device = names.get(_number(found.get(rt.RTA_OIF, b"")), "no device")
                subnet, unicast = bytes(found.get(rt.RTA_DST, b"")), kind == rt.RTN_UNICAST
                yield _Marked(subnet, length, table, protocol, device, unicast, rt.RTA_NH_ID in found, body)


def _number(value: bytes) -> int:
    return int.from_bytes(value, byteorder)
