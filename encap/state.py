"""Kernel objects as values: what we want there, and what is there.

Two sorts, because they behave differently:

    VxlanLink    a device. Few, each with a life of its own: made, changed in place, seldom made anew.
    Entry        one line in a kernel table on a device: Address | Neighbour | FdbEntry | Nexthop | Route.
                 Tens of thousands; each has a `key` (what the kernel identifies it by) and a value.

Packet to a container of peer P, and the entry that serves each step:

    10.5.2.7  --Route-->  via 10.5.2.0 (P's subnet base) dev flannel.1, onlink
              --Neighbour-->  10.5.2.0 is at P's VtepMAC      (inner destination MAC)
              --FdbEntry-->   P's VtepMAC is behind P's PublicIP  (outer destination address)

A Nexthop is the gateway of a Route made an object of its own: without it the kernel's route insertion grows
superlinearly (10 000 routes: 1.4 s against 0.07 s). A Route means the same with and without it.

Addresses and MACs are packed bytes in network order, as netlink carries them: 4 or 16, and 6 long.
`text()` shows them to people. An entry names its device by name; only encap/netlink/netlink.py knows interface indexes.

Entries and operations are named tuples where everything else is a frozen dataclass: ten thousand peers make eighty
thousand of them, and a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

ROUTE_PROTOCOL = 76
"""Our number in the `proto` field of routes and nexthops (`ip route show proto 76`): the mark of what is ours.

Nobody has it in linux/rtnetlink.h, iproute2's rt_protos or FRR (186 to 198).
"""

FORMER_PROTOCOL = 84
"""What was our number until Linux gave it to OVN. Where only ours can be it still is a mark of ours, to be replaced."""

MARKS = frozenset({ROUTE_PROTOCOL, FORMER_PROTOCOL})

DEVICE_MARK = "flanneld-py"
"""Our VXLAN devices' alias (`ip link show`): the mark of those that we made or took over."""

RTPROT_BOOT = 3
"""linux/rtnetlink.h; what `ip route add` and flannel's daemon leave in routes."""

Key = tuple[str, str, bytes, int]
"""(kind, device, address, prefix length): what the kernel tells entries apart by."""


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A kernel VXLAN device (linux/if_link.h, IFLA_VXLAN_*). `port` in UDP, `mtu` in bytes.

    `local` is the outer source address; `parent` the underlay interface, None if not bound to one.
    `group` is a default destination; ours never have one. `marked`: it has our alias.
    """

    name: str
    vni: int
    port: int
    mtu: int
    mac: bytes
    parent: str | None
    local: bytes | None
    learning: bool = False
    gbp: bool = False
    group: bytes | None = None
    up: bool = True
    marked: bool = True


@dataclass(frozen=True, slots=True)
class TunLink:
    """A TUN device, made by the data-plane process and gone with it; `mtu` in bytes.

    `silent`: the kernel gives it no IPv6 link-local address, and so asks for no routers through it.
    """

    name: str
    mtu: int
    up: bool = True
    silent: bool = True


@dataclass(frozen=True, slots=True)
class ForeignLink:
    """A device that has our name and is neither VXLAN nor TUN. It is never touched."""

    name: str
    kind: str


OurLink = VxlanLink | TunLink
Link = OurLink | ForeignLink


class Address(NamedTuple):
    """An address on a device."""

    device: str
    address: bytes
    prefix_length: int

    @property
    def key(self) -> Key:
        """Identity in the kernel."""
        return ("address", self.device, self.address, self.prefix_length)


class Neighbour(NamedTuple):
    """A permanent neighbour (ARP, ND) entry: `address` is at `mac`."""

    device: str
    address: bytes
    mac: bytes

    @property
    def key(self) -> Key:
        """Identity in the kernel."""
        return ("neighbour", self.device, self.address, 0)


class FdbEntry(NamedTuple):
    """A permanent forwarding database entry: `mac` is behind the VTEP at `destination`."""

    device: str
    mac: bytes
    destination: bytes

    @property
    def key(self) -> Key:
        """Identity in the kernel."""
        return ("fdb", self.device, self.mac, 0)


class Nexthop(NamedTuple):
    """A nexthop object: `gateway` on `device`, onlink. Kernel ids are given out by encap/netlink/netlink.py."""

    device: str
    gateway: bytes
    protocol: int = ROUTE_PROTOCOL

    @property
    def key(self) -> Key:
        """Identity in the kernel."""
        return ("nexthop", self.device, self.gateway, 0)


class Route(NamedTuple):
    """A unicast route in the main table: `subnet`/`prefix_length` via `gateway` on `device`, onlink.

    `protocol` is no part of equality: a route of flannel's daemon in our form serves as well as ours. But not one with
    our former mark.
    `gateway` None is a route straight to the device.
    """

    device: str
    subnet: bytes
    prefix_length: int
    gateway: bytes | None
    protocol: int = ROUTE_PROTOCOL

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Route) and self._serves == other._serves

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._serves)

    @property
    def _serves(self) -> tuple[str, bytes, int, bytes | None, bool]:
        return *self[:4], self.protocol != FORMER_PROTOCOL

    @property
    def key(self) -> Key:
        """Identity in the kernel."""
        return ("route", self.device, self.subnet, self.prefix_length)

    @property
    def overlay(self) -> bool:
        """Whether it has the form that only an overlay's routes have: by way of the subnet's own base, or of nobody."""
        return self.gateway is None or self.gateway == self.subnet


Entry = Address | Neighbour | FdbEntry | Nexthop | Route


class Verb(Enum):
    """What to do with an entry.

    ADD refuses to overwrite what is there (it might be foreign); REPLACE is for what we know to be ours, and
    is atomic: no packet finds neither the old nor the new value.
    """

    ADD = "add"
    REPLACE = "replace"
    REMOVE = "remove"


class Operation(NamedTuple):
    """One change to a kernel table."""

    verb: Verb
    entry: Entry


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the kernel refused: `errno`, and the kernel's own words where it gave any."""

    operation: Operation
    errno: int
    message: str


def text(packed: bytes) -> str:
    """Show packed bytes to people: a MAC if 6 long, else an IP address."""
    return packed.hex(":") if len(packed) == 6 else str(ip_address(packed))


def describe(entry: Entry) -> str:
    """Name an entry in an operator's words, close to what `ip` and `bridge` print."""
    match entry:
        case Address(device, address, length):
            return f"address {text(address)}/{length} on {device}"
        case Neighbour(device, address, mac):
            return f"neighbour {text(address)} at {text(mac)} on {device}"
        case FdbEntry(device, mac, destination):
            return f"FDB entry {text(mac)} to {text(destination)} on {device}"
        case Nexthop(device, gateway):
            return f"nexthop {text(gateway)} on {device}"
        case Route(device, subnet, length, gateway):
            via = f" via {text(gateway)}" if gateway is not None else ""
            return f"route {text(subnet)}/{length}{via} on {device}"
