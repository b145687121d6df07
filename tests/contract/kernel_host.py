"""A host for tests of the kernel: the kernel under test, a foreigner beside it, and a throw-away namespace.

    the namespace                           lo, p0 -- p1 (a veth pair), p0 is the underlay: 10.0.0.1/24, fd00::1/64
      flannel.1    VXLAN over IPv4          made by the kernel under test
      flannel-v6.1 VXLAN over IPv6

`Foreigner` is everybody else on the host: `Linux` (`ip` and `bridge`) for the real kernel, `Meddler` for the fake. It
is also the witness: it tells what is in the tables without the code under test.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Protocol

import pytest

from flanneld_py.encap.kernel import Event, Gone, Kernel, Seen
from flanneld_py.encap.netlink.nexthops import FIRST
from flanneld_py.encap.state import (
    FORMER_PROTOCOL,
    MARKS,
    Address,
    Entry,
    FdbEntry,
    Key,
    Neighbour,
    Nexthop,
    Operation,
    Route,
    Verb,
    VxlanLink,
    text,
)
from tests.fakes.kernel import FakeKernel
from tests.patience import patient

DEVICE, DEVICE6, UNDERLAY = "flannel.1", "flannel-v6.1", "p0"
CLONE_NEWNET = 0x40000000
DEADLINE = 10.0


def ip(address: str) -> bytes:
    return ip_address(address).packed


def mac(number: int) -> bytes:
    return bytes([2, 0, 0]) + number.to_bytes(3, "big")


LINK = VxlanLink(DEVICE, 1, 8472, 1450, bytes.fromhex("024422000001"), UNDERLAY, ip("10.0.0.1"))
LINK6 = VxlanLink(DEVICE6, 1, 8472, 1430, bytes.fromhex("024422000002"), UNDERLAY, ip("fd00::1"))


def peer(number: int, *, v6: bool = False, objects: bool) -> list[Entry]:
    """All that serves one peer, in the order in which it is made."""
    if v6:
        base, device, host = ip(f"fd05:{number:x}::"), DEVICE6, ip(f"fd00::2:{number:x}")
    else:
        base, device, host = ip(f"10.5.{number}.0"), DEVICE, ip(f"10.0.1.{number}")
    entries: list[Entry] = [FdbEntry(device, mac(number), host), Neighbour(device, base, mac(number))]
    nexthop: list[Entry] = [Nexthop(device, base)] if objects else []
    return [*entries, *nexthop, Route(device, base, 64 if v6 else 24, base)]


class Foreigner(Protocol):
    def put(self, entry: Entry, *, static: bool = True) -> None:
        """Make or change an entry; `static` False leaves protocol `boot`, as flannel's daemon does.

        But a route with our former mark keeps it.
        """

    def remove(self, entry: Entry) -> None: ...
    def unpin(self, neighbour: Neighbour) -> None:
        """Make a permanent neighbour a common one."""

    def replace(self, route: Route) -> None: ...
    def flush(self, kind: str, device: str) -> None: ...
    def down(self, device: str) -> None: ...
    def up(self, device: str) -> None: ...
    def delete_link(self, device: str) -> None: ...
    def move_host(self, change: str) -> None:
        """Change the host itself, by a line of `ip`."""

    def table(self) -> set[Entry]:
        """All entries on our devices, and all routes of the main table that are not the kernel's own."""


class Linux:
    """`ip` and `bridge` in the namespace of this thread."""

    def put(self, entry: Entry, *, static: bool = True) -> None:
        former = isinstance(entry, Route | Nexthop) and entry.protocol == FORMER_PROTOCOL
        protocol = f"proto {FORMER_PROTOCOL}" if former else "proto static" if static else "proto boot"
        match entry:
            case Address(device, address, length):
                run(f"ip address add {text(address)}/{length} dev {device} nodad")
            case Neighbour(device, address, lladdr):
                run(f"ip neigh replace {text(address)} lladdr {text(lladdr)} dev {device} nud permanent")
            case FdbEntry(device, lladdr, destination):
                run(f"bridge fdb replace {text(lladdr)} dev {device} dst {text(destination)} self permanent")
            case Nexthop(device, gateway, mark):
                # Among the numbers that we give out, which makes a former mark ours; OVN counts from elsewhere.
                run(f"ip nexthop add id {FIRST + 4711} via {text(gateway)} dev {device} onlink proto {mark}")
            case Route(device, subnet, length, gateway):
                via = "" if gateway is None else f"via {text(gateway)}"
                onlink = "" if gateway is None else "onlink"
                run(f"ip route replace {text(subnet)}/{length} {via} dev {device} {onlink} {protocol}")

    def remove(self, entry: Entry) -> None:
        match entry:
            case Address(device, address, length):
                run(f"ip address del {text(address)}/{length} dev {device}")
            case Neighbour(device, address, _):
                run(f"ip neigh del {text(address)} dev {device}")
            case FdbEntry(device, lladdr, _):
                run(f"bridge fdb del {text(lladdr)} dev {device} self")
            case Nexthop(_, gateway):
                found = [each for each in ask("ip -j nexthop") if each.get("gateway") == text(gateway)]
                run(f"ip nexthop del id {found[0]['id']}")
            case Route(_, subnet, length, _):
                run(f"ip route del {text(subnet)}/{length} {self._by_id(entry)}")

    def unpin(self, neighbour: Neighbour) -> None:
        address, lladdr = text(neighbour.address), text(neighbour.mac)
        run(f"ip neigh replace {address} lladdr {lladdr} dev {neighbour.device} nud reachable")

    def replace(self, route: Route) -> None:
        self.put(route)

    def flush(self, kind: str, device: str) -> None:
        match kind:
            case "neighbour":
                run(f"ip neigh flush dev {device} nud permanent")
            case "fdb":
                for each in ask(f"bridge -j fdb show dev {device}"):
                    run(f"bridge fdb del {each['mac']} dev {device} self")
            case "route":
                for entry in self.table():
                    if isinstance(entry, Route) and entry.device == device:
                        self.remove(entry)

    def down(self, device: str) -> None:
        run(f"ip link set {device} down")

    def up(self, device: str) -> None:
        run(f"ip link set {device} up")

    def delete_link(self, device: str) -> None:
        run(f"ip link del {device}")

    def move_host(self, change: str) -> None:
        run(f"ip {change}")

    def table(self) -> set[Entry]:
        return {*self._addresses(), *self._neighbours(), *self._forwarding(), *self._nexthops(), *self._routes()}

    @staticmethod
    def _by_id(route: Route) -> str:
        for family in ("", "-6"):
            for each in ask(f"ip {family} -j route"):
                if each["dst"] == f"{text(route.subnet)}/{route.prefix_length}" and "nhid" in each:
                    return f"nhid {each['nhid']}"
        return f"dev {route.device}"

    @staticmethod
    def _addresses() -> Iterator[Entry]:
        for link in ask("ip -j address"):
            for each in link.get("addr_info", []):
                if link["ifname"] in (DEVICE, DEVICE6) and each["scope"] != "link":
                    yield Address(link["ifname"], ip(each["local"]), each["prefixlen"])

    @staticmethod
    def _neighbours() -> Iterator[Entry]:
        for each in ask("ip -j neigh show nud permanent"):
            if each["dev"] in (DEVICE, DEVICE6):
                yield Neighbour(each["dev"], ip(each["dst"]), bytes.fromhex(each["lladdr"].replace(":", "")))

    @staticmethod
    def _forwarding() -> Iterator[Entry]:
        for each in ask("bridge -j fdb"):
            if "dst" in each:
                yield FdbEntry(each["ifname"], bytes.fromhex(each["mac"].replace(":", "")), ip(each["dst"]))

    @staticmethod
    def _nexthops() -> Iterator[Entry]:
        for mark in MARKS:
            for each in ask(f"ip -j nexthop list proto {mark}"):
                yield Nexthop(each["dev"], ip(each["gateway"]), mark)

    @staticmethod
    def _routes() -> Iterator[Entry]:
        for family in ("-4", "-6"):
            for each in ask(f"ip {family} -j -N route"):
                if each.get("protocol") != "2":
                    subnet = ip_network(each["dst"])
                    gateway = ip(each["gateway"]) if "gateway" in each else None
                    base, length = subnet.network_address.packed, subnet.prefixlen
                    yield Route(each["dev"], base, length, gateway, int(each["protocol"]))


class Meddler:
    """The foreigner for FakeKernel."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def put(self, entry: Entry, *, static: bool = True) -> None:
        if isinstance(entry, Route) and entry.protocol != FORMER_PROTOCOL:
            entry = entry._replace(protocol=4 if static else 3)
        self._kernel.meddle_set(entry)

    def remove(self, entry: Entry) -> None:
        self._kernel.meddle_remove(entry.key)

    def unpin(self, neighbour: Neighbour) -> None:
        self._kernel.meddle_remove(neighbour.key)

    def replace(self, route: Route) -> None:
        self._kernel.meddle_replace(route._replace(protocol=4))

    def flush(self, kind: str, device: str) -> None:
        self._kernel.meddle_flush(kind, device)

    def down(self, device: str) -> None:
        self._kernel.meddle_down(device)

    def up(self, device: str) -> None:
        self._kernel.meddle_up(device)

    def delete_link(self, device: str) -> None:
        self._kernel.meddle_delete_link(device)

    def move_host(self, change: str) -> None:
        self._kernel.meddle_host(UNDERLAY if change.startswith("addr") else None)

    def table(self) -> set[Entry]:
        return set(self._kernel.tables.values())


class Host:
    """The kernel under test, listening to both devices, and the foreigner beside it."""

    def __init__(self, kernel: Kernel, foreigner: Foreigner) -> None:
        self.kernel = kernel
        self.foreigner = foreigner
        self.events: list[Event] = []
        self._more = asyncio.Event()

    def listen(self, devices: Sequence[str] = (DEVICE, DEVICE6)) -> None:
        self.kernel.listen(devices, self._take)

    def _take(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        self._more.set()

    async def add(self, *entries: Entry) -> None:
        assert self.apply(Verb.ADD, *entries) == []
        await self.settle()

    def apply(self, verb: Verb, *entries: Entry) -> list[tuple[Entry, int]]:
        failures = self.kernel.apply([Operation(verb, entry) for entry in entries])
        assert all(failure.message for failure in failures)
        return [(failure.operation.entry, failure.errno) for failure in failures]

    def read(self) -> set[Entry]:
        return {entry for part in self.kernel.dump() for entry in part}

    async def heard(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        """Wait until what was reported satisfies the condition; return all of it."""
        async with asyncio.timeout(patient(DEADLINE)):
            while not condition(self.events):
                self._more.clear()
                await self._more.wait()
        return list(self.events)

    async def settle(self) -> None:
        """Hear everything up to now, then forget it: a change of the foreigner's own marks the end."""
        marker = Neighbour(DEVICE, ip("192.0.2.1"), mac(0xFFFF))
        self.foreigner.put(marker)
        await self.heard(lambda events: Seen(marker) in events)
        self.foreigner.remove(marker)
        await self.heard(lambda events: Gone(marker.key) in events)
        self.events.clear()

    async def told(self, kinds: Sequence[str] = ("address", "fdb", "neighbour", "nexthop", "route")) -> list[Event]:
        """Hear everything up to now; return what was about entries, and Lost."""
        marker = Neighbour(DEVICE, ip("192.0.2.2"), mac(0xFFFE))
        self.foreigner.put(marker)
        events = await self.heard(lambda events: Seen(marker) in events)
        self.foreigner.remove(marker)
        await self.heard(lambda events: Gone(marker.key) in events)
        self.events.clear()
        return [event for event in events if event != Seen(marker) and (key := key_of(event)) and key[0] in kinds]


def key_of(event: Event) -> Key | None:
    match event:
        case Seen(entry):
            return entry.key
        case Gone(key):
            # The kernel keeps entries for multicast addresses of its own.
            return None if key[2][:1] == b"\xff" else key
        case _:
            return None


def run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=patient(DEADLINE), check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def ask(command: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(run(command) or "[]")
    return [each for each in answer if each]


_numbers = itertools.count()


@contextmanager
def throwaway_namespace() -> Iterator[str]:
    """Make a network namespace, and delete it at the end with all that is in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a network namespace")
    name = f"kernel-{os.getpid()}-{next(_numbers)}"
    run(f"ip netns add {name}")
    try:
        yield name
    finally:
        run(f"ip netns del {name}")


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Run the calling thread in a namespace: sockets made meanwhile, and commands, belong to it."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{name}").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


@contextmanager
def namespace_with_underlay() -> Iterator[str]:
    """Run the calling thread in a throw-away namespace with the underlay of this module's docstring."""
    with throwaway_namespace() as name, entered(name):
        run("ip link set lo up")
        run("ip link add p0 type veth peer name p1")
        run("ip link set p0 up")
        run("ip link set p1 up")
        run("ip address add 10.0.0.1/24 dev p0")
        run("ip address add fd00::1/64 dev p0 nodad")
        yield name


def _setns(descriptor: int) -> None:
    # os.setns is newer than Python 3.11.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
