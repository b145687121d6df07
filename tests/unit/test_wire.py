"""The lanes' sockets on loopback: a port for each lane, few descriptors, and a reason where they cannot be had."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path

import pytest

from flanneld_py.encap.wire import WireError, open_wires

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
