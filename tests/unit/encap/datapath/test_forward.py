"""Who gets a packet, who may send one, and what is answered."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from flanneld_py.encap.datapath.forward import Deliver, Drop, Own, Remote, Reply, Send, Table, inbound, outbound
from flanneld_py.encap.packet.frame import DropReason
from tests.packets import ACK, UDP, Segment, encode, words

MTU = 1450
OWN = Own(((bytes((10, 1, 0, 0)), 24), (bytes((0xFD, 1, *bytes(14))), 64)), bytes((10, 1, 0, 0)))
PEER = bytes((192, 0, 2, 2))
R4 = Remote(bytes((10, 2, 0, 0)), 24, PEER, b"")
R6 = Remote(bytes((0xFD, 2, *bytes(14))), 64, PEER, b"")


def table(*remotes: Remote) -> Table:
    made = Table()
    for remote in remotes or (R4, R6):
        made.set(f"{remote.base.hex()}-{remote.length}", remote)
    return made


def patched(packet: bytes, at: int, value: bytes) -> bytes:
    """The packet with other bytes, its IPv4 checksum still right."""
    packet = packet[:at] + value + packet[at + len(value) :]
    if packet[0] >> 4 == 4:
        packet = packet[:10] + bytes(2) + packet[12:]
        packet = packet[:10] + (0xFFFF - words(packet[:20])).to_bytes(2, "big") + packet[12:]
    return packet


OUT4 = encode(Segment(b"data"))
OUT6 = encode(Segment(b"data", version=6))
ELSEWHERE4 = patched(OUT4, 16, bytes((10, 9, 0, 1)))
ELSEWHERE6 = patched(OUT6, 24, bytes((0xFD, 9)))
LARGE = encode(Segment(bytes(3000)))
IN4 = patched(patched(OUT4, 12, bytes((10, 2, 0, 7))), 16, bytes((10, 1, 0, 3)))
IN6 = patched(patched(OUT6, 8, bytes((0xFD, 2))), 24, bytes((0xFD, 1)))


# Outward


@pytest.mark.parametrize(("packet", "remote"), [(OUT4, R4), (OUT6, R6)])
def test_a_packet_for_a_peer_is_sent_to_it(packet: bytes, remote: Remote) -> None:
    assert outbound(table(), packet, MTU) == Send(remote)


def test_a_super_packet_is_as_large_as_its_segments() -> None:
    assert outbound(table(), LARGE, MTU, MTU) == Send(R4)
    assert isinstance(outbound(table(), LARGE, MTU, MTU + 1), Reply)


@pytest.mark.parametrize(("remote", "version"), [(R4, 4), (R6, 6)])
def test_the_path_to_a_peer_may_be_narrower_than_the_device(remote: Remote, version: int) -> None:
    narrow, path = Table(), replace(remote, mtu=1300)
    narrow.set("peer", path)
    small, large = (encode(Segment(bytes(length), version)) for length in (1200, 1300))
    assert outbound(narrow, small, MTU) == Send(path)
    for decision in (outbound(narrow, large, MTU), outbound(narrow, small, MTU, 1301)):
        assert isinstance(decision, Reply)
        assert decision.reason is DropReason.TOO_BIG
        at = 26 if version == 4 else 46
        assert int.from_bytes(decision.packet[at : at + 2], "big") == 1300
    if version == 4:
        assert outbound(narrow, encode(Segment(bytes(1300), fragment=0)), MTU) == Send(path), "it may be fragmented"
    error = patched(large, 9 if version == 4 else 6, bytes((1 if version == 4 else 58,)))
    error = patched(error, 20 if version == 4 else 40, bytes((3 if version == 4 else 1,)))
    assert outbound(narrow, error, MTU) == Send(path), "what may not be answered is not lost"
    assert outbound(narrow, error, 1310) == Drop(DropReason.TOO_BIG), "but to the device's MTU all have to keep"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", DropReason.SHORT),
        (OUT4[:19], DropReason.SHORT),
        (OUT6[:39], DropReason.SHORT),
        (b"\x15" + OUT4[1:], DropReason.VERSION),
        (b"\x44" + OUT4[1:], DropReason.LENGTH),
        (OUT4 + b"x", DropReason.LENGTH),
        (OUT4[:-1], DropReason.LENGTH),
        (OUT6 + b"x", DropReason.LENGTH),
        (patched(OUT4, 8, b"\0"), DropReason.TTL),
        (patched(OUT6, 7, b"\0"), DropReason.TTL),
        (patched(LARGE, 6, bytes(2)), DropReason.TOO_BIG),
    ],
)
def test_what_is_not_sent(packet: bytes, reason: DropReason) -> None:
    assert outbound(table(), packet, MTU) == Drop(reason)


@pytest.mark.parametrize(
    ("packet", "at", "first"),
    [
        (OUT4, 16, bytes((224, 0, 0, 22))),
        (OUT4, 16, bytes((255, 255, 255, 255))),
        (OUT4, 16, bytes((169, 254, 3, 4))),
        (OUT6, 24, bytes((0xFF, 2))),
        (OUT6, 24, bytes((0xFE, 0x80))),
        (OUT6, 24, bytes((0xFE, 0xBF))),
    ],
)
def test_what_stays_on_its_link_is_neither_sent_nor_answered(packet: bytes, at: int, first: bytes) -> None:
    assert outbound(table(), patched(packet, at, first), MTU) == Drop(DropReason.MULTICAST)


def test_the_last_hop_is_left_to_the_kernels() -> None:
    assert outbound(table(), patched(OUT4, 8, b"\1"), MTU) == Send(R4)


def test_no_route_is_answered_with_net_unreachable() -> None:
    decision = outbound(table(), ELSEWHERE4, MTU)
    assert isinstance(decision, Reply)
    assert decision.reason is DropReason.NO_ROUTE
    reply = decision.packet
    assert words(reply[:20]) == words(reply[20:]) == 0xFFFF
    assert (reply[9], reply[20:22], reply[24:28]) == (1, b"\3\0", bytes(4))
    assert reply[16:20] == ELSEWHERE4[12:16], "to the sender"
    assert reply[12:16] == ELSEWHERE4[16:20], "from the destination: our own address would be a martian"
    assert reply[28:] == ELSEWHERE4


def test_no_route_is_answered_in_ipv6() -> None:
    decision = outbound(table(), ELSEWHERE6, MTU)
    assert isinstance(decision, Reply)
    reply = decision.packet
    pseudo = reply[8:40] + struct.pack("!II", len(reply) - 40, 58)
    assert words(pseudo + reply[40:]) == 0xFFFF
    assert (reply[6], reply[40:42], reply[44:48]) == (58, b"\1\0", bytes(4))
    assert reply[24:40] == ELSEWHERE6[8:24]
    assert reply[48:] == ELSEWHERE6


def test_too_big_tells_the_mtu_and_quotes_no_more_than_allowed() -> None:
    for packet, start, most in ((LARGE, 20, 576), (encode(Segment(bytes(3000), version=6)), 40, 1280)):
        decision = outbound(table(), packet, MTU)
        assert isinstance(decision, Reply)
        assert decision.reason is DropReason.TOO_BIG
        reply = decision.packet
        assert reply[start : start + 2] == (b"\3\4" if start == 20 else b"\2\0")
        assert int.from_bytes(reply[start + 4 : start + 8], "big") == MTU
        assert len(reply) == most
        assert packet.startswith(reply[start + 8 :])


def icmp(kind: int, version: int = 4) -> bytes:
    """An ICMP packet to elsewhere."""
    if version == 4:
        return (
            patched(ELSEWHERE4[:20], 9, b"\1")[:2]
            + b"\0\x1c"
            + patched(ELSEWHERE4, 9, b"\1")[4:20]
            + bytes((kind,))
            + bytes(7)
        )
    return ELSEWHERE6[:4] + b"\0\x08\x3a" + ELSEWHERE6[7:40] + bytes((kind,)) + bytes(7)


@pytest.mark.parametrize(
    "packet",
    [
        *(icmp(kind) for kind in (3, 4, 5, 11, 12)),
        *(icmp(kind, 6) for kind in (1, 2, 3, 4, 127, 137)),
        patched(ELSEWHERE4, 6, b"\x00\x01"),
        patched(ELSEWHERE4, 12, bytes(4)),
        patched(ELSEWHERE4, 12, bytes((127, 0, 0, 1))),
        patched(ELSEWHERE6, 8, bytes(16)),
        ELSEWHERE6[:4] + b"\0\x10\x2c" + ELSEWHERE6[7:40] + bytes((58, 0, 0, 8, 0, 0, 0, 1)) + bytes((128, *bytes(7))),
        ELSEWHERE6[:4] + b"\0\x10\x00" + ELSEWHERE6[7:40] + bytes((58, *bytes(7))) + bytes((1, *bytes(7))),
        ELSEWHERE6[:4] + b"\0\x02\x00" + ELSEWHERE6[7:40] + bytes(2),
    ],
)
def test_what_is_never_answered(packet: bytes) -> None:
    assert outbound(table(), packet, MTU) == Drop(DropReason.NO_ROUTE)


@pytest.mark.parametrize("packet", [icmp(8), icmp(128, 6)])
def test_a_ping_is_answered(packet: bytes) -> None:
    assert isinstance(outbound(table(), packet, MTU), Reply)


# Inward


@pytest.mark.parametrize(("packet", "remote"), [(IN4, R4), (IN6, R6)])
def test_a_peers_packet_is_delivered(packet: bytes, remote: Remote) -> None:
    assert inbound(table(), PEER, packet, OWN) == Deliver(remote)


@pytest.mark.parametrize(
    "source", [PEER, bytes((10, 2, 0, 0)), bytes((10, 2, 0, 255))], ids=["its underlay address", "its base", "its last"]
)
def test_a_peer_may_send_from(source: bytes) -> None:
    assert inbound(table(), PEER, patched(IN4, 12, source), OWN) == Deliver(R4)


def test_our_own_address_outside_our_subnets_is_ours() -> None:
    own = Own((), bytes((10, 1, 0, 3)))
    assert inbound(table(), PEER, IN4, own) == Deliver(R4)


@pytest.mark.parametrize(
    ("source", "packet", "reason"),
    [
        (bytes((192, 0, 2, 3)), IN4, DropReason.UNKNOWN_PEER),
        (PEER, patched(IN4, 12, bytes((10, 3, 0, 7))), DropReason.SOURCE),
        (PEER, patched(IN4, 12, bytes((10, 1, 0, 7))), DropReason.SOURCE),
        (PEER, patched(IN4, 12, bytes((192, 0, 2, 3))), DropReason.SOURCE),
        (PEER, patched(IN6, 8, bytes((0xFD, 3))), DropReason.SOURCE),
        (PEER, patched(IN4, 16, bytes((10, 2, 0, 1))), DropReason.DESTINATION),
        (PEER, patched(IN4, 16, bytes((255, 255, 255, 255))), DropReason.DESTINATION),
        (PEER, patched(IN6, 24, bytes((0xFF, 2))), DropReason.DESTINATION),
        (PEER, IN4[:-1], DropReason.LENGTH),
        (PEER, b"\x45", DropReason.SHORT),
        (PEER, b"\x00" * 60, DropReason.VERSION),
        (PEER, patched(IN4, 8, b"\0"), DropReason.TTL),
    ],
)
def test_what_is_not_delivered(source: bytes, packet: bytes, reason: DropReason) -> None:
    assert inbound(table(), source, packet, OWN) == Drop(reason)


# The table


def test_two_peers_with_one_subnet_take_turns() -> None:
    other = Remote(R4.base, 24, bytes((192, 0, 2, 9)), b"")
    made = Table()
    made.set("a", R4)
    made.set("b", other)
    assert made.lookup(bytes((10, 2, 0, 1))) == other
    made.remove("b")
    assert made.lookup(bytes((10, 2, 0, 1))) == R4
    made.remove("a")
    made.remove("a")
    assert made.lookup(bytes((10, 2, 0, 1))) is None
    assert made.from_address(PEER) == ()


def test_a_narrower_subnet_goes_first() -> None:
    wide = Remote(bytes((10, 0, 0, 0)), 8, bytes((192, 0, 2, 9)), b"")
    made = table(wide, R4)
    assert made.lookup(bytes((10, 2, 0, 1))) == R4
    assert made.lookup(bytes((10, 3, 0, 1))) == wide


def test_udp_and_flags_do_not_matter_here() -> None:
    assert outbound(table(), encode(Segment(b"x", protocol=UDP)), MTU) == Send(R4)
    assert outbound(table(), encode(Segment(flags=ACK)), MTU) == Send(R4)
