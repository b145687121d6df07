"""Reading in trains: nothing is lost or reordered, and whatever is decided for a train is right for each packet."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.encap.datapath.forward import Remote, Send, Table, outbound
from flanneld_py.encap.datapath.gather import LARGEST
from flanneld_py.encap.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, PLAIN, VNET, VNET_HEADER
from tests.engines import CUTTERS, GATHERERS, alone
from tests.packets import UDP, Segment, encode

UNFINISHED = VNET.pack(NEEDS_CSUM, 0, 0, 0, 20, 16)

packets = st.builds(
    lambda header, model, at, flip: header + flipped(encode(model), at, flip),
    st.sampled_from((PLAIN, PLAIN, UNFINISHED)),
    st.builds(
        Segment,
        payload=st.sampled_from((b"", b"data", b"x" * 100)),
        version=st.sampled_from((4, 4, 6)),
        destination=st.sampled_from((2, 2, 3)),
        ttl=st.sampled_from((1, 64)),
        tos=st.sampled_from((0, 0, 2)),
    ),
    st.integers(0, 39),
    st.sampled_from((0, 0, 0, 1, 0x40)),
)


def flipped(packet: bytes, at: int, flip: int) -> bytes:
    return packet[:at] + bytes((packet[at] ^ flip,)) + packet[at + 1 :]


@settings(deadline=None)
@given(st.lists(packets, max_size=30), st.integers(1, 40))
def test_a_train_is_packets_in_their_order_with_one_fate(waiting: list[bytes], most: int) -> None:
    table = Table()
    table.set("a", Remote(bytes((10, 2, 0, 0)), 31, bytes(4), b""))
    table.set("b", Remote(bytes((0xFD, 2, *bytes(14))), 64, bytes(4), b""))
    outcomes = []
    for gather in GATHERERS:
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with reader, writer:
            reader.setblocking(False)
            for packet in waiting:
                writer.send(packet)
            buffer = memoryview(bytearray(LARGEST + 40 * 200))
            trains = gather(reader.fileno(), buffer, most, 0)
        outcomes.append(trains)
        read = [bytes(buffer[at : at + each]) for start, stop, each, *_ in trains for at in range(start, stop, each)]
        assert read == waiting[:most]
        for start, stop, each, gso_size, destination in trains:
            assert gso_size == 0
            fates = [outbound(table, buffer[at + VNET_HEADER : at + each], 100) for at in range(start, stop, each)]
            if isinstance(fates[0], Send):
                assert fates == fates[:1] * len(fates)
                assert table.known[destination] == fates[0].remote
            cut = [segment(buffer[start:stop], each, b"prefix") for segment in CUTTERS]
            single = [CUTTERS[0](*alone(b"", buffer[at : at + each]), b"prefix") for at in range(start, stop, each)]
            assert cut[0] == cut[-1] == (b"".join(datagrams for datagrams, _ in single), single[0][1])
    assert outcomes[0] == outcomes[-1]


@pytest.mark.parametrize("gather", GATHERERS)
def test_what_is_alike_travels_together(gather: object) -> None:
    assert callable(gather)
    packet = PLAIN + encode(Segment(b"data", protocol=UDP))
    other = PLAIN + encode(replace(Segment(b"data", protocol=UDP), destination=9))
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader, writer:
        reader.setblocking(False)
        for each in (packet, packet, packet, other, packet):
            writer.send(each)
        size = len(packet)
        buffer = memoryview(bytearray(2 * LARGEST))
        expected = [
            (0, 3 * size, size, 0, bytes((10, 2, 0, 2))),
            (3 * size, 4 * size, size, 0, bytes((10, 2, 0, 9))),
            (4 * size, 5 * size, size, 0, bytes((10, 2, 0, 2))),
        ]
        assert gather(reader.fileno(), buffer, 64, 0) == expected
        assert gather(reader.fileno(), buffer, 64, 0) == [], "nothing waits"
        writer.send(packet)
        assert gather(reader.fileno(), buffer[: LARGEST - 1], 64, 0) == [], "no room for the largest"


@pytest.mark.parametrize("gather", GATHERERS)
def test_what_cannot_be_read_is_an_error(gather: object) -> None:
    assert callable(gather)
    closed, other = os.pipe()
    os.close(closed)
    os.close(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        gather(closed, memoryview(bytearray(LARGEST)), 1, 0)


@pytest.mark.parametrize("gather", GATHERERS)
def test_a_turn_takes_no_more_datagrams_than_large_packets_would_be(gather: object) -> None:
    """A super-packet of a hundred bytes may be a hundred datagrams: each counts as a kibibyte at the least."""
    assert callable(gather)
    little = VNET.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1, 20, 6) + encode(Segment(bytes(100), protocol=UDP))
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader, writer:
        reader.setblocking(False)
        for _ in range(30):
            writer.send(little)
        buffer = memoryview(bytearray(4 * LARGEST))
        turns = [len(gather(reader.fileno(), buffer, 64, 0)) for _ in range(16)]
        assert turns[:2] == [2, 2]
        assert sum(turns) == 30
