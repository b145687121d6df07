"""What we send to rtnetlink, as bytes: one function per request, the sequence number always first. No
sockets, no policy.

Numbers and layouts are in rtnetlink.py. Where ten thousands of a message are sent it is one `struct.pack` of the whole
(0.5 us); the rest is put together from attributes.

    address, neighbour, fdb, nexthop, route ...     change a table; `flags` are NLM_F_CREATE and so on
    get_*                                           ask for one object
    dump_*                                          ask for a table
"""

from __future__ import annotations

from struct import Struct, pack

from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.state import ROUTE_PROTOCOL

_IFA_F_NODAD = 0x02
_RTNH_F_ONLINK = 4
_RTM_F_FIB_MATCH = 0x2000
_RT_SCOPE_NOWHERE = 255

_NEIGHBOUR4 = Struct("=IHHII BxxxiHBB HH4s HH6s2x")
_NEIGHBOUR6 = Struct("=IHHII BxxxiHBB HH16s HH6s2x")
_NEXTHOP4 = Struct("=IHHII BBBxI HHI HHI HH4s")
_NEXTHOP6 = Struct("=IHHII BBBxI HHI HHI HH16s")
_ROUTE4_BY_ID = Struct("=IHHII BBBBBBBBI HH4s HHI")
_ROUTE6_BY_ID = Struct("=IHHII BBBBBBBBI HH16s HHI")


def _message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    return rt.HEADER.pack(16 + len(body), kind, flags | rt.NLM_F_REQUEST, seq, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return pack(f"=HH{(len(value) + 3) & ~3}s", 4 + len(value), kind, value)


def _family(packed: bytes) -> int:
    return rt.AF_INET if len(packed) == 4 else rt.AF_INET6


def address(seq: int, kind: int, flags: int, ifindex: int, packed: bytes, prefix_length: int) -> bytes:
    """Add or delete an address. IPv6 without duplicate detection: a VTEP's device has nobody to ask."""
    family = _family(packed)
    nodad = _IFA_F_NODAD if family == rt.AF_INET6 else 0
    fixed = rt.ADDRESS.pack(family, prefix_length, nodad, 0, ifindex)
    return _message(kind, flags, seq, fixed + _attribute(rt.IFA_LOCAL, packed) + _attribute(rt.IFA_ADDRESS, packed))


def neighbour(seq: int, kind: int, flags: int, ifindex: int, packed: bytes, mac: bytes) -> bytes:
    """Set or delete a permanent neighbour."""
    layout, size = (_NEIGHBOUR4, 8) if len(packed) == 4 else (_NEIGHBOUR6, 20)
    return layout.pack(
        layout.size, kind, flags | 1, seq, 0,
        _family(packed), ifindex, rt.NUD_PERMANENT, 0, 0,
        size, rt.NDA_DST, packed, 10, rt.NDA_LLADDR, mac,
    )  # fmt: skip


def fdb(seq: int, flags: int, ifindex: int, mac: bytes, destination: bytes) -> bytes:
    """Set a forwarding entry of a VXLAN device, as `bridge fdb` does."""
    state = rt.NUD_PERMANENT | rt.NUD_NOARP
    layout, size = (_NEIGHBOUR4, 8) if len(destination) == 4 else (_NEIGHBOUR6, 20)
    return layout.pack(
        layout.size, rt.RTM_NEWNEIGH, flags | 1, seq, 0,
        rt.AF_BRIDGE, ifindex, state, rt.NTF_SELF, 0,
        size, rt.NDA_DST, destination, 10, rt.NDA_LLADDR, mac,
    )  # fmt: skip


def fdb_delete(seq: int, ifindex: int, mac: bytes) -> bytes:
    """Delete a MAC's forwarding entry, whatever its destination."""
    fixed = rt.NEIGHBOUR.pack(rt.AF_BRIDGE, ifindex, rt.NUD_PERMANENT | rt.NUD_NOARP, rt.NTF_SELF, 0)
    return _message(rt.RTM_DELNEIGH, 0, seq, fixed + _attribute(rt.NDA_LLADDR, mac))


def nexthop(seq: int, flags: int, object_id: int, ifindex: int, gateway: bytes) -> bytes:
    """Make a nexthop object."""
    layout, size = (_NEXTHOP4, 8) if len(gateway) == 4 else (_NEXTHOP6, 20)
    return layout.pack(
        layout.size, rt.RTM_NEWNEXTHOP, flags | 1, seq, 0,
        _family(gateway), 0, ROUTE_PROTOCOL, _RTNH_F_ONLINK,
        8, rt.NHA_ID, object_id, 8, rt.NHA_OIF, ifindex, size, rt.NHA_GATEWAY, gateway,
    )  # fmt: skip


def nexthop_delete(seq: int, object_id: int) -> bytes:
    """Delete a nexthop object and with it, unreported for IPv4, every route through it."""
    return _message(rt.RTM_DELNEXTHOP, 0, seq, bytes(8) + _attribute(rt.NHA_ID, rt.U32.pack(object_id)))


def route(seq: int, flags: int, ifindex: int, subnet: bytes, prefix_length: int, gateway: bytes | None) -> bytes:
    """Make a route in the classic form: gateway and device in the route itself."""
    onlink = _RTNH_F_ONLINK if gateway is not None else 0
    fixed = rt.ROUTE.pack(
        _family(subnet), prefix_length, 0, 0, rt.RT_TABLE_MAIN, ROUTE_PROTOCOL, 0, rt.RTN_UNICAST, onlink
    )
    via = _attribute(rt.RTA_GATEWAY, gateway) if gateway is not None else b""
    oif = _attribute(rt.RTA_OIF, rt.U32.pack(ifindex))
    return _message(rt.RTM_NEWROUTE, flags, seq, fixed + _attribute(rt.RTA_DST, subnet) + via + oif)


def route_by_id(seq: int, kind: int, flags: int, subnet: bytes, prefix_length: int, object_id: int) -> bytes:
    """Make or delete a route through a nexthop object. Deleting, any protocol matches."""
    layout, size = (_ROUTE4_BY_ID, 8) if len(subnet) == 4 else (_ROUTE6_BY_ID, 20)
    protocol, scope = (ROUTE_PROTOCOL, 0) if kind == rt.RTM_NEWROUTE else (0, _RT_SCOPE_NOWHERE)
    return layout.pack(
        layout.size, kind, flags | 1, seq, 0,
        _family(subnet), prefix_length, 0, 0, rt.RT_TABLE_MAIN, protocol, scope, rt.RTN_UNICAST, 0,
        size, rt.RTA_DST, subnet, 8, rt.RTA_NH_ID, object_id,
    )  # fmt: skip


def route_delete(seq: int, ifindex: int, subnet: bytes, prefix_length: int, gateway: bytes | None) -> bytes:
    """Delete the classic route to a subnet on a device, whatever its protocol, and its gateway if that is None.

    The kernel's matching differs: IPv4 never takes a route that has a nexthop object for this; IPv6 takes one of
    any device if the metric is the same.
    """
    family = _family(subnet)
    fixed = rt.ROUTE.pack(family, prefix_length, 0, 0, rt.RT_TABLE_MAIN, 0, _RT_SCOPE_NOWHERE, rt.RTN_UNICAST, 0)
    metric = _attribute(rt.RTA_PRIORITY, rt.U32.pack(rt.ROUTE_METRIC[family]))
    oif = _attribute(rt.RTA_OIF, rt.U32.pack(ifindex))
    via = _attribute(rt.RTA_GATEWAY, gateway) if gateway is not None else b""
    return _message(rt.RTM_DELROUTE, 0, seq, fixed + _attribute(rt.RTA_DST, subnet) + oif + metric + via)


def get_link(seq: int, which: str | int) -> bytes:
    """Ask for one device by name or ifindex."""
    ifindex, name = (which, b"") if isinstance(which, int) else (0, _attribute(rt.IFLA_IFNAME, which.encode() + b"\0"))
    return _message(rt.RTM_GETLINK, 0, seq, rt.LINK.pack(0, 0, ifindex, 0, 0) + name)


def delete_link(seq: int, ifindex: int) -> bytes:
    """Delete a device."""
    return _message(rt.RTM_DELLINK, 0, seq, rt.LINK.pack(0, 0, ifindex, 0, 0))


def get_route(seq: int, packed: bytes) -> bytes:
    """Ask which route serves an address: the route itself, not the looked-up path (kernel 4.13)."""
    family = _family(packed)
    fixed = rt.ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return _message(rt.RTM_GETROUTE, 0, seq, fixed + _attribute(rt.RTA_DST, packed))


# With NETLINK_GET_STRICT_CHK (kernel 4.20) the kernel filters by what the request names; older ones send everything.


def dump_links(seq: int) -> bytes:
    """Ask for all devices."""
    return _message(rt.RTM_GETLINK, rt.NLM_F_DUMP, seq, rt.LINK.pack(0, 0, 0, 0, 0))


def dump_addresses(seq: int, family: int, ifindex: int) -> bytes:
    """Ask for the addresses of a device."""
    return _message(rt.RTM_GETADDR, rt.NLM_F_DUMP, seq, rt.ADDRESS.pack(family, 0, 0, 0, ifindex))


def dump_neighbours(seq: int, family: int, ifindex: int) -> bytes:
    """Ask for the neighbours of a device; its forwarding entries if `family` is AF_BRIDGE."""
    only = _attribute(rt.NDA_IFINDEX, rt.U32.pack(ifindex))
    return _message(rt.RTM_GETNEIGH, rt.NLM_F_DUMP, seq, rt.NEIGHBOUR.pack(family, 0, 0, 0, 0) + only)


def dump_routes(seq: int, family: int, ifindex: int) -> bytes:
    """Ask for the unicast routes of the main table on a device."""
    fixed = rt.ROUTE.pack(family, 0, 0, 0, rt.RT_TABLE_MAIN, 0, 0, rt.RTN_UNICAST, 0)
    return _message(rt.RTM_GETROUTE, rt.NLM_F_DUMP, seq, fixed + _attribute(rt.RTA_OIF, rt.U32.pack(ifindex)))


def dump_marked_routes(seq: int, family: int, protocol: int) -> bytes:
    """Ask for the routes with a protocol, of all tables and devices."""
    fixed = rt.ROUTE.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)
    return _message(rt.RTM_GETROUTE, rt.NLM_F_DUMP, seq, fixed)


def delete_route_as_told(seq: int, body: bytes) -> bytes:
    """Delete exactly the route that a dump told, by what it told."""
    return _message(rt.RTM_DELROUTE, 0, seq, body)


def dump_nexthops(seq: int) -> bytes:
    """Ask for all nexthop objects."""
    return _message(rt.RTM_GETNEXTHOP, rt.NLM_F_DUMP, seq, bytes(8))
