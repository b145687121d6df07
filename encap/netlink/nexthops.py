"""Which nexthop object serves which gateway. Pure: netlink.py tells it what the kernel has and what it asked for.

The kernel knows a nexthop object by a number, state.Nexthop by device and gateway. Numbers are one space for the whole
namespace, shared with routing daemons: ours start at `FIRST` ("T" << 24), far from where others count from 1, and skip
every number that anybody uses. What is ours is marked by its protocol, so a later process adopts it from a dump; by our
former one only among our numbers, as OVN has it now.
"""

from __future__ import annotations

from flanneld_py.encap.netlink.rtnetlink import NexthopMessage, RouteMessage
from flanneld_py.encap.state import FORMER_PROTOCOL, ROUTE_PROTOCOL

FIRST, LAST = 0x54000000, 0x54FFFFFF


def is_ours(told: NexthopMessage) -> bool:
    """Tell whether an object bears our mark."""
    former = told.protocol == FORMER_PROTOCOL and FIRST <= told.id <= LAST
    return told.protocol == ROUTE_PROTOCOL or former


class NexthopIds:
    """The map, both ways. `ifindex` and `gateway` together are a place."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[int, bytes]] = {}
        self._ours: dict[tuple[int, bytes], int] = {}
        self._next = FIRST

    def id_of(self, ifindex: int, gateway: bytes | None) -> int | None:
        """Return our object's number for a gateway."""
        return None if gateway is None else self._ours.get((ifindex, gateway))

    def resolve(self, told: RouteMessage) -> tuple[int, bytes | None]:
        """Return (ifindex, gateway) of a route, from its nexthop object where it does not say; else (0, None)."""
        if told.ifindex or not told.nexthop_id:
            return told.ifindex, told.gateway
        return self._places.get(told.nexthop_id, (0, None))

    def known(self) -> set[int]:
        """Return all numbers in use."""
        return set(self._places)

    def assign(self, ifindex: int, gateway: bytes) -> int:
        """Choose a number for a new object and remember it as made."""
        while self._next in self._places:
            self._next += 1
        self.learn(NexthopMessage(self._next, ifindex, gateway, ROUTE_PROTOCOL))
        self._next += 1
        return self._next - 1

    def learn(self, told: NexthopMessage) -> None:
        """Take in an object that the kernel has, ours or not. Of two of ours for one place the first serves."""
        self.forget(told.id)
        self._places[told.id] = (told.ifindex, told.gateway)
        if told.ifindex and is_ours(told):
            self._ours.setdefault((told.ifindex, told.gateway), told.id)

    def reserve(self, object_id: int) -> None:
        """Take in that a number which we assigned is somebody else's."""
        self.forget(object_id)
        self._places[object_id] = (0, b"")

    def forget(self, object_id: int) -> None:
        """Take in that an object is gone."""
        place = self._places.pop(object_id, None)
        if place is not None and self._ours.get(place) == object_id:
            del self._ours[place]

    def forget_device(self, ifindex: int) -> None:
        """Take in that a device went down: the kernel deletes its objects and reports none of it."""
        for object_id in [each for each, place in self._places.items() if place[0] == ifindex]:
            self.forget(object_id)
