"""Super-packets: the cases one by one. Scapy is the second opinion about what a packet looks like."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from flanneld_py.encap.packet.coalesce import Coalesce
from flanneld_py.encap.packet.virtio import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, PLAIN, VNET, VNET_HEADER
from tests.engines import COALESCERS, CUTTERS, Cutter, alone
from tests.packets import ACK, CWR, FIN, PSH, UDP, Segment, cut, encode

MTU = 1450
SIZE = 1398
DATA = random.Random(1).randbytes(45 * SIZE)
BULK = Segment(DATA)


def received(parts: list[bytes]) -> memoryview:
    return memoryview(bytearray(b"".join(parts)))


@pytest.fixture(params=CUTTERS)
def segment(request: pytest.FixtureRequest) -> Cutter:
    cutter: Cutter = request.param
    return cutter


Merged = Callable[..., list[tuple[bytes, bytes]]]


@pytest.fixture(params=COALESCERS)
def merge(request: pytest.FixtureRequest) -> Merged:
    coalesce: Coalesce = request.param

    def merged(parts: list[bytes], *, udp: bool = False, offset: int = 0, mtu: int = MTU) -> list[tuple[bytes, bytes]]:
        buffer = received(parts)
        writes = coalesce(buffer, len(parts[0]), offset, mtu, udp)
        return [(header, bytes(buffer[start:stop])) for header, start, stop in writes]

    return merged


def lengths(writes: list[tuple[bytes, bytes]]) -> list[int]:
    return [len(packet) for _, packet in writes]


def test_the_accelerator_is_there() -> None:
    assert len(CUTTERS) == len(COALESCERS) == 2, "not built: make system (gcc, python3-dev), rm .venv/ready, and again"


# Cutting


@pytest.mark.parametrize(("version", "kind", "layer"), [(4, GSO_TCPV4, IP), (6, GSO_TCPV6, IPv6)])
def test_segments_are_what_scapy_would_make(version: int, kind: int, layer: type, segment: Cutter) -> None:
    packet = replace(BULK, version=version, flags=ACK | PSH | CWR)
    header = VNET.pack(NEEDS_CSUM, kind | 0x80, packet.header, SIZE, packet.network, 16)
    datagrams, size = segment(*alone(header, encode(packet, finished=False)), b"prefix")
    assert size == 6 + packet.header + SIZE
    assert len(datagrams) == 45 * size
    parsed = [layer(datagrams[at + 6 : at + size]) for at in range(0, len(datagrams), size)]
    assert b"".join(bytes(each["TCP"].payload) for each in parsed) == DATA
    assert [str(each["TCP"].flags) for each in parsed] == ["AC", *["A"] * 43, "PA"]
    for each in parsed:
        again = each.copy()
        del again["TCP"].chksum
        if version == 4:
            del again.chksum, again.len
        assert bytes(again) == bytes(each)
    assert all(b["TCP"].seq - a["TCP"].seq == SIZE for a, b in pairwise(parsed))


def test_a_plain_packet_gets_only_its_prefix(segment: Cutter) -> None:
    packet = encode(Segment(b"data"))
    assert segment(*alone(PLAIN, packet), b"prefix") == (b"prefix" + packet, 6 + len(packet))


@pytest.mark.parametrize("packet", [Segment(b"data"), Segment(b"odd", version=6), Segment(b"data!", protocol=UDP)])
def test_an_unfinished_checksum_is_finished(packet: Segment, segment: Cutter) -> None:
    header = VNET.pack(NEEDS_CSUM, 0, 0, 0, packet.network, 6 if packet.protocol == UDP else 16)
    datagram, size = segment(*alone(header, encode(packet, finished=False)), b"prefix")
    assert datagram == b"prefix" + encode(packet)
    assert size == len(datagram)


def test_a_udp_checksum_of_zero_is_written_as_ffff(segment: Cutter) -> None:
    packet = Segment(b"\0\0", protocol=UDP)
    value = encode(packet)[26:28]
    packet = replace(packet, payload=value)  # now the sum of all is 0xffff
    assert encode(packet)[26:28] == b"\xff\xff"
    header = VNET.pack(NEEDS_CSUM, 0, 0, 0, 20, 6)
    assert segment(*alone(header, encode(packet, finished=False)), b"")[0] == encode(packet)


@pytest.mark.parametrize(
    "header",
    [
        VNET.pack(NEEDS_CSUM, 0, 0, 0, 5000, 16),
        VNET.pack(NEEDS_CSUM, GSO_TCPV4, 52, 0, 20, 16),
        VNET.pack(NEEDS_CSUM, GSO_TCPV6, 52, 100, 20, 16),
        VNET.pack(NEEDS_CSUM, GSO_TCPV4, 52, 100, 24, 16),
        VNET.pack(NEEDS_CSUM, 3, 52, 100, 20, 6),
    ],
)
def test_what_cannot_be_cut_is_nothing(header: bytes, segment: Cutter) -> None:
    assert segment(*alone(header, encode(Segment(bytes(400)))), b"prefix") == (b"", 0)


# Merging


@pytest.mark.parametrize("version", [4, 6])
def test_a_train_becomes_one_super_packet(version: int, merge: Merged) -> None:
    packet = replace(BULK, version=version, payload=DATA[:-100], flags=ACK | PSH)
    ((header, got),) = merge(cut(packet, SIZE))
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
    assert VNET.unpack(header) == (NEEDS_CSUM, kind, packet.header, SIZE, packet.network, 16)
    assert len(header) == VNET_HEADER
    assert got == encode(packet, finished=False)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_is_merged_where_the_device_takes_it(version: int, merge: Merged) -> None:
    packet = Segment(DATA[:5000], version=version, protocol=UDP)
    parts = cut(packet, 1300)
    assert [header for header, _ in merge(parts)] == [PLAIN] * 4
    ((header, got),) = merge(parts, udp=True)
    assert VNET.unpack(header) == (NEEDS_CSUM, GSO_UDP_L4, packet.header, 1300, packet.network, 6)
    assert got == encode(packet, finished=False)


def test_udp_without_a_checksum_is_not_merged(merge: Merged) -> None:
    parts = [part[:26] + bytes(2) + part[28:] for part in cut(Segment(DATA[:3900], protocol=UDP), 1300)]
    assert [got for _, got in merge(parts, udp=True)] == parts


def test_two_flows_make_two_super_packets_each_in_order(merge: Merged) -> None:
    one, two = cut(BULK, SIZE), cut(replace(BULK, source=3), SIZE)
    writes = merge([*one[:10], *two[:10], *one[10:20]])
    assert lengths(writes) == [10 * SIZE + 52] * 3
    assert [got[15] for _, got in writes] == [2, 3, 2]


def test_a_gap_starts_another(merge: Merged) -> None:
    parts = cut(BULK, SIZE)
    assert lengths(merge([*parts[:3], *parts[4:8]])) == [3 * SIZE + 52, 4 * SIZE + 52]


def test_another_prefix_starts_another(merge: Merged) -> None:
    parts = [b"to A" + part for part in cut(BULK, SIZE)[:4]]
    parts[2] = b"to B" + parts[2][4:]
    writes = merge(parts, offset=4)
    assert [first[:4] for _, first in writes] == [b"to A", b"to B", b"to A"]


@pytest.mark.parametrize("size", [SIZE, 1399])
@pytest.mark.parametrize("where", [1, 10, 15, 25, 41, 700])
@pytest.mark.parametrize("which", [0, 1, 6])
def test_corruption_is_not_laundered(which: int, where: int, size: int, merge: Merged) -> None:
    parts = cut(replace(BULK, payload=DATA[: 7 * size]), size)
    corrupt = bytearray(parts[which])
    corrupt[where] ^= 0x10
    parts[which] = bytes(corrupt)
    for header, got in merge(parts):
        packet = got
        assert parts[which][52:] not in packet or (header == PLAIN and packet == parts[which])


def test_the_same_error_in_all_of_them_is_found(merge: Merged) -> None:
    """15 * 4369 is 0xffff: the sum over all is right again."""
    parts = cut(replace(BULK, payload=DATA[: 15 * SIZE]), SIZE)
    wrong = [
        part[:100] + ((int.from_bytes(part[100:102], "big") + 4369) & 0xFFFF).to_bytes(2, "big") + part[102:]
        for part in parts
    ]
    assert [got for _, got in merge(wrong)] == wrong


@pytest.mark.parametrize("flags", [ACK | FIN, ACK | CWR, 0])
def test_flags_that_a_merged_packet_cannot_say_stay_single(flags: int, merge: Merged) -> None:
    parts = [encode(replace(BULK, payload=DATA[:SIZE], sequence=i * SIZE, flags=flags)) for i in range(3)]
    assert [got for _, got in merge(parts)] == parts


def test_acknowledgements_and_fragments_stay_single(merge: Merged) -> None:
    for model in (Segment(), Segment(DATA[:100], fragment=0x2000), Segment(DATA[:100], fragment=1)):
        parts = [encode(replace(model, sequence=1000 + 100 * i)) for i in range(3)]
        assert [(header, got) for header, got in merge(parts)] == [(PLAIN, part) for part in parts]


def test_no_super_packet_is_larger_than_its_length_field_can_say(merge: Merged) -> None:
    writes = merge(cut(replace(BULK, payload=DATA + DATA), SIZE))
    assert max(lengths(writes)) <= 65535
    assert sum(lengths(writes)) == 2 * len(DATA) + 52 * len(writes)


def test_push_in_the_middle_ends_nothing(merge: Merged) -> None:
    parts = cut(replace(BULK, payload=DATA[: 3 * SIZE], flags=ACK | PSH), SIZE)
    parts += cut(replace(BULK, payload=DATA[: 3 * SIZE], sequence=1000 + 3 * SIZE, ident=50), SIZE)
    ((_, got),) = merge(parts)
    assert got[33] == ACK | PSH


# What a kernel in another namespace leaves unfinished


@pytest.mark.parametrize("packet", [Segment(b"data"), Segment(version=6), Segment(b"data", protocol=UDP)])
def test_an_unfinished_checksum_is_passed_on_as_such(packet: Segment, merge: Merged) -> None:
    datagram = encode(packet, finished=False)
    ((header, got),) = merge([datagram])
    assert VNET.unpack(header)[:2] == (NEEDS_CSUM, 0)
    assert VNET.unpack(header)[4:] == (packet.network, 6 if packet.protocol == UDP else 16)
    assert got == datagram


def test_an_uncut_super_packet_is_passed_on_as_such(merge: Merged) -> None:
    packet = replace(BULK, payload=DATA[:13000])
    for finished in (False, True):
        ((header, got),) = merge([encode(packet, finished=finished)])
        assert VNET.unpack(header) == (NEEDS_CSUM, GSO_TCPV4, 52, 1280 - 52, 20, 16)
        assert got == encode(packet, finished=False)


@pytest.mark.parametrize(("mtu", "segment"), [(1450, 1280), (8950, 1280), (1000, 1000)])
def test_an_uncut_super_packet_gets_segments_that_every_container_takes(mtu: int, segment: int, merge: Merged) -> None:
    """Also one whose MTU is below the device's: in dual stack it is the smaller one of both families."""
    ((header, _),) = merge([encode(replace(BULK, payload=DATA[:13000]), finished=False)], mtu=mtu)
    assert VNET.unpack(header)[3] == segment - 52


def test_a_corrupt_large_packet_is_left_as_it_is(merge: Merged) -> None:
    corrupt = encode(replace(BULK, payload=DATA[:13000]))[:-1] + b"\xff"
    ((header, got),) = merge([corrupt])
    assert (header, got) == (PLAIN, corrupt)
