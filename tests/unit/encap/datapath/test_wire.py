"""The lanes' sockets on loopback: a port for each lane, few descriptors, and a reason where they cannot be had."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flanneld_py.encap.datapath.wire import REFUSED_SENDS, Wire, WireError, open_wires

LOCAL = IPv4Address("127.0.0.1")
LANES = 64


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Let this process open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    free = (fd for fd in range(soft) if fd not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, number, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(LOCAL), 0))
        port: int = probe.getsockname()[1]
        return port


def test_each_lane_sends_from_a_port_that_peers_put_on_it_and_takes_two_descriptors() -> None:
    with descriptors_left(2 * LANES + 8):
        wires = open_wires(LOCAL, free_port(), LANES, spread=True)
        try:
            lanes = []
            for wire in wires:
                with socket.socket(fileno=os.dup(wire.sender_fileno())) as sender:
                    lanes.append(sender.getsockname()[1] % LANES)
            assert lanes == list(range(LANES))
        finally:
            for wire in wires:
                wire.close()


def test_no_descriptors_left_is_a_reason_for_the_operator_and_leaves_nothing_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with descriptors_left(LANES), pytest.raises(WireError, match="Too many open files"):
        open_wires(LOCAL, free_port(), LANES, spread=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class Refusing(socket.socket):
    """A socket whose device or path takes no batch while `refusal` is set."""

    refusal = 0

    def sendmsg(self, *arguments: Any) -> int:
        if self.refusal:
            raise OSError(self.refusal, "refused")
        return super().sendmsg(*arguments)


@pytest.fixture
def refusing() -> Iterator[tuple[Wire, Refusing, socket.socket]]:
    """A wire, its socket, and who gets what is sent."""
    with Refusing(socket.AF_INET, socket.SOCK_DGRAM) as end, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for one in (end, peer):
            one.bind((str(LOCAL), 0))
            one.setblocking(False)
        yield Wire(end, end), end, peer


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EMSGSIZE])
def test_a_path_that_takes_no_batch_gets_each_datagram_and_is_told(
    refusing: tuple[Wire, Refusing, socket.socket], refusal: int
) -> None:
    wire, end, peer = refusing
    end.refusal = refusal
    wire.send([b"one", b"two", b"3"], 3, peer.getsockname(), 0)
    assert [peer.recv(9) for _ in range(3)] == [b"one", b"two", b"3"]
    assert (wire.segmentation, wire.narrow) == (True, {peer.getsockname()})
    assert wire.path_mtu(peer.getsockname()) == 65535, "of the loopback interface, as IPv4 has it"


def test_a_device_that_takes_no_batch_is_asked_again_now_and_then(
    refusing: tuple[Wire, Refusing, socket.socket],
) -> None:
    wire, end, peer = refusing
    end.refusal = errno.EIO
    wire.send([b"one"], 3, peer.getsockname(), 0)
    assert not wire.segmentation
    for _ in range(2 * REFUSED_SENDS):
        wire.send([b"one"], 3, peer.getsockname(), 0)
    assert not wire.segmentation
    assert not wire.narrow
    end.refusal = 0
    for _ in range(REFUSED_SENDS + 1):
        wire.send([b"one"], 3, peer.getsockname(), 0)
    assert wire.segmentation


def test_what_finds_the_receive_buffer_full_is_told() -> None:
    (wire,) = open_wires(LOCAL, free_port(), 1, spread=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, socket.socket(fileno=os.dup(wire.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        for _ in range(50):
            peer.sendto(bytes(1000), end.getsockname())
        arrived = 0
        with suppress(BlockingIOError):
            while wire.receive_into(memoryview(bytearray(2000))):
                arrived += 1
        assert 0 < arrived < 50
        assert wire.overflowed == 50 - arrived
    wire.close()


def test_over_ipv6_path_mtus_are_believed_as_no_router_fragments() -> None:
    (wire,) = open_wires(IPv6Address("::1"), free_port(), 1, spread=True)
    try:
        for fd in (wire.fileno(), wire.sender_fileno()):
            with socket.socket(fileno=os.dup(fd)) as end:
                assert end.getsockopt(socket.IPPROTO_IPV6, 23) == 0, "IPV6_MTU_DISCOVER is IPV6_PMTUDISC_DONT"
    finally:
        wire.close()


@pytest.mark.parametrize("local", [LOCAL, IPv6Address("::1")])
def test_an_ecn_codepoint_comes_out_as_it_went_in(local: IPv4Address | IPv6Address) -> None:
    port, buffer = free_port(), memoryview(bytearray(2000))
    (wire,) = open_wires(local, port, 1, spread=True)
    to = (str(local), port)
    try:
        for codepoint in (0, 1, 2, 3):
            wire.send_one(b"one", to, codepoint)
            assert wire.receive_into(buffer)[::3] == (3, codepoint)
            wire.send([b"two", b"2"], 3, to, codepoint)
            assert wire.receive_into(buffer)[:2] == (4, 3)
        wire.send([b"two", b"2"], 3, to, 2)
        assert wire.receive_into(buffer)[3] == 2, "of a batch as well"
    finally:
        wire.close()
