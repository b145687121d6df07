"""The kernel for real: kernel.Kernel over rtnetlink.

    apply    writer.py    operations -> request.py -> rtsocket.py      nexthops.py   gateways <-> nexthop object ids
    listen   monitor.py  rtnetlink.py -> events, own changes left out
    dump     reader.py    rtnetlink.py -> entries, part by part
    devices  here, device.py (pyroute2)

Own changes come back through the monitor; `apply` reads them at its end, while it still knows which they were. Behind
more than a few thousand changes of others they are told later, as those of others are: that costs a second look.

All sockets belong to the network namespace of the thread that calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from errno import EADDRINUSE, EEXIST, EINVAL, EOPNOTSUPP, EPERM

from flanneld_py.encap.kernel import Event, Gone, KernelError, Lost, Seen
from flanneld_py.encap.netlink import competing, device, request, sweep
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.monitor import Monitor, event_key
from flanneld_py.encap.netlink.nexthops import NexthopIds
from flanneld_py.encap.netlink.reader import Reader
from flanneld_py.encap.netlink.rtsocket import (
    Interrupted,
    RequestFailed,
    RouteSocket,
    find_link,
    goes_directly,
    list_links,
)
from flanneld_py.encap.netlink.writer import Writer
from flanneld_py.encap.state import (
    Address,
    Entry,
    Failure,
    FdbEntry,
    ForeignLink,
    Key,
    Link,
    Neighbour,
    Operation,
    OurLink,
    TunLink,
    Verb,
    VxlanLink,
    text,
)

_MONITOR_BATCH = 2000
"""Messages per wakeup: about 5 ms."""
_APPLY_BATCH = 4000
"""Messages before and after our own changes: a routing daemon that loads its table makes them quicker than we read."""


class Netlink:
    """See kernel.Kernel. `nexthop_objects` False keeps off them where the kernel has them, too.

    `receive_buffer` in bytes is how far the monitor may fall behind before events are Lost: the kernel charges some 800
    for each.
    """

    def __init__(self, *, nexthop_objects: bool = True, receive_buffer: int = 16 << 20) -> None:
        self._requests = RouteSocket()
        self._receive_buffer = receive_buffer
        self._kernel_has_nexthops = _probe_nexthops()
        self.nexthop_objects = nexthop_objects and self._kernel_has_nexthops
        self._nexthops = NexthopIds()
        self._writer = Writer(self._requests, self._nexthops, by_id=self.nexthop_objects)
        self._reader = Reader(self._nexthops, report_nexthops=self.nexthop_objects)
        self._devices: tuple[str, ...] = ()
        self._listening: tuple[asyncio.AbstractEventLoop, Monitor, Callable[[Sequence[Event]], None]] | None = None
        self._readings: dict[int, set[Key]] = {}

    def listen(self, devices: Sequence[str], notify: Callable[[Sequence[Event]], None]) -> None:
        """See kernel.Kernel."""
        listener = Monitor(
            devices,
            self._requests.port,
            self._nexthops,
            self._links,
            nexthop_group=self._kernel_has_nexthops,
            report_nexthops=self.nexthop_objects,
            receive_buffer=self._receive_buffer,
        )
        again, loop = self._stop_listening(), asyncio.get_running_loop()
        self._devices = tuple(devices)
        loop.add_reader(listener.socket, self._hear)
        self._listening = (loop, listener, notify)
        if again:
            self._lose()

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """See kernel.Kernel."""
        earlier = self._read_events((), _APPLY_BATCH)
        failures = self._writer.apply(operations)
        if self._readings or earlier:
            failed = {id(failure.operation) for failure in failures}
            done = {operation.entry.key for operation in operations if id(operation) not in failed}
            self._mark(done)
            if self._listening is not None:
                self._listening[1].drop(done)
        if self._read_events(_expected(operations), _APPLY_BATCH) and self._listening is not None:
            self._listening[0].call_soon(self._deliver)
        return failures

    def dump(self) -> Iterator[list[Entry]]:
        """See kernel.Kernel.

        The kernel fills a buffer ahead of its reading, so a part is older than its return: what was changed meanwhile
        is left out of it, by us (the caller knows the outcome) or by others (an event told it).
        """
        found = {name: find_link(self._requests, name) for name in self._devices}
        names = {link.ifindex: name for name, link in found.items() if link is not None}
        changed: set[Key] = set()
        self._readings[id(changed)] = changed
        try:
            yield from self._reader.tables(names, changed, self._lose)
        finally:
            del self._readings[id(changed)]

    devices_in = staticmethod(sweep.devices_in)
    remove_routes = staticmethod(sweep.remove_routes)
    routes_beside = staticmethod(competing.routes_beside)

    def close(self) -> None:
        """See kernel.Kernel."""
        self._stop_listening()
        self._requests.close()

    def _stop_listening(self) -> bool:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening[0].remove_reader(listening[1].socket)
            listening[1].close()
        return listening is not None

    def on_link(self, interface: str, addresses: Iterable[bytes]) -> set[bytes]:
        """See kernel.Kernel."""
        found = find_link(self._requests, interface)
        if found is None:
            return set()
        return {packed for packed in addresses if goes_directly(self._requests, found.ifindex, packed)}

    # Devices

    def link(self, name: str) -> Link | None:
        """See kernel.Kernel."""
        found = find_link(self._requests, name)
        if found is None:
            return None
        if found.kind == "tun":
            return TunLink(name, found.mtu, found.up, found.silent)
        if found.kind != "vxlan":
            return ForeignLink(name, found.kind)
        at_creation = (name, found.vni, found.port, found.mtu, found.mac, self._name(found.parent), found.local)
        return VxlanLink(*at_creation, found.learning, found.gbp, found.group, found.up, found.marked)

    async def why_no_vxlan(self) -> str:
        """See kernel.Kernel."""
        try:
            await device.ask_for_nothing()
        except RequestFailed as refused:
            return str(refused) if refused.errno == EOPNOTSUPP else ""
        return ""

    async def create_link(self, want: VxlanLink) -> None:
        """See kernel.Kernel."""
        try:
            await device.create(want, self._parent(want))
        except RequestFailed as refused:
            raise KernelError(f"cannot create {want.name}: {self._why_not(want, refused)}") from refused

    async def change_link(self, have: OurLink, want: OurLink) -> None:
        """See kernel.Kernel.

        The kernel deletes the neighbours when the MAC changes; routes and nexthop objects when the device goes down.
        VNI, port, GBP, group and the local address's family it does not change: KernelError, delete and create.
        """
        parent = 0
        if isinstance(have, VxlanLink) and isinstance(want, VxlanLink):
            device.require_changeable(have, want)
            parent = self._parent(want)
        elif type(have) is not type(want):
            raise KernelError(f"{want.name} is a device of another kind; delete it and create it anew")
        found = find_link(self._requests, want.name)
        if found is None:
            raise KernelError(f"cannot change {want.name}: there is no such device; create it")
        try:
            await device.change(found.ifindex, have, want, parent)
        except RequestFailed as refused:
            raise KernelError(f"cannot change {want.name}: {self._why_not(want, refused)}") from refused

    async def delete_link(self, name: str, successor: OurLink | None = None) -> None:
        """See kernel.Kernel."""
        found = find_link(self._requests, name)
        if found is None:
            return
        # A TUN device's port is its process's, which ends with it.
        if isinstance(successor, VxlanLink) and found.kind == "vxlan" and found.port != successor.port:
            shared = any((link.kind, link.port) == ("vxlan", successor.port) for link in self._links())
            if not shared and device.port_is_taken(successor):
                raise KernelError(f"{name} stays as it is: {self._why_not(successor, RequestFailed(EADDRINUSE, ''))}")
        try:
            await device.delete(found.ifindex)
        except RequestFailed as refused:
            raise KernelError(f"cannot delete {name}: {refused}") from refused

    def _parent(self, want: VxlanLink) -> int:
        if want.parent is None:
            return 0
        found = find_link(self._requests, want.parent)
        if found is None:
            raise KernelError(f"{want.name} needs the underlay interface {want.parent}, which does not exist")
        return found.ifindex

    def _why_not(self, want: OurLink, refused: RequestFailed) -> str:
        if refused.errno == EEXIST and isinstance(want, VxlanLink):
            if find_link(self._requests, want.name) is not None:
                return "a device of that name exists"
            for link in self._links():
                if (link.kind, link.vni, link.port) == ("vxlan", want.vni, want.port):
                    return f"{link.name} has VNI {want.vni} on port {want.port} already; delete it, or use another VNI"
        if refused.errno == EPERM:
            return f"{refused}; run as root, or with CAP_NET_ADMIN"
        if refused.errno == EOPNOTSUPP:
            return (
                f"{refused}; the kernel has no VXLAN devices: load its module (modprobe vxlan) or try --datapath auto"
            )
        if refused.errno == EADDRINUSE and isinstance(want, VxlanLink):
            return (
                f"UDP port {want.port} is taken by a program or another VXLAN device (ss -lunp, ip -d link show type "
                "vxlan): end that one, or choose another Backend.Port for all hosts"
            )
        if refused.errno == EINVAL and isinstance(want, VxlanLink):
            local = "no local address" if want.local is None else f"local address {text(want.local)}"
            parent = "without a parent" if want.parent is None else f"on {want.parent}"
            return f"{refused}; check that MTU {want.mtu} and {local} are possible {parent}"
        return str(refused)

    def _name(self, ifindex: int) -> str | None:
        if not ifindex:
            return None
        found = find_link(self._requests, ifindex)
        # A parent may be in another namespace; the number then stands for a name that is not to be had.
        return f"#{ifindex}" if found is None else found.name

    def _links(self) -> list[rt.LinkMessage]:
        with RouteSocket() as reader:
            return list_links(reader)

    # Events

    def _read_events(self, expected: Collection[Event], limit: int) -> bool:
        if self._listening is None:
            return False
        events = self._listening[1].read(expected, limit)
        if self._readings:
            self._mark(key for event in events if (key := event_key(event)))
        return bool(events)

    def _hear(self) -> None:
        self._read_events((), _MONITOR_BATCH)
        self._deliver()

    def _deliver(self) -> None:
        if self._listening is not None and (events := self._listening[1].take()):
            self._listening[2](events)

    def _lose(self) -> None:
        if self._listening is not None:
            loop, _, notify = self._listening
            loop.call_soon(notify, [Lost()])

    def _mark(self, keys: Iterable[Key]) -> None:
        changed = list(keys)
        for reading in self._readings.values():
            reading.update(changed)


def _expected(operations: Sequence[Operation]) -> set[Event]:
    """Return the events of these operations that will come back without our port id (see monitor.py)."""
    expected: set[Event] = set()
    for operation in operations:
        match operation.verb, operation.entry:
            case Verb.REMOVE, (FdbEntry() | Neighbour() | Address()) as entry:
                expected.add(Gone(entry.key))
            case _, (FdbEntry() | Address()) as entry:
                expected.add(Seen(entry))
    return expected


def _probe_nexthops() -> bool:
    with RouteSocket() as reader:
        try:
            for _ in reader.dump(request.dump_nexthops):
                pass
        except Interrupted:
            return True
        except RequestFailed:
            return False
    return True
