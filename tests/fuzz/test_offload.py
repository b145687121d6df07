"""Cutting and merging against a slow oracle: no byte is lost, moved between flows, or made right that was wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.encap.packet.checksum import complement, total
from flanneld_py.encap.packet.coalesce import Coalesce
from flanneld_py.encap.packet.partial import SMALLEST
from flanneld_py.encap.packet.virtio import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET
from tests.engines import COALESCERS, CUTTERS, Cutter, alone
from tests.packets import ACK, CWR, FIN, PSH, SYN, TCP, UDP, Segment, cut, encode, sound, words

MTU = 1450

UDP_MAX_SEGMENTS = 64
"""linux/udp.h, before 6.9; TUN devices hold UDP super-packets against it (linux/virtio_net.h)."""

MOST = 20
"""Segments of a packet: the oracle adds up word by word."""


payloads = st.builds(
    lambda length, pattern: (pattern * (length // len(pattern) + 1))[:length],
    st.integers(1, 6000),
    st.binary(min_size=1, max_size=40),
)
segments = st.builds(
    Segment,
    payload=payloads,
    version=st.sampled_from((4, 6)),
    protocol=st.sampled_from((TCP, UDP)),
    source=st.integers(1, 3),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    tos=st.integers(0, 255),
    ttl=st.integers(1, 255),
    ident=st.sampled_from((0, 7, 0xFFFD, 0xFFFF)),
    fragment=st.sampled_from((0, 0x4000)),
    sequence=st.integers(0, 2**32 - 1) | st.sampled_from((2**32 - 1, 2**32 - 1400)),
    ack=st.integers(0, 2**32 - 1),
    flags=st.sampled_from((ACK, ACK | PSH)),
    window=st.integers(0, 65535),
    options=st.sampled_from((b"", b"\x01\x01\x08\x0a" + bytes(range(8)), bytes(40))),
)
sizes = st.integers(1, 1410).filter(lambda size: size > 60) | st.integers(1, 60)
cutters = st.sampled_from(CUTTERS)
coalescers = st.sampled_from(COALESCERS)


def vnet(packet: Segment, size: int) -> memoryview:
    kind = GSO_UDP_L4 if packet.protocol == UDP else GSO_TCPV4 if packet.version == 4 else GSO_TCPV6
    offset = 6 if packet.protocol == UDP else 16
    return memoryview(VNET.pack(NEEDS_CSUM, kind, packet.header, size, packet.network, offset))


def split(datagrams: bytes, size: int) -> list[bytes]:
    return [datagrams[at : at + size] for at in range(0, len(datagrams), size)]


def understood(buffer: memoryview, write: tuple[bytes, int, int], lead: int = 0) -> list[bytes]:
    """What the kernel takes a write for: the packets that it stands for, complete. `lead` bytes are not its own."""
    header, packet = write[0], bytes(buffer[write[1] + lead : write[2]])
    flags, kind, length, size, start, offset = VNET.unpack(header)
    if flags & NEEDS_CSUM:
        value = 0xFFFF - words(packet[start:])
        packet = packet[: start + offset] + value.to_bytes(2, "big") + packet[start + offset + 2 :]
    if not kind:
        return [packet]
    assert sound(packet), "a super-packet that the kernel finishes is a right packet"
    assert kind != GSO_UDP_L4 or len(packet) - length <= UDP_MAX_SEGMENTS * size, "a TUN device answers EINVAL"
    pieces, payload = [], packet[length:]
    model = decode(packet)
    for number, at in enumerate(range(0, len(payload), size)):
        part = replace(model, payload=payload[at : at + size], ident=(model.ident + number) & 0xFFFF)
        pieces.append(encode(replace(part, sequence=(model.sequence + at) & 0xFFFFFFFF)))
    return pieces


def decode(packet: bytes) -> Segment:
    v4 = packet[0] >> 4 == 4
    at = 20 if v4 else 40
    protocol = packet[9] if v4 else packet[6]
    header = at + (8 if protocol == UDP else packet[at + 12] >> 4 << 2)
    number = int.from_bytes
    return Segment(
        payload=packet[header:],
        version=4 if v4 else 6,
        protocol=protocol,
        source=packet[15] if v4 else packet[23],
        destination=packet[19] if v4 else packet[39],
        ports=(number(packet[at : at + 2], "big"), number(packet[at + 2 : at + 4], "big")),
        tos=packet[1] if v4 else (number(packet[:2], "big") >> 4) & 255,
        ttl=packet[8] if v4 else packet[7],
        ident=number(packet[4:6], "big") if v4 else 0,
        fragment=number(packet[6:8], "big") if v4 else 0,
        sequence=number(packet[at + 4 : at + 8], "big") if protocol == TCP else 0,
        ack=number(packet[at + 8 : at + 12], "big") if protocol == TCP else 0,
        flags=packet[at + 13] if protocol == TCP else 0,
        window=number(packet[at + 14 : at + 16], "big") if protocol == TCP else 0,
        urgent=number(packet[at + 18 : at + 20], "big") if protocol == TCP else 0,
        options=packet[at + 20 : header] if protocol == TCP else b"",
    )


def essence(packet: bytes) -> bytes:
    """A packet without what merging may change: IPv4's identification and checksum, TCP's PSH and checksum."""
    model = decode(packet)
    return encode(replace(model, ident=0, flags=model.flags & ~PSH))


@settings(deadline=None)
@given(st.binary(max_size=9000), st.integers(0, 20))
def test_a_sum_is_the_sum_of_words(data: bytes, start: int) -> None:
    start = min(start, len(data))
    if start == len(data):
        return
    assert complement(total(data, start, len(data))) == (0xFFFF - words(data[start:])) % 0xFFFF


@settings(deadline=None)
@given(
    segments,
    sizes,
    st.sampled_from((b"", b"VXLAN and Ethernet 22.")),
    cutters,
    st.sampled_from((0, FIN, CWR, FIN | CWR)),
)
def test_cutting_is_what_the_oracle_says(
    packet: Segment, size: int, prefix: bytes, segment: Cutter, flags: int
) -> None:
    packet = replace(packet, flags=packet.flags | flags, payload=packet.payload[: MOST * size])
    whole = memoryview(bytearray(encode(packet, finished=False)))
    datagrams, length = segment(*alone(vnet(packet, size), whole), prefix)
    assert split(datagrams, length) == [prefix + part for part in cut(packet, size)]


@settings(deadline=None)
@given(st.binary(max_size=120), st.binary(min_size=10, max_size=10), cutters)
def test_cutting_anything_stays_within_it(packet: bytes, header: bytes, segment: Cutter) -> None:
    datagrams, length = segment(*alone(header, packet), b"")
    assert bool(datagrams) == bool(length) or not packet


@settings(deadline=None)
@given(segments, sizes, st.sampled_from((b"", b"VXLAN and Ethernet 22.", b"odd")), coalescers)
def test_what_was_cut_merges_into_the_same_packets(
    packet: Segment, size: int, prefix: bytes, coalesce: Coalesce
) -> None:
    packet = replace(packet, payload=packet.payload[: MOST * size])
    parts = cut(packet, size)
    buffer = memoryview(bytearray(b"".join(prefix + part for part in parts)))
    writes = coalesce(buffer, len(prefix) + len(parts[0]), len(prefix), MTU, True)
    assert [essence(got) for write in writes for got in understood(buffer, write, len(prefix))] == [
        essence(part) for part in parts
    ]
    assert len(writes) == 1
    if len(parts) > 1 and packet.protocol == TCP:
        assert decode(bytes(buffer[len(prefix) : writes[0][2]])).flags == packet.flags


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from((4, 6)),
    st.sampled_from((TCP, UDP)),
    coalescers,
)
def test_a_run_of_any_length_is_what_the_kernel_takes(
    count: int, size: int, last: int, version: int, protocol: int, coalesce: Coalesce
) -> None:
    """Hundreds of little datagrams of one flow: as few writes as the kernel's limit allows, and all are in them."""
    packet = Segment(bytes(size * (count - 1) + min(last, size)), version, protocol)
    parts = cut(packet, size)
    buffer = memoryview(bytearray(b"".join(parts)))
    writes = coalesce(buffer, len(parts[0]), 0, MTU, True)
    assert [essence(got) for write in writes for got in understood(buffer, write)] == [essence(part) for part in parts]
    assert len(writes) == (-(-count // UDP_MAX_SEGMENTS) if protocol == UDP else 1)


Change = Callable[[Segment], Segment]
changes: st.SearchStrategy[Change] = st.sampled_from(
    [
        lambda model: model,
        lambda model: model,
        lambda model: replace(model, source=9),
        lambda model: replace(model, ports=(1, 2)),
        lambda model: replace(model, ack=77),
        lambda model: replace(model, window=1),
        lambda model: replace(model, flags=ACK | FIN),
        lambda model: replace(model, flags=ACK | PSH),
        lambda model: replace(model, flags=SYN),
        lambda model: replace(model, ttl=9),
        lambda model: replace(model, tos=3),
        lambda model: replace(model, sequence=5),
        lambda model: replace(model, urgent=3),
        lambda model: replace(model, fragment=0x2000),
        lambda model: replace(model, version=6),
        lambda model: replace(model, protocol=UDP),
    ]
)


# The few fixed places have errors meet in one column, where those of neighbours cancel each other in a sum over all.
places = st.integers(0, 10**6) | st.sampled_from((26, 46, 80, 81))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@settings(deadline=None)
@given(
    st.lists(
        st.tuples(changes, st.booleans(), places, st.sampled_from((0, 0, 1, 0x80, 0xFF))), min_size=1, max_size=12
    ),
    st.integers(1, 300),
    st.integers(0, 300),
    coalescers,
)
def test_any_mixture_comes_out_in_order_and_unhealed(
    version: int,
    protocol: int,
    mixture: list[tuple[Change, bool, int, int]],
    size: int,
    last: int,
    coalesce: Coalesce,
) -> None:
    """Datagrams of one length, some of another flow, some corrupt: each flow's packets come out as they went in."""
    parts, sequence = [], 2**32 - 500
    target = size + 72
    for number, (change, follows, where, flip) in enumerate(mixture):
        length = target if number + 1 < len(mixture) or not 0 < last < size else last + 72
        model = change(Segment(version=version, protocol=protocol, sequence=sequence & 0xFFFFFFFF))
        payload = bytes((number + i) & 255 for i in range(max(length - model.header, 0)))
        packet = bytearray(encode(replace(model, payload=payload)))
        packet[where % len(packet)] ^= flip
        parts.append(bytes(packet).ljust(length, b"\0"))
        sequence += len(payload) if follows else 1
    buffer = memoryview(bytearray(b"".join(parts)))
    writes = coalesce(buffer, len(parts[0]), 0, MTU, True)
    came = [got for write in writes for got in understood(buffer, write)]
    assert len(came) == len(parts)
    for got, part in zip(came, parts, strict=True):
        assert got == part or (sound(part) and essence(got) == essence(part))


@pytest.mark.parametrize("coalesce", COALESCERS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_errors_that_cancel_each_other_are_not_healed(version: int, protocol: int, coalesce: Coalesce) -> None:
    """One packet has a bit too many, the next the same bit too few: the sum over both is right, neither packet is."""
    model = Segment(bytes(range(200)) * 20, version=version, protocol=protocol)
    parts = cut(model, 1000)
    at = model.header + 500
    wrong = [bytearray(part) for part in parts]
    wrong[1][at], wrong[2][at] = wrong[1][at] + 1, wrong[2][at] - 1
    buffer = memoryview(bytearray(b"".join(wrong)))
    came = [got for write in coalesce(buffer, len(parts[0]), 0, MTU, True) for got in understood(buffer, write)]
    assert [essence(got) if sound(got) else got for got in came] == [
        essence(part) if sound(part) else part for part in map(bytes, wrong)
    ]
    assert [sound(got) for got in came] == [True, False, False, True]


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 200), st.integers(0, 30), coalescers)
def test_noise_comes_out_as_it_came(noise: bytes, size: int, offset: int, coalesce: Coalesce) -> None:
    buffer = memoryview(bytearray(noise))
    for write, at in zip(coalesce(buffer, size, offset, 68, True), range(0, len(noise), size), strict=True):
        assert buffer[write[1] : write[2]] == noise[at : at + size]


@pytest.mark.parametrize("version", [4, 6])
@settings(deadline=None)
@given(payload=payloads.filter(lambda payload: len(payload) > MTU), coalesce=coalescers)
def test_a_super_packet_in_one_datagram_is_delivered_as_one(version: int, payload: bytes, coalesce: Coalesce) -> None:
    """What a kernel VTEP in another network namespace of this machine sends."""
    packet = Segment(payload=payload, version=version)
    datagram = memoryview(bytearray(encode(packet, finished=False)))
    (write,) = coalesce(datagram, len(datagram), 0, MTU, False)
    assert understood(datagram, write) == [
        encode(
            replace(
                packet, payload=part, ident=packet.ident + i, sequence=packet.sequence + i * (SMALLEST - packet.header)
            )
        )
        for i, part in enumerate(split(payload, SMALLEST - packet.header))
    ]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(changes, st.booleans(), st.sampled_from((0, 0, 1))), min_size=1, max_size=8),
    segments,
    st.integers(1, 200),
    st.integers(0, 200),
    st.sampled_from((b"", b"VXLAN and Ethernet 22.", b"odd")),
    st.booleans(),
    st.sampled_from((68, 1450)),
    st.booleans(),
)
def test_c_merges_what_python_merges(
    mixture: list[tuple[Change, bool, int]],
    model: Segment,
    size: int,
    last: int,
    prefix: bytes,
    udp: bool,
    mtu: int,
    finished: bool,
) -> None:
    parts, sequence = [], model.sequence
    for number, (change, follows, flip) in enumerate(mixture):
        payload = bytes((number + i) & 255 for i in range(size if number + 1 < len(mixture) else min(last, size)))
        packet = bytearray(
            prefix + encode(replace(change(replace(model, sequence=sequence & 0xFFFFFFFF)), payload=payload))
        )
        packet[-1] ^= flip
        parts.append(bytes(packet))
        sequence += len(payload) if follows else 1
    whole = b"".join(parts)
    outcomes = []
    for coalesce in COALESCERS:
        buffer = memoryview(bytearray(whole))
        outcomes.append((coalesce(buffer, len(parts[0]), len(prefix), mtu, udp), bytes(buffer)))
    assert outcomes[0] == outcomes[-1]


@settings(deadline=None)
@given(
    segments,
    sizes,
    st.binary(max_size=22),
    st.sampled_from((0, FIN, CWR, FIN | CWR)),
    st.integers(0, 59),
    st.integers(0, 255),
)
def test_c_cuts_what_python_cuts(packet: Segment, size: int, prefix: bytes, flags: int, where: int, flip: int) -> None:
    whole = bytearray(encode(replace(packet, flags=packet.flags | flags), finished=False))
    header = vnet(packet, size)
    whole[where % len(whole)] ^= flip
    outcomes = [segment(*alone(header, whole), prefix) for segment in CUTTERS]
    assert outcomes[0] == outcomes[-1]
