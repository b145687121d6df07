"""Changes to nftables, told by the kernel: a netfilter multicast socket, and which of its messages are of interest.

    message: nlmsghdr (16 bytes) | nfgenmsg (4) | attributes; its type is subsystem << 8 | what happened

iptables-nft's changes are nftables' changes; legacy iptables tells nobody. Our own changes come back as well: a look at
what is there then finds all as it should be.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from struct import Struct

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
NFNL_SUBSYS_NFTABLES = 10
RECEIVE_BYTES = 1 << 16

AGAIN = 1.0
"""Seconds until a socket that could not be had is asked for again."""

_NO_NETFILTER = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
"""The kernel has no netfilter over netlink."""

_NAME_OF = {0: 1, 2: 1, 3: 3, 5: 3, 6: 2, 8: 2}
"""Message -> its attribute that names the table, or for a rule its chain (linux/netfilter/nf_tables.h).

NFT_MSG_NEWTABLE, DELTABLE; NEWCHAIN, DELCHAIN; NEWRULE, DELRULE."""

_ELEMENTS = (12, 14)
"""NFT_MSG_NEWSETELEM, DELSETELEM: a map's elements may be verdicts."""

_NEW_CHAIN, _CHAIN_HOOK = 3, 4
"""A chain with a hook sees every packet, whatever its name."""

_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_TYPE_MASK = 0x3FFF


@contextmanager
def watch(names: Collection[str], changed: Callable[[], None], others: Callable[[], None]) -> Iterator[None]:
    """Call `changed` whenever a table or chain of these names is made, changed or deleted, or a rule in such a chain.

    And whenever somebody makes a chain that the kernel sends packets through. At any other change of tables, chains,
    rules or the elements of a map call `others`.
    The socket belongs to the network namespace of the thread that calls, inside a running event loop. A kernel without
    nftables tells nothing. A socket that is not to be had now is had later, and then `changed` is called as well.
    """
    loop = asyncio.get_running_loop()

    def hear(monitor: socket.socket) -> None:
        try:
            buffer = monitor.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            changed()  # Events were lost: one of them may have been about us.
            return
        match concerns(buffer, names):
            case Concern.OURS:
                changed()
            case Concern.OTHERS:
                others()

    with ExitStack() as watching:

        def begin(*, late: bool) -> None:
            try:
                monitor = _monitor()
            except OSError as error:
                if error.errno not in _NO_NETFILTER:
                    watching.callback(loop.call_later(AGAIN, partial(begin, late=True)).cancel)
                return
            watching.callback(monitor.close)
            loop.add_reader(monitor, hear, monitor)
            watching.callback(loop.remove_reader, monitor)
            if late:
                changed()

        begin(late=False)
        yield


def _monitor() -> socket.socket:
    """Return a socket to which the kernel tells every change. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    monitor = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
    try:
        monitor.bind((0, 0))
        monitor.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    except BaseException:
        monitor.close()
        raise
    return monitor


class Concern(Enum):
    """What a message is about, the more so the higher."""

    NOTHING = 0
    OTHERS = 1
    OURS = 2


def concerns(buffer: bytes, names: Collection[str]) -> Concern:
    """Tell whether a message in the buffer is about a table or chain of these names, or a new chain with a hook."""
    at, found = 0, Concern.NOTHING
    while at + _HEADER.size + 4 <= len(buffer):
        length, kind, *_ = _HEADER.unpack_from(buffer, at)
        if length < _HEADER.size:
            return Concern.OURS  # Not understood: look.
        subsystem, what = divmod(kind, 256)
        if subsystem == NFNL_SUBSYS_NFTABLES and what in _NAME_OF:
            attributes = dict(_attributes(buffer[at + _HEADER.size + 4 : at + length]))
            name = attributes.get(_NAME_OF[what], b"").rstrip(b"\0").decode(errors="replace")
            if name in names or (what == _NEW_CHAIN and _CHAIN_HOOK in attributes):
                return Concern.OURS
            found = Concern.OTHERS
        elif subsystem == NFNL_SUBSYS_NFTABLES and what in _ELEMENTS:
            found = Concern.OTHERS
        at += (length + 3) & ~3
    return found


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Take netlink attributes apart: type and content."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
