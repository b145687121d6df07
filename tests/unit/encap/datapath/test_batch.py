"""Gathering datagrams: none is lost, reordered, cut elsewhere, or sent to another, and sends are full."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.datapath.batch import Batch
from flanneld_py.encap.datapath.peertable import Endpoint
from flanneld_py.encap.datapath.wire import Wire

A, B = ("10.0.0.2", 8472), ("10.0.0.3", 8472)


class Paper(Wire):
    """A wire that writes down what a real one would send, and fails while `failure` is set."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            super().__init__(unused, unused)
        self.segmentation = True
        self.sent: list[tuple[Endpoint, list[bytes]]] = []
        self.codepoints: list[int] = []
        self.failure: OSError | None = None

    def send(self, parts: Sequence[bytes | memoryview], size: int, to: Endpoint, codepoint: int) -> None:
        if self.failure is not None:
            raise self.failure
        whole = b"".join(parts)
        assert len(whole) <= self.capacity(size)
        self.codepoints.append(codepoint)
        self.sent.append((to, [whole[at : at + size] for at in range(0, len(whole), size)]))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


packets = st.tuples(
    st.sampled_from([A, B]), st.sampled_from([60, 100, 1472, 9000]), st.integers(1, 66_000), st.booleans()
)


@given(st.lists(packets, max_size=30), st.booleans())
def test_every_peer_gets_its_datagrams_in_order(
    added: list[tuple[Endpoint, int, int, bool]], segmentation: bool
) -> None:
    wire = Paper()
    wire.segmentation = segmentation
    batch = Batch(wire, lambda error, _: pytest.fail(str(error)))
    expected: dict[Endpoint, list[bytes]] = {A: [], B: []}
    for number, (to, size, length, whole) in enumerate(added):
        data = (number.to_bytes(4, "big") * (length // 4 + 1))[:length]
        size = min(size, length)
        if whole:
            data = data[: length // size * size]
        batch.add(data, size, to, 0)
        expected[to] += cut(data, size)
    batch.flush()
    for to in (A, B):
        assert [one for there, datagrams in wire.sent if there == to for one in datagrams] == expected[to]


def test_super_packets_in_a_row_fill_their_sends() -> None:
    wire = Paper()
    batch = Batch(wire, lambda error, _: pytest.fail(str(error)))
    for _ in range(44):
        batch.add(bytes(46 * 1472), 1472, A, 0)
    batch.flush()
    assert [len(datagrams) for _, datagrams in wire.sent] == [44] * 46


def test_small_packets_ride_together_and_a_smaller_one_is_the_last() -> None:
    wire = Paper()
    batch = Batch(wire, lambda error, _: pytest.fail(str(error)))
    for size in (100, 100, 100, 60, 100):
        batch.add(bytes(size), size, A, 0)
    batch.flush()
    assert [list(map(len, datagrams)) for _, datagrams in wire.sent] == [[100, 100, 100, 60], [100]]


def test_what_bears_another_ecn_codepoint_rides_apart() -> None:
    wire = Paper()
    batch = Batch(wire, lambda error, _: pytest.fail(str(error)))
    for codepoint in (0, 0, 2, 2, 3):
        batch.add(bytes(100), 100, A, codepoint)
    batch.flush()
    assert [len(datagrams) for _, datagrams in wire.sent] == [2, 2, 1]
    assert wire.codepoints == [0, 2, 3]


def test_what_cannot_be_sent_is_told_and_forgotten() -> None:
    wire, told = Paper(), list[tuple[OSError, int]]()
    batch = Batch(wire, lambda error, count: told.append((error, count)))
    wire.failure = BlockingIOError(11, "full")
    for size in (100, 100, 60):
        batch.add(bytes(size), size, A, 0)
    batch.flush()
    assert told == [(wire.failure, 3)]
    wire.failure = None
    batch.flush()
    assert wire.sent == []
