"""What others do to the kernel's tables, as events: a multicast socket, and the translation.

    kernel --multicast--> socket, own changes left out --read--> the rest translated --> pending --take--> events

What somebody did to a key before our change to it is history, and dropped; what was done in the same millisecond is
told, and at worst has us do ours once more. Most own changes bear our request socket's port id, by which the kernel
leaves them out. Three do not: forwarding entries, IPv6 addresses, and the second message about a deleted neighbour.
These are known by what `read` is told to expect; one that comes late (an IPv6 address that ends being tentative) is
told as a Seen of what is there, which changes nothing. Of a forwarding entry kernels up to 6.12 tell a second time,
without its destination: `read_neighbour` leaves that out.

What the kernel does not tell, and what is told instead:
- device down: IPv4 routes and nexthop objects vanish silently; LinkChanged.
- nexthop object deleted: its IPv4 routes vanish silently; Gone, which says it of both (Tracker.gone), or Lost if the
  object is not ours.
- route replaced (`ip route replace`): only the new route is told; Gone for that subnet on every other device of ours.
- device's MAC changed: its neighbours are deleted, and told.

Tried on 5.10, 6.1, 6.12, 6.18 and 7.2.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from errno import ENOBUFS

from flanneld_py.encap import socketfilter
from flanneld_py.encap.kernel import Event, Gone, HostChanged, KernelError, LinkChanged, Lost, Rerouted, Seen
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.nexthops import NexthopIds, is_ours
from flanneld_py.encap.netlink.rtnetlink import Message
from flanneld_py.encap.netlink.rtsocket import RECEIVE_BYTES, SOL_NETLINK
from flanneld_py.encap.state import FdbEntry, Key, Neighbour, Nexthop, Route

NETLINK_ADD_MEMBERSHIP = 1
SO_RCVBUFFORCE = 33
_GROUPS = (1, 3, 5, 7, 9, 11)
"""RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
_GROUP_NEXTHOP = 32


class Monitor:
    """One monitor socket. `links` lists all devices; `own_port` is the port id of the socket that makes our changes.

    Raises KernelError if it cannot be had.
    """

    def __init__(
        self,
        devices: Collection[str],
        own_port: int,
        nexthops: NexthopIds,
        links: Callable[[], Iterable[rt.LinkMessage]],
        *,
        nexthop_group: bool,
        report_nexthops: bool,
        receive_buffer: int,
    ) -> None:
        self._devices = frozenset(devices)
        self._nexthops = nexthops
        self._links = links
        self._report_nexthops = report_nexthops
        self._pending: list[Event] = []
        self._names: dict[int, str] = {}
        self.watched: dict[int, str] = {}
        """The devices of interest that exist: interface index -> name."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self.socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        except OSError as error:
            raise KernelError(f"the kernel cannot be listened to: {error.strerror}") from error
        try:
            self._open(receive_buffer, own_port, nexthop_group=nexthop_group)
        except BaseException:
            self.socket.close()
            raise

    def _open(self, receive_buffer: int, own_port: int, *, nexthop_group: bool) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((0, 0))
        for group in (*_GROUPS, *([_GROUP_NEXTHOP] if nexthop_group else [])):
            self.socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        socketfilter.attach(self.socket, socketfilter.SO_ATTACH_FILTER, _all_but(own_port))
        self._name_devices()

    def read(self, expected: Collection[Event], limit: int) -> list[Event]:
        """Read up to `limit` messages that lie ready; return all events that wait for `take`."""
        for _ in range(limit):
            try:
                buffer = self.socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != ENOBUFS:
                    raise
                self._pending = [Lost()]
                with suppress(KernelError):  # The names that we have stay.
                    self._name_devices()
                continue
            try:
                for message in rt.messages(buffer):
                    self._hear(buffer, message, expected)
            except rt.Malformed:
                self._pending.append(Lost())
        return self._pending

    def take(self) -> list[Event]:
        """Hand over the events read so far."""
        events, self._pending = self._pending, []
        return events

    def drop(self, keys: Collection[Key]) -> None:
        """Forget what was read about these keys: we have changed them since."""
        self._pending = [event for event in self._pending if event_key(event) not in keys]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _hear(self, buffer: bytes, message: Message, expected: Collection[Event]) -> None:
        for event in self._translate(buffer, message):
            if event not in expected and [event] != self._pending[-1:]:
                self._pending.append(event)

    def _translate(self, buffer: bytes, message: Message) -> list[Event]:
        kind, _, _, _, at, end = message
        match kind:
            case rt.RTM_NEWNEIGH | rt.RTM_DELNEIGH:
                return neighbour_events(buffer, message, self.watched)
            case rt.RTM_NEWROUTE | rt.RTM_DELROUTE:
                events = self._route(buffer, message)
                _, length, _, _, table, _, _, _, _ = rt.ROUTE.unpack_from(buffer, at)
                default = length == 0 and table == rt.RT_TABLE_MAIN
                return [*events, Rerouted(), *([HostChanged()] if default else [])]
            case rt.RTM_NEWADDR | rt.RTM_DELADDR:
                address = rt.read_address(buffer, at, end, self._names)
                if address is None:
                    return [Rerouted()]
                seen = address.device in self.watched.values()
                events = [Seen(address) if kind == rt.RTM_NEWADDR else Gone(address.key)] if seen else []
                return [*events, Rerouted(), HostChanged(address.device)]
            case rt.RTM_NEWNEXTHOP | rt.RTM_DELNEXTHOP:
                return self._nexthop(rt.read_nexthop(buffer, at, end), made=kind == rt.RTM_NEWNEXTHOP)
            case rt.RTM_NEWLINK | rt.RTM_DELLINK if buffer[at] == 0:
                # Other families are not about the device: AF_BRIDGE's RTM_DELLINK is a port leaving a bridge.
                return self._link(rt.read_link(buffer, at, end), present=kind == rt.RTM_NEWLINK)
        return []

    def _route(self, buffer: bytes, message: Message) -> list[Event]:
        told = rt.read_route(buffer, message.at, message.end)
        if told is None:
            return []
        ifindex, gateway = self._nexthops.resolve(told)
        device = self.watched.get(ifindex)
        route = None if device is None else Route(device, told.subnet, told.prefix_length, gateway, told.protocol)
        if message.kind == rt.RTM_DELROUTE:
            return [] if route is None else [Gone(route.key)]
        events: list[Event] = [] if route is None else [Seen(route)]
        if message.flags & rt.NLM_F_REPLACE:
            others = (name for name in self.watched.values() if route is None or name != route.device)
            events += [Gone(("route", name, told.subnet, told.prefix_length)) for name in others]
        return events

    def _nexthop(self, told: rt.NexthopMessage, *, made: bool) -> list[Event]:
        device = self.watched.get(told.ifindex)
        if made:
            self._nexthops.learn(told)
        else:
            self._nexthops.forget(told.id)
        if device is None:
            return []
        ours = is_ours(told) and self._report_nexthops
        entry = Nexthop(device, told.gateway, told.protocol)
        if made:
            return [Seen(entry)] if ours else []
        return [Gone(entry.key)] if ours else [Lost()]

    def _link(self, told: rt.LinkMessage, *, present: bool) -> list[Event]:
        if not (present and told.up and told.running):
            self._nexthops.forget_device(told.ifindex)
        before = self._names.pop(told.ifindex, told.name)
        self.watched.pop(told.ifindex, None)
        if not present:
            return [LinkChanged(told.name, False)]
        self._name(told)
        renamed = [LinkChanged(before, False)] if before != told.name else []
        return [*renamed, LinkChanged(told.name, True)]

    def _name_devices(self) -> None:
        links = list(self._links())  # May raise: then the names that we have stay.
        self._names.clear()
        self.watched.clear()
        for link in links:
            self._name(link)

    def _name(self, link: rt.LinkMessage) -> None:
        self._names[link.ifindex] = link.name
        if link.name in self._devices:
            self.watched[link.ifindex] = link.name


def _all_but(port: int) -> list[socketfilter.Instruction]:
    """Return the program that passes all notifications but those of changes made through the socket with that port."""
    port_of_message = 12  # linux/netlink.h: nlmsg_pid; a word is loaded in network byte order.
    found = int.from_bytes(rt.U32.pack(port))
    return [
        (socketfilter.LOAD_WORD, port_of_message, 0),
        (socketfilter.SKIP_UNLESS_EQUAL, found, 1),
        (socketfilter.RETURN, 0, 0),
        (socketfilter.RETURN, 0xFFFFFFFF, 0),
    ]


def neighbour_events(buffer: bytes, message: Message, devices: Mapping[int, str]) -> list[Event]:
    """Translate a message about a neighbour or forwarding entry. Raises Malformed."""
    found = rt.read_neighbour(buffer, message.at, message.end, devices)
    if found is None:
        return []
    if not isinstance(found, Neighbour | FdbEntry):
        return [Gone(found)]
    return [Seen(found) if message.kind == rt.RTM_NEWNEIGH else Gone(found.key)]


def event_key(event: Event) -> Key | None:
    """Return the key of the entry that an event is about, if it is about one."""
    match event:
        case Seen(entry):
            return entry.key
        case Gone(key):
            return key
        case _:
            return None
