"""Which of the kernel's messages are of interest; that they come is tested on a real kernel in tests/netns."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import closing
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.firewall import watch
from flanneld_py.encap.firewall.watch import Concern, concerns

NAMES = frozenset(("flanneld-py", "FORWARD"))
NEW_TABLE, NEW_CHAIN, DEL_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENT = 0, 3, 5, 6, 9, 12
OURS, OTHERS, NOTHING = Concern.OURS, Concern.OTHERS, Concern.NOTHING


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(what: int, *attributes: bytes, subsystem: int = 10) -> bytes:
    body = pack("=BBH", 2, 0, 0) + b"".join(attributes)
    return pack("=IHHII", 16 + len(body), subsystem << 8 | what, 0, 1, 1) + body


@pytest.mark.parametrize(
    ("told", "about"),
    [
        (message(NEW_TABLE, attribute(1, b"flanneld-py\0")), OURS),
        (message(NEW_TABLE, attribute(1, b"other\0")), OTHERS),
        (message(DEL_CHAIN, attribute(1, b"filter\0"), attribute(3, b"FORWARD\0")), OURS),
        (message(DEL_CHAIN, attribute(1, b"filter\0"), attribute(3, b"KUBE-SEP\0")), OTHERS),
        (message(NEW_CHAIN, attribute(3, b"mine\0"), attribute(0x8004, b"hook")), OURS),
        (message(NEW_RULE, attribute(1, b"filter\0"), attribute(2, b"FORWARD\0")), OURS),
        (message(NEW_RULE, attribute(1, b"FORWARD\0"), attribute(2, b"KUBE-SEP\0")), OTHERS),
        (message(NEW_ELEMENT, attribute(1, b"flanneld-py\0")), OTHERS),
        (message(NEW_RULE, attribute(2, b"FORWARD\0"), subsystem=1), NOTHING),
        (message(NEW_SET, attribute(1, b"filter\0")), NOTHING),
        (message(NEW_RULE, attribute(2, b"KUBE-SEP\0")) + message(NEW_TABLE, attribute(1, b"flanneld-py\0")), OURS),
        (bytes(20), OURS),
        (b"", NOTHING),
    ],
)
def test_what_is_of_interest(told: bytes, about: Concern) -> None:
    assert concerns(told, NAMES) is about


@given(st.binary(max_size=200))
def test_nothing_that_comes_is_too_odd(told: bytes) -> None:
    concerns(told, NAMES)
    concerns(message(NEW_RULE, told), NAMES)


@pytest.mark.parametrize("trouble", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EPROTONOSUPPORT])
async def test_a_socket_that_cannot_be_had_now_is_had_later(monkeypatch: pytest.MonkeyPatch, trouble: int) -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    tries = iter([trouble, trouble])
    tried, marked = [], asyncio.Event()

    def monitor() -> socket.socket:
        tried.append(1)
        if (number := next(tries, 0)) != 0:
            raise OSError(number, os.strerror(number))
        return ours

    monkeypatch.setattr(watch, "_monitor", monitor)
    monkeypatch.setattr(watch, "AGAIN", 0.001)
    with closing(ours), closing(kernel), watch.watch(NAMES, marked.set, lambda: None):
        if trouble == errno.EPROTONOSUPPORT:  # A kernel that has none will have none.
            await asyncio.sleep(0.01)
            assert len(tried) == 1
            return
        async with asyncio.timeout(10):
            await marked.wait()
            marked.clear()
            kernel.send(message(NEW_TABLE, attribute(1, b"flanneld-py\0")))
            await marked.wait()
    assert ours.fileno() == -1
