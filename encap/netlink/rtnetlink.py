"""rtnetlink messages as bytes: the numbers, and reading what the kernel sends. No sockets, no policy.

pyroute2 does the same in general and takes 200 us a message; ten thousand peers are forty thousand messages.
Layouts are linux/netlink.h, rtnetlink.h, neighbour.h, if_addr.h, if_link.h and nexthop.h; host byte order except
addresses, MACs and ports:

    | length u32 | type u16 | flags u16 | seq u32 | port id u32 |  fixed part, by type  |  attribute | attribute ...

    attribute:  | length u16 | type u16 | value, padded to 4 |

    datagram --messages--> (type, flags, seq, port id, body) --read_link, read_address, read_neighbour, ...--> value

`read_address` and `read_neighbour` take the devices of interest (index -> name); None for all others.
What we send is in request.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from sys import byteorder
from typing import NamedTuple

from flanneld_py.encap.state import DEVICE_MARK, Address, FdbEntry, Key, Neighbour

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSGERR_ATTR_MSG = 1

AF_INET, AF_BRIDGE, AF_INET6 = 2, 7, 10
IFF_UP, IFF_RUNNING = 0x1, 0x40
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_PROXY = 0x02, 0x08
RT_TABLE_MAIN, RTN_UNICAST, RTPROT_KERNEL = 254, 1, 2
RTM_F_CLONED = 0x200
ROUTE_METRIC = {AF_INET: 0, AF_INET6: 1024}
"""The metric of a route for which nobody asked for one: ours, and flannel's. Others live beside them, untouched."""

IFA_ADDRESS, IFA_LOCAL = 1, 2
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 3, 4, 18, 20, 1, 2
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_VXLAN_ID, IFLA_VXLAN_GROUP, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 2, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_GROUP6, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_GBP = 15, 16, 17, 23
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NHA_ID, NHA_OIF, NHA_GATEWAY = 1, 5, 6
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_NH_ID = 1, 4, 5, 6, 9, 15, 18, 30

_SILENT = bytes([IN6_ADDR_GEN_MODE_NONE])

HEADER = Struct("=IHHII")
ATTRIBUTE = Struct("=HH")
U32, I32 = Struct("=I"), Struct("=i")
LINK = Struct("=BxHiII")  # family, hardware type, index, flags, change mask
ADDRESS = Struct("=BBBBI")  # family, prefix length, flags, scope, index
NEIGHBOUR = Struct("=BxxxiHBB")  # family, index, state, flags, type
ROUTE = Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
NEXTHOP = Struct("=BBBxI")  # family, scope, protocol, flags

_NO_MAC = bytes(6)


class Malformed(Exception):
    """Bytes that are no rtnetlink message."""


class Message(NamedTuple):
    """One netlink message in a datagram; the body is `[at:end]`. A tuple: there are tens of thousands."""

    kind: int
    flags: int
    seq: int
    port: int
    at: int
    end: int


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """A device. `parent` is an interface index, 0 for none; from `vni` on it holds for VXLAN devices only.

    `silent`: IPv6 is not on it, or makes no link-local address.
    """

    ifindex: int
    name: str
    up: bool
    running: bool
    mtu: int
    mac: bytes
    kind: str
    silent: bool = True
    vni: int = 0
    port: int = 0
    parent: int = 0
    local: bytes | None = None
    learning: bool = False
    gbp: bool = False
    group: bytes | None = None
    marked: bool = False


class NexthopMessage(NamedTuple):
    """A nexthop object; `ifindex` 0 if it is not one gateway on one device (a group, a blackhole)."""

    id: int
    ifindex: int
    gateway: bytes
    protocol: int


class RouteMessage(NamedTuple):
    """A route of the main table with our metric.

    `ifindex` is 0 if it does not lead to one device (multipath, blackhole), and if it has a nexthop object and sysctl
    net.ipv4.nexthop_compat_mode is 0: `nexthop_id` says it all then. 0 there means: no object.
    """

    ifindex: int
    subnet: bytes
    prefix_length: int
    gateway: bytes | None
    protocol: int
    nexthop_id: int


def messages(buffer: bytes) -> Iterator[Message]:
    """Split a datagram. Raises Malformed."""
    at, size = 0, len(buffer)
    while at < size:
        if size - at < 16:
            raise Malformed(f"netlink header cut off: {size - at} of 16 bytes")
        length, kind, flags, seq, port = HEADER.unpack_from(buffer, at)
        if length < 16 or at + length > size:
            raise Malformed(f"netlink message of {length} bytes where {size - at} are left")
        yield Message(kind, flags, seq, port, at + 16, at + length)
        at += (length + 3) & ~3


def attributes(buffer: bytes, at: int, end: int) -> dict[int, bytes]:
    """Split attributes that start at a multiple of 4, by type without its flags. Raises Malformed."""
    found: dict[int, bytes] = {}
    unpack = ATTRIBUTE.unpack_from
    stop, last = at, end - 4
    while at <= last:
        length, kind = unpack(buffer, at)
        stop = at + length
        if length < 4:
            raise Malformed(f"netlink attribute {kind} of {length} bytes, less than its header")
        found[kind & 0x3FFF] = buffer[at + 4 : stop]
        at = (stop + 3) & ~3
    if stop > end:
        raise Malformed(f"netlink attribute reaches {stop - end} bytes beyond its message")
    return found


def read_error(buffer: bytes, message: Message) -> tuple[int, str]:
    """Read NLMSG_ERROR or NLMSG_DONE: errno (0 is an acknowledgement) and the kernel's words, if any."""
    code: int = _fixed(I32, buffer, message.at, message.end)[0]
    words = b""
    if message.flags & NLM_F_ACK_TLVS:
        # An error repeats the header of the request before its attributes, or all of it if not capped.
        at = message.at + 4
        if message.kind == NLMSG_ERROR:
            (length,) = _fixed(U32, buffer, at, message.end)
            at += 16 if message.flags & NLM_F_CAPPED else (length + 3) & ~3
        words = attributes(buffer, at, message.end).get(NLMSGERR_ATTR_MSG, b"")
    return -code, words.rstrip(b"\0").decode(errors="replace")


def read_link(buffer: bytes, at: int, end: int) -> LinkMessage:
    """Read a device. Raises Malformed."""
    _, _, ifindex, flags, _ = _fixed(LINK, buffer, at, end)
    found = attributes(buffer, at + LINK.size, end)
    info = _nested(found.get(IFLA_LINKINFO, b""))
    kind = _text(info.get(IFLA_INFO_KIND, b""))
    name, mac, mtu = _text(found.get(IFLA_IFNAME, b"")), found.get(IFLA_ADDRESS, b""), _u32(found.get(IFLA_MTU))
    up, running = bool(flags & IFF_UP), bool(flags & IFF_RUNNING)
    inet6 = _nested(_nested(found.get(IFLA_AF_SPEC, b"")).get(AF_INET6, b""))
    silent = inet6.get(IFLA_INET6_ADDR_GEN_MODE, _SILENT) == _SILENT
    if kind != "vxlan":
        return LinkMessage(ifindex, name, up, running, mtu, mac, kind, silent)
    vxlan = _nested(info.get(IFLA_INFO_DATA, b""))
    return LinkMessage(
        ifindex,
        name,
        up,
        running,
        mtu,
        mac,
        kind,
        silent,
        vni=_u32(vxlan.get(IFLA_VXLAN_ID)),
        port=int.from_bytes(vxlan.get(IFLA_VXLAN_PORT, b""), "big"),
        parent=_u32(vxlan.get(IFLA_VXLAN_LINK)),
        local=vxlan.get(IFLA_VXLAN_LOCAL) or vxlan.get(IFLA_VXLAN_LOCAL6),
        learning=any(vxlan.get(IFLA_VXLAN_LEARNING, b"")),
        gbp=IFLA_VXLAN_GBP in vxlan,
        group=vxlan.get(IFLA_VXLAN_GROUP) or vxlan.get(IFLA_VXLAN_GROUP6),
        marked=_text(found.get(IFLA_IFALIAS, b"")) == DEVICE_MARK,
    )


def read_address(buffer: bytes, at: int, end: int, devices: Mapping[int, str]) -> Address | None:
    """Read an address; None for IPv6 link-local ones, which the kernel makes and takes as it likes."""
    family, prefix_length, _, _, ifindex = _fixed(ADDRESS, buffer, at, end)
    device = devices.get(ifindex)
    if device is None:
        return None
    found = attributes(buffer, at + ADDRESS.size, end)
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
    if len(packed) != _size(family) or (len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80):
        return None
    return Address(device, packed, prefix_length)


def read_neighbour(buffer: bytes, at: int, end: int, devices: Mapping[int, str]) -> Neighbour | FdbEntry | Key | None:
    """Read a neighbour or forwarding entry; only its key if it is in no form that we would make (not permanent)."""
    family, ifindex, state, flags, kind = _fixed(NEIGHBOUR, buffer, at, end)
    device = devices.get(ifindex)
    if device is None:
        return None
    found = attributes(buffer, at + 12, end)
    destination, mac = found.get(NDA_DST), found.get(NDA_LLADDR)
    if family == AF_BRIDGE:
        # Type 0 is what kernels up to 6.12 tell after VXLAN's own message (nlmsg_populate_fdb_fill): no destination.
        if not kind or mac is None or len(mac) != 6 or mac[0] & 1 or mac == _NO_MAC or not flags & NTF_SELF:
            return None
        if destination is not None and state & NUD_PERMANENT:
            return FdbEntry(device, mac, destination)
        return ("fdb", device, mac, 0)
    if destination is None or len(destination) != _size(family) or flags & NTF_PROXY:
        return None
    if mac is not None and len(mac) == 6 and state & NUD_PERMANENT:
        return Neighbour(device, destination, mac)
    return ("neighbour", device, destination, 0)


def read_nexthop(buffer: bytes, at: int, end: int) -> NexthopMessage:
    """Read a nexthop object. Raises Malformed."""
    _, _, protocol, _ = _fixed(NEXTHOP, buffer, at, end)
    found = attributes(buffer, at + 8, end)
    gateway = found.get(NHA_GATEWAY, b"")
    return NexthopMessage(_u32(found.get(NHA_ID)), _u32(found.get(NHA_OIF)) if gateway else 0, gateway, protocol)


def read_route(buffer: bytes, at: int, end: int) -> RouteMessage | None:
    """Read a route; None unless it is in the main table with our metric and selects by destination alone."""
    family, length, source, tos, table, protocol, _, kind, flags = _fixed(ROUTE, buffer, at, end)
    if source or tos or flags & RTM_F_CLONED or protocol == RTPROT_KERNEL:
        return None
    found = attributes(buffer, at + 12, end)
    if (_u32(found.get(RTA_TABLE)) or table) != RT_TABLE_MAIN:
        return None
    if _u32(found.get(RTA_PRIORITY)) != ROUTE_METRIC.get(family):
        return None
    subnet = found.get(RTA_DST) or bytes(_size(family))
    single = kind == RTN_UNICAST and RTA_MULTIPATH not in found
    ifindex = _u32(found.get(RTA_OIF)) if single else 0
    return RouteMessage(ifindex, subnet, length, found.get(RTA_GATEWAY), protocol, _u32(found.get(RTA_NH_ID)))


def read_direct(buffer: bytes, at: int, end: int) -> int:
    """Read the answer to get_route: the interface index if packets go over it without a gateway, else 0."""
    kind = _fixed(ROUTE, buffer, at, end)[7]
    found = attributes(buffer, at + 12, end)
    if kind != RTN_UNICAST or found.keys() & {RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH}:
        return 0
    return _u32(found.get(RTA_OIF))


def _fixed(layout: Struct, buffer: bytes, at: int, end: int) -> tuple[int, ...]:
    if at + layout.size > end:
        raise Malformed(f"netlink message cut off: {end - at} of {layout.size} bytes")
    return layout.unpack_from(buffer, at)


def _nested(value: bytes) -> dict[int, bytes]:
    return attributes(value, 0, len(value))


def _size(family: int) -> int:
    return 4 if family == AF_INET else 16


def _u32(value: bytes | None) -> int:
    return int.from_bytes(value[:4], byteorder) if value else 0


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
