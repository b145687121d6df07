"""A blocking rtnetlink socket: ask one thing, send a batch, read a table. It knows no tables but
devices, and which way leads where.

rtnetlink does a request inside `send`: the answers lie ready when it returns, so blocking lasts as long as the kernel's
work and no longer. The receive timeout only guards against what must not happen.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import pack
from sys import byteorder
from types import TracebackType
from typing import Self

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt

SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
ANSWER_SECONDS = 5
_READ_ATTEMPTS = 8
RECEIVE_BYTES = 1 << 16
"""The kernel fills at most 32 KiB at a time, and no more than the largest buffer it was ever offered."""


class RequestFailed(Exception):
    """The kernel's refusal: `errno` and its own words, which may be empty."""

    def __init__(self, errno: int, words: str) -> None:
        super().__init__(explain(errno, words))
        self.errno = errno
        self.words = words


class Interrupted(Exception):
    """The table changed while it was read: the reading may lack entries."""

    def __init__(self) -> None:
        super().__init__("others changed the table while it was read")


def explain(errno: int, words: str) -> str:
    """Put the error number and the kernel's words into one phrase."""
    return f"{os.strerror(errno)} ({words.rstrip('.')})" if words else os.strerror(errno)


class RouteSocket:
    """One socket in the network namespace of the thread that makes it; `protocol` names another netlink's family.

    Raises KernelError if none is to be had.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        except OSError as error:
            raise KernelError(f"the kernel cannot be asked: {error.strerror}") from error
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            # Newer than the oldest kernels that we run on (4.2, 4.12, 4.20); each only makes answers better.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack("ll", ANSWER_SECONDS, 0))
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_seq(self) -> int:
        """Return a fresh sequence number for a request."""
        self._seq = self._seq % 0xFFFFFFFF + 1
        return self._seq

    def send(self, requests: Sequence[tuple[int, bytes]]) -> Mapping[int, tuple[int, str]]:
        """Do requests, given with their sequence numbers; return (errno, words) of those that failed.

        Errors are answered unasked, so an acknowledgement is asked of the last request only.
        """
        last, request = requests[-1]
        flags = int.from_bytes(request[6:8], byteorder) | rt.NLM_F_ACK
        asked = request[:6] + flags.to_bytes(2, byteorder) + request[8:]
        self._socket.send(b"".join([*(each for _, each in requests[:-1]), asked]))
        failed: dict[int, tuple[int, str]] = {}
        while True:
            buffer = self._receive()
            for message in rt.messages(buffer):
                if message.kind != rt.NLMSG_ERROR:
                    continue
                errno, words = rt.read_error(buffer, message)
                if errno:
                    failed[message.seq] = (errno, words)
                if message.seq == last:
                    return failed

    def ask(self, build: Callable[[int], bytes]) -> tuple[bytes, rt.Message]:
        """Ask for one object and return the message in its buffer. Raises RequestFailed."""
        seq = self.next_seq()
        self._socket.send(build(seq))
        while True:
            buffer = self._receive()
            for message in rt.messages(buffer):
                if message.seq != seq:
                    continue
                if message.kind == rt.NLMSG_ERROR:
                    raise RequestFailed(*rt.read_error(buffer, message))
                return buffer, message

    def dump(self, build: Callable[[int], bytes]) -> Iterator[tuple[bytes, list[rt.Message]]]:
        """Ask for a table and read it buffer by buffer. Raises RequestFailed; Interrupted at the end.

        The kernel fills the next buffer while it hands one out: what is yielded is as old as the previous call.
        Read to the end before anything else is done on this socket.
        """
        seq = self.next_seq()
        self._socket.send(build(seq))
        interrupted = False
        while True:
            buffer = self._receive()
            found = [message for message in rt.messages(buffer) if message[2] == seq]
            # The flag is on the first message after the change, which may be any.
            interrupted = interrupted or any(message[1] & rt.NLM_F_DUMP_INTR for message in found)
            last = found[-1] if found and found[-1].kind in (rt.NLMSG_DONE, rt.NLMSG_ERROR) else None
            if last is not None:
                del found[-1]
            if found:
                yield buffer, found
            if last is not None:
                errno, words = rt.read_error(buffer, last)
                if errno:
                    raise RequestFailed(errno, words)
                if interrupted:
                    raise Interrupted
                return

    def whole(self, build: Callable[[int], bytes]) -> list[tuple[bytes, list[rt.Message]]]:
        """Ask for a table until it could be read without a change in between. Raises RequestFailed, KernelError.

        Every second reading of the devices is interrupted while containers come and go.
        """
        for _ in range(_READ_ATTEMPTS):
            try:
                return list(self.dump(build))
            except Interrupted:
                continue
        raise KernelError("others change the kernel's tables faster than they can be read")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError as silent:
            raise KernelError(f"netlink gave no answer within {ANSWER_SECONDS} s; expected one at once") from silent


def find_link(asker: RouteSocket, which: str | int) -> rt.LinkMessage | None:
    """Read one device by name or index; None if there is none."""
    try:
        buffer, message = asker.ask(lambda seq: request.get_link(seq, which))
    except RequestFailed:
        return None
    link = rt.read_link(buffer, message.at, message.end)
    # The kernel also finds devices by an alternative name.
    return link if which in (link.name, link.ifindex) else None


def list_links(reader: RouteSocket) -> list[rt.LinkMessage]:
    """Read all devices. Raises KernelError."""
    return [
        rt.read_link(buffer, message.at, message.end)
        for buffer, messages in reader.whole(request.dump_links)
        for message in messages
    ]


def goes_directly(asker: RouteSocket, ifindex: int, packed: bytes) -> bool:
    """Tell whether packets to an address go over an interface without a gateway."""
    try:
        buffer, message = asker.ask(lambda seq: request.get_route(seq, packed))
    except RequestFailed:
        return False
    return rt.read_direct(buffer, message.at, message.end) == ifindex
