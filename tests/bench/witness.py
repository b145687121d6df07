"""What the kernel itself says about a namespace, read without taking the CPU from what is measured.

    RouteCount   how many routes there are, from /proc/net/fib_triestat: 60 µs at 10 000 routes; a dump takes 20 ms
    Monitor      rtnetlink's own events, each with the time at which it was received

Both are opened inside the namespace and used from anywhere. Times are those of time.perf_counter, in seconds;
what did not happen in time is infinite.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from math import inf

from tests.lab.namespace import Namespace

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
SO_RCVBUFFORCE = 33
BUFFER = 64 << 20
RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_NEXTHOP = 1, 3, 7, 32

NEW_LINK, DEL_LINK = 16, 17
NEW_ROUTE, DEL_ROUTE = 24, 25
NEW_NEIGHBOUR, DEL_NEIGHBOUR = 28, 29
NEW_NEXTHOP, DEL_NEXTHOP = 104, 105
NUD_PERMANENT, AF_BRIDGE = 0x80, 7

_IFLA_IFNAME, _RTA_DST, _NDA_DST, _NDA_LLADDR, _NHA_GATEWAY = 3, 1, 1, 2, 6
_SHAPE = {
    NEW_LINK: (16, _IFLA_IFNAME),
    DEL_LINK: (16, _IFLA_IFNAME),
    NEW_ROUTE: (12, _RTA_DST),
    DEL_ROUTE: (12, _RTA_DST),
    NEW_NEIGHBOUR: (12, _NDA_DST),
    DEL_NEIGHBOUR: (12, _NDA_DST),
    NEW_NEXTHOP: (8, _NHA_GATEWAY),
    DEL_NEXTHOP: (8, _NHA_GATEWAY),
}
"""Message type -> (length of its fixed part, the attribute that says what it is about)."""

_MAIN_PREFIXES = re.compile(rb"Main:.*?Prefixes:\s+(\d+)", re.DOTALL)
_POLL = 0.002

Event = tuple[int, bytes]
"""(message type, packed address, MAC for a forwarding entry, or name of a device)."""


@contextmanager
def entered(namespace: Namespace) -> Iterator[None]:
    """Have this thread in a network namespace while the block runs: sockets and files opened there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace.name}")

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


class RouteCount:
    """The number of IPv4 routes in a namespace. Local ones count as well: the two tables share one trie."""

    def __init__(self, namespace: Namespace) -> None:
        with entered(namespace):
            self._fd = os.open("/proc/thread-self/net/fib_triestat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """Return it."""
        return parse_prefixes(os.pread(self._fd, 4096, 0))

    def wait(self, wanted: int, timeout: float = 30) -> float:
        """Wait until there are exactly `wanted`; return when that was seen, at most 2 ms late."""
        deadline = time.perf_counter() + timeout
        while (now := time.perf_counter()) < deadline:
            if self.read() == wanted:
                return now
            time.sleep(_POLL)
        return inf

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Monitor:
    """Events of links, neighbours, forwarding entries, IPv4 routes and nexthops in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        with entered(namespace):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind((0, 0))
        self._socket.setblocking(False)
        for group in (RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_NEXTHOP):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._told: deque[tuple[float, Event]] = deque()

    def wait(self, wanted: Collection[Event], timeout: float = 10) -> float:
        """Wait until each of these events came, in any order; return when the last did."""
        missing, deadline = set(wanted), time.perf_counter() + timeout
        while True:
            while self._told:
                at, event = self._told.popleft()
                missing.discard(event)
                if not missing:
                    return at
            left = deadline - time.perf_counter()
            if left <= 0:
                return inf
            self._receive(left)

    def forget(self) -> None:
        """Forget all events up to now."""
        try:
            while True:
                self._socket.recv(1 << 16)
        except BlockingIOError:
            self._told.clear()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self, patience: float) -> None:
        if select.select([self._socket], [], [], patience)[0]:
            now = time.perf_counter()
            self._told.extend((now, event) for event in events(self._socket.recv(1 << 16)))


def events(buffer: bytes) -> Iterator[Event]:
    """Read a buffer of rtnetlink messages; skip what is not about routes, nexthops, links or permanent neighbours."""
    at = 0
    while at + 16 <= len(buffer):
        length, kind = struct.unpack_from("=IH", buffer, at)
        if length < 16:
            return
        shape = _SHAPE.get(kind)
        if shape is not None:
            fixed, attribute = shape
            body = at + 16
            if kind in (NEW_NEIGHBOUR, DEL_NEIGHBOUR):
                (state,) = struct.unpack_from("=H", buffer, body + 8)
                attribute = _NDA_LLADDR if buffer[body] == AF_BRIDGE else _NDA_DST
                # Deleting a neighbour is told as a change to "failed" first.
                attribute = -1 if kind == NEW_NEIGHBOUR and not state & NUD_PERMANENT else attribute
            value = _attribute(buffer, body + fixed, at + length, attribute)
            if value is not None:
                yield kind, value.rstrip(b"\0") if kind in (NEW_LINK, DEL_LINK) else value
        at += (length + 3) & ~3


def parse_prefixes(text: bytes) -> int:
    """Read the number of routes in the main table from fib_triestat. Raises ValueError."""
    match = _MAIN_PREFIXES.search(text)
    if match is None:
        raise ValueError(f"no `Prefixes` under `Main` in /proc/net/fib_triestat: {text[:200]!r}")
    return int(match[1])


def _attribute(buffer: bytes, at: int, end: int, wanted: int) -> bytes | None:
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", buffer, at)
        if kind & 0x3FFF == wanted:
            return buffer[at + 4 : at + length]
        if length < 4:
            return None
        at += (length + 3) & ~3
    return None
