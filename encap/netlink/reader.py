"""Kernel tables into entries, part by part: the reading half of netlink.py.

    per device and family: addresses, forwarding entries, neighbours;  all nexthop objects;  per device: routes

Each table is read through a socket of its own, so that operations may be applied between two parts. The kernel fills
a buffer ahead of its being fetched: a part is as old as the fetch before it. What has changed meanwhile is collected in
`changed` by netlink.py and left out of the part; the caller knows it from `apply` or from an event.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from errno import EAFNOSUPPORT, ENODEV, EOPNOTSUPP
from functools import partial

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.nexthops import NexthopIds, is_ours
from flanneld_py.encap.netlink.rtsocket import Interrupted, RequestFailed, RouteSocket
from flanneld_py.encap.state import Entry, FdbEntry, Key, Neighbour, Nexthop, Route

_ATTEMPTS = 8
_IP = (rt.AF_INET, rt.AF_INET6)
_NOTHING_THERE = frozenset({EAFNOSUPPORT, ENODEV, EOPNOTSUPP})
"""No IPv6 in this kernel; a device deleted since we looked it up, which LinkChanged tells; no nexthop objects."""

Read = Callable[[bytes, int, int], Entry | None]
Build = Callable[[int], bytes]


class Reader:
    """Read tables for the devices named. `report_nexthops` is whether nexthop objects are told as entries."""

    def __init__(self, nexthops: NexthopIds, *, report_nexthops: bool) -> None:
        self._nexthops = nexthops
        self._report_nexthops = report_nexthops

    def tables(
        self, names: Mapping[int, str], changed: set[Key], incomplete: Callable[[], None]
    ) -> Iterator[list[Entry]]:
        """Yield every table; call `incomplete` if one kept changing while it was read. Raises KernelError.

        `names` is interface index -> name. A table that was interrupted is read again from its start.
        """

        def address(buffer: bytes, at: int, end: int) -> Entry | None:
            return rt.read_address(buffer, at, end, names)

        def neighbour(buffer: bytes, at: int, end: int) -> Entry | None:
            found = rt.read_neighbour(buffer, at, end, names)
            return found if isinstance(found, Neighbour | FdbEntry) else None

        def route(buffer: bytes, at: int, end: int) -> Entry | None:
            found = rt.read_route(buffer, at, end)
            if found is None:
                return None
            ifindex, gateway = self._nexthops.resolve(found)
            if ifindex not in names:
                return None
            return Route(names[ifindex], found.subnet, found.prefix_length, gateway, found.protocol)

        for ifindex in names:
            for family in _IP:
                yield from self._table(partial(_addresses, family, ifindex), address, changed, incomplete)
            for family in (rt.AF_BRIDGE, *_IP):
                yield from self._table(partial(_neighbours, family, ifindex), neighbour, changed, incomplete)
        yield from self._nexthop_table(names, changed, incomplete)
        for ifindex in names:
            for family in _IP:
                yield from self._table(partial(_routes, family, ifindex), route, changed, incomplete)

    def _nexthop_table(
        self, names: Mapping[int, str], changed: set[Key], incomplete: Callable[[], None]
    ) -> Iterator[list[Entry]]:
        unseen = self._nexthops.known()

        def nexthop(buffer: bytes, at: int, end: int) -> Entry | None:
            told = rt.read_nexthop(buffer, at, end)
            unseen.discard(told.id)
            entry = Nexthop(names[told.ifindex], told.gateway, told.protocol) if told.ifindex in names else None
            if entry is not None and entry.key in changed:
                return None
            self._nexthops.learn(told)
            return entry if is_ours(told) and self._report_nexthops else None

        if (yield from self._table(request.dump_nexthops, nexthop, changed, incomplete)):
            for object_id in unseen:
                self._nexthops.forget(object_id)

    def _table(
        self, build: Build, read: Read, changed: set[Key], incomplete: Callable[[], None]
    ) -> Generator[list[Entry], None, bool]:
        for _ in range(_ATTEMPTS):
            changed.clear()
            try:
                with RouteSocket() as reader:
                    for buffer, messages in reader.dump(build):
                        part = [entry for _, _, _, _, at, end in messages if (entry := read(buffer, at, end))]
                        if changed:
                            part = [entry for entry in part if entry.key not in changed]
                            changed.clear()
                        if part:
                            yield part
                return True
            except Interrupted:
                continue
            except RequestFailed as refused:
                if refused.errno in _NOTHING_THERE:
                    return True
                raise KernelError(f"cannot read a kernel table: {refused}") from refused
        incomplete()
        return False


def _addresses(family: int, ifindex: int, seq: int) -> bytes:
    return request.dump_addresses(seq, family, ifindex)


def _neighbours(family: int, ifindex: int, seq: int) -> bytes:
    return request.dump_neighbours(seq, family, ifindex)


def _routes(family: int, ifindex: int, seq: int) -> bytes:
    return request.dump_routes(seq, family, ifindex)
