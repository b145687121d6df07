"""A kernel in memory that behaves like netlink.Netlink, and one for which tests can play the foreigner and the fault.

    kernel.Kernel      listen, link, *_link, dump, apply, close
    meddle_*           what somebody else does, with the events (and the silences) of Linux
    fail, fail_links   operations that are refused

Trusted because it passes `tests/contract/test_kernel.py`, as Netlink does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from errno import EEXIST, ENETDOWN, ENODEV, EOPNOTSUPP
from ipaddress import ip_address

from flanneld_py.encap.family import Network
from flanneld_py.encap.kernel import Event, Gone, HostChanged, KernelError, LinkChanged, Lost, Rerouted, Seen
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.monitor import event_key, neighbour_events
from flanneld_py.encap.state import (
    MARKS,
    RTPROT_BOOT,
    Address,
    Entry,
    Failure,
    ForeignLink,
    Key,
    Link,
    Nexthop,
    Operation,
    OurLink,
    Route,
    TunLink,
    Verb,
    VxlanLink,
    describe,
    text,
)

MADE_BY_US = (*MARKS, RTPROT_BOOT)


@dataclass(slots=True)
class _Fault:
    where: Callable[[Operation], bool]
    errno: int
    left: int


class FakeKernel:
    """See the module's docstring. `interfaces` are the other devices of the host, all up.

    `tables` and `links` may be read at any time, and filled before `listen` with what an earlier run left.
    A dump yields `part` entries at a time. `tells_twice`: of a change of a forwarding entry, whoever made it, there is
    the second message of kernels up to 6.12, in its bytes.
    """

    def __init__(
        self,
        interfaces: Iterable[str] = ("eth0",),
        *,
        nexthop_objects: bool = True,
        part: int = 100,
        tells_twice: bool = False,
    ) -> None:
        self.nexthop_objects = nexthop_objects
        self.tells_twice = tells_twice
        self.has_vxlan = True
        self.interfaces = set(interfaces)
        self.links: dict[str, Link] = {}
        self.tables: dict[Key, Entry] = {}
        self._part = part
        self._devices: frozenset[str] = frozenset()
        self._notify: Callable[[Sequence[Event]], None] | None = None
        self._pending: list[Event] = []
        self._faults: list[_Fault] = []
        self._link_faults: list[str] = []
        self.beside: dict[tuple[bytes, int], str] = {}
        """What others have to subnets with another metric."""
        self.opponent: Callable[[Operation], None] | None = None
        """What somebody does right after each of our operations; it may meddle."""
        self.applied = 0
        """How many operations were done, whether anything changed by them or not."""

    # kernel.Kernel

    def listen(self, devices: Sequence[str], notify: Callable[[Sequence[Event]], None]) -> None:
        asyncio.get_running_loop()
        again, self._pending = self._notify is not None, []
        self._devices = frozenset(devices)
        self._notify = notify
        if again:
            self._queue(Lost())

    def link(self, name: str) -> Link | None:
        return self.links.get(name)

    def on_link(self, interface: str, addresses: Iterable[bytes]) -> set[bytes]:
        return {packed for packed in addresses if self._way(packed) == (interface, None)}

    async def why_no_vxlan(self) -> str:
        return "" if self.has_vxlan else "Operation not supported"

    async def create_link(self, want: VxlanLink) -> None:
        self._refuse_link_if_told()
        if want.parent is not None and want.parent not in self.interfaces:
            raise KernelError(f"{want.name} needs the underlay interface {want.parent}, which does not exist")
        if want.name in self.links:
            raise KernelError(f"cannot create {want.name}: a device of that name exists")
        for name, link in self.links.items():
            if (
                isinstance(link, VxlanLink)
                and (link.vni, link.port) == (want.vni, want.port)
                and _same_family(link, want)
            ):
                raise KernelError(f"cannot create {want.name}: {name} has VNI {want.vni} on port {want.port} already")
        self.meddle_create_link(want)

    async def change_link(self, have: OurLink, want: OurLink) -> None:
        self._refuse_link_if_told()
        if isinstance(have, TunLink) or isinstance(want, TunLink):
            if type(have) is not type(want):
                raise KernelError(f"{want.name} is a device of another kind; delete it and create it anew")
            self.meddle_create_link(want)
            return
        if want.parent is not None and want.parent not in self.interfaces:
            raise KernelError(f"{want.name} needs the underlay interface {want.parent}, which does not exist")
        if not _changeable(have, want):
            raise KernelError(f"{want.name} cannot be changed so; delete the device and create it anew")
        if want.name not in self.links:
            raise KernelError(f"cannot change {want.name}: there is no such device; create it")
        if have.mac != want.mac:
            self._vanish(want.name, ("neighbour",), silently=False)
        if have.up and not want.up:
            self.meddle_down(want.name)
        self.links[want.name] = want
        self._tell(LinkChanged(want.name, True))

    async def delete_link(self, name: str, successor: OurLink | None = None) -> None:
        self._refuse_link_if_told()
        if name in self.links:
            self.meddle_delete_link(name)

    def devices_in(self, subnets: Collection[Network]) -> list[str]:
        ours = {name for name, link in self.links.items() if isinstance(link, TunLink) or _is_marked(link)}
        addresses = [entry for entry in self.tables.values() if isinstance(entry, Address) and entry.device in ours]
        return sorted({entry.device for entry in addresses if _is_in(entry.address, subnets)})

    def remove_routes(
        self, networks: Collection[Network], keep: Collection[tuple[int, str]], others: Collection[Network] = ()
    ) -> list[str]:
        doomed = [
            entry
            for entry in self.tables.values()
            if isinstance(entry, Route)
            and entry.protocol in MARKS
            and _is_in(entry.subnet, networks)
            and not _is_in(entry.subnet, others)
            and (4 if len(entry.subnet) == 4 else 6, entry.device) not in keep
            and not self._by_object(entry)
        ]
        for entry in doomed:
            self.meddle_remove(entry.key)
        return [f"route {text(entry.subnet)}/{entry.prefix_length} on {entry.device}" for entry in doomed]

    def routes_beside(
        self, subnets: Collection[tuple[bytes, int]], devices: Collection[str]
    ) -> dict[tuple[bytes, int], str]:
        return {subnet: words for subnet, words in self.beside.items() if subnet in subnets}

    def dump(self) -> Iterator[list[Entry]]:
        keys = [key for key, entry in self.tables.items() if self._is_dumped(entry)]
        for at in range(0, len(keys), self._part):
            if part := [self.tables[key] for key in keys[at : at + self._part] if key in self.tables]:
                yield part

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        failures = []
        for operation in operations:
            refusal = self._fault(operation) or self._do(operation)
            if refusal is not None:
                failures.append(Failure(operation, *refusal))
                continue
            self.applied += 1
            if self._pending:
                self._pending = [event for event in self._pending if event_key(event) != operation.entry.key]
            self._tell_again(operation.entry.key, made=operation.verb is not Verb.REMOVE)
            if self.opponent is not None:
                self.opponent(operation)
        return failures

    def close(self) -> None:
        self._notify = None

    # Faults

    def fail(self, where: Callable[[Operation], bool], errno: int, times: int = 1) -> None:
        """Refuse the next operations that `where` accepts."""
        self._faults.append(_Fault(where, errno, times))

    def fail_links(self, message: str, times: int = 1) -> None:
        """Refuse the next device operations."""
        self._link_faults += [message] * times

    # The foreigner

    def meddle_set(self, entry: Entry) -> None:
        """Make or change an entry, on any device."""
        self.tables[entry.key] = entry
        self._tell(Seen(entry))

    def meddle_replace(self, route: Route) -> None:
        """Replace a route, as `ip route replace` does: it takes the place of one on another device, too."""
        for key in [key for key, there in self.tables.items() if _same_subnet(there, route)]:
            del self.tables[key]
            self._tell(Gone(key))
        self.meddle_set(route)

    def meddle_remove(self, key: Key) -> None:
        """Delete an entry; with a nexthop go its routes, the IPv4 ones unreported."""
        entry = self.tables.pop(key, None)
        if entry is None:
            return
        self._tell(Gone(key))
        if isinstance(entry, Nexthop):
            self._drop_routes(entry)

    def meddle_flush(self, kind: str, device: str) -> None:
        """Delete all entries of a kind on a device."""
        for key in [key for key in self.tables if key[:2] == (kind, device)]:
            self.meddle_remove(key)

    def meddle_create_link(self, link: Link) -> None:
        """Make a device."""
        self.links[link.name] = link
        self._tell(LinkChanged(link.name, True))

    def meddle_host(self, device: str | None = None) -> None:
        """Change an address (of a device) or a default route of the host."""
        self._tell(HostChanged(device))

    def meddle_down(self, name: str) -> None:
        """Set a device down: IPv4 routes and nexthop objects go unreported."""
        link = self.links[name]
        assert isinstance(link, VxlanLink)
        self.links[name] = replace(link, up=False)
        self._tell(LinkChanged(name, True))
        self._vanish(name, ("nexthop",), silently=True)
        self._vanish(name, ("route",), silently=False, report=lambda key: len(key[2]) == 16)

    def meddle_up(self, name: str) -> None:
        """Set a device up."""
        link = self.links[name]
        assert isinstance(link, VxlanLink)
        self.links[name] = replace(link, up=True)
        self._tell(LinkChanged(name, True))

    def meddle_delete_link(self, name: str, *, told: bool = True) -> None:
        """Delete a device and all that is on it; `told` False for the moment before its own event comes."""
        if not isinstance(self.links.pop(name), ForeignLink):
            self._vanish(name, ("nexthop", "route"), silently=True)
            self._vanish(name, ("address", "fdb", "neighbour"), silently=False)
        if told:
            self._tell(LinkChanged(name, False))

    def meddle_silently(self, key: Key) -> None:
        """Delete an entry so that nobody is told: what only a reading finds."""
        self.tables.pop(key, None)

    def meddle_falsely(self, key: Key) -> None:
        """Tell that an entry is gone which is there."""
        self._tell(Gone(key))

    def meddle_overflow(self) -> None:
        """Lose the events not yet told."""
        self._pending.clear()
        self._tell(Lost())

    # Inside

    def _do(self, operation: Operation) -> tuple[int, str] | None:
        entry = operation.entry
        if operation.verb is Verb.REMOVE:
            if self.tables.pop(entry.key, None) is not None and isinstance(entry, Nexthop):
                self._drop_routes(entry)
            return None
        link = self.links.get(entry.device)
        if link is None and entry.device not in self.interfaces:
            return ENODEV, f"there is no device {entry.device}"
        if refusal := self._in_the_way(operation):
            return refusal
        if isinstance(entry, Route | Nexthop) and isinstance(link, VxlanLink) and not link.up:
            return ENETDOWN, f"{entry.device} is down"
        self.tables[entry.key] = entry
        return None

    def _in_the_way(self, operation: Operation) -> tuple[int, str] | None:
        entry = operation.entry
        there = self.tables.get(entry.key)
        match operation.verb, entry:
            case _, Nexthop() if not self.nexthop_objects:
                return EOPNOTSUPP, "nexthop objects are off or not in this kernel; use routes alone"
            case Verb.ADD, Route() if isinstance(there, Route) and there[:4] != entry[:4]:
                return EEXIST, f"{describe(there)} is there already"
            case Verb.ADD, Route(overlay=False) if isinstance(there, Route) and there.protocol not in MADE_BY_US:
                return EEXIST, f"{describe(there)} is not ours and is left alone"
            case _, Route():
                for device in (self.interfaces | self.links.keys()) - {entry.device}:
                    other = self.tables.get(("route", device, entry.subnet, entry.prefix_length))
                    if isinstance(other, Route) and operation.verb is Verb.REPLACE and other.protocol in MARKS:
                        del self.tables[other.key]
                    elif other is not None:
                        return EEXIST, f"{describe(other)} is not ours and is left alone"
            case Verb.ADD, Address(device, address, length) if len(address) == 16:
                for other in (self.tables.get(("address", device, address, n)) for n in range(129) if n != length):
                    if other is not None:
                        return EEXIST, f"{describe(other)} is there already"
        return None

    def _way(self, packed: bytes) -> tuple[str, bytes | None] | None:
        """Return device and gateway of the longest prefix that covers an address; None if there is none."""
        ways: dict[int, tuple[str, bytes | None]] = {}
        for entry in self.tables.values():
            match entry:
                case Address(device, base, length) if length < 8 * len(base) and _covers(base, length, packed):
                    ways.setdefault(length, (device, None))
                case Route(device, base, length, gateway) if _covers(base, length, packed):
                    ways[length] = device, gateway
        return ways[max(ways)] if ways else None

    def _by_object(self, route: Route) -> bool:
        return route.gateway is not None and Nexthop(route.device, route.gateway).key in self.tables

    def _drop_routes(self, nexthop: Nexthop) -> None:
        for key, entry in list(self.tables.items()):
            if isinstance(entry, Route) and (entry.device, entry.gateway) == (nexthop.device, nexthop.gateway):
                del self.tables[key]
                if len(entry.subnet) == 16:
                    self._tell(Gone(key))

    def _vanish(
        self, device: str, kinds: Sequence[str], *, silently: bool, report: Callable[[Key], bool] = lambda key: True
    ) -> None:
        for key in [key for key in self.tables if key[0] in kinds and key[1] == device]:
            del self.tables[key]
            if not silently and report(key):
                self._tell(Gone(key))

    def _is_dumped(self, entry: Entry) -> bool:
        if entry.device not in self._devices:
            return False
        return self.nexthop_objects or not isinstance(entry, Nexthop)

    def _fault(self, operation: Operation) -> tuple[int, str] | None:
        for fault in self._faults:
            if fault.left and fault.where(operation):
                fault.left -= 1
                return fault.errno, "refused on the test's demand"
        return None

    def _refuse_link_if_told(self) -> None:
        if self._link_faults:
            raise KernelError(self._link_faults.pop(0))

    def _tell(self, event: Event) -> None:
        key = event_key(event)
        if key is not None and key[0] in ("address", "route"):
            self._queue(Rerouted())
        match event:
            case Seen(entry) if entry.device not in self._devices:
                return
            case Gone((_, device, _, _)) if device not in self._devices:
                return
        self._queue(event)
        if key is not None:
            self._tell_again(key, made=isinstance(event, Seen))

    def _tell_again(self, key: Key, *, made: bool) -> None:
        kind, device, lladdr, _ = key
        if not self.tells_twice or kind != "fdb":
            return
        number, ifindex = rt.RTM_NEWNEIGH if made else rt.RTM_DELNEIGH, 3
        body = rt.NEIGHBOUR.pack(rt.AF_BRIDGE, ifindex, rt.NUD_PERMANENT | rt.NUD_NOARP, rt.NTF_SELF, 0)
        body += rt.ATTRIBUTE.pack(10, rt.NDA_LLADDR) + lladdr + bytes(2)
        buffer = rt.HEADER.pack(rt.HEADER.size + len(body), number, 0, 0, 0) + body
        for message in rt.messages(buffer):
            for event in neighbour_events(buffer, message, {ifindex: device}):
                self._queue(event)

    def _queue(self, event: Event) -> None:
        if self._notify is None:
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._pending.append(event)

    def _deliver(self) -> None:
        events, self._pending = self._pending, []
        if self._notify is not None and events:
            self._notify(events)


def _covers(base: bytes, length: int, packed: bytes) -> bool:
    if len(base) != len(packed):
        return False
    rest = 8 * len(base) - length
    return int.from_bytes(base) >> rest == int.from_bytes(packed) >> rest


def _same_subnet(entry: Entry, route: Route) -> bool:
    return isinstance(entry, Route) and (entry.subnet, entry.prefix_length) == (route.subnet, route.prefix_length)


def _same_tunnel(one: VxlanLink, other: VxlanLink) -> bool:
    return (one.vni, one.port) == (other.vni, other.port) and _same_family(one, other)


def _same_family(one: VxlanLink, other: VxlanLink) -> bool:
    return len(one.local or b"") == len(other.local or b"")


def _changeable(have: VxlanLink, want: VxlanLink) -> bool:
    same = ("vni", "port", "gbp", "group")
    return (
        all(getattr(have, field) == getattr(want, field) for field in same)
        and _same_family(have, want)
        and (have.parent is None) == (want.parent is None)
    )


def _is_marked(link: Link) -> bool:
    return isinstance(link, VxlanLink) and link.marked


def _is_in(packed: bytes, networks: Collection[Network]) -> bool:
    return any(ip_address(packed) in network for network in networks)
