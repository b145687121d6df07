"""The fast path against the long way alone: the same packets, the same leaves, the same counters."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import astuple
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.loop import Loop
from flanneld_py.encap.datapath.peertable import PeerTable
from flanneld_py.encap.datapath.relay import MOST_HELD, FastpathLane, Relay, Room
from flanneld_py.encap.datapath.tun import Tun
from flanneld_py.encap.datapath.wire import IP_RECVTOS, IP_TOS, UDP_SEGMENT, open_wires
from flanneld_py.encap.packet import accelerator
from flanneld_py.encap.packet.frame import vxlan_header
from flanneld_py.encap.packet.virtio import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, PLAIN, VNET
from tests.packets import TCP, UDP, Segment, cut, encode

LOCAL, REMOTE, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
UNREACHABLE = "255.255.255.255"
"""The kernel refuses to send there."""
OWN_MAC, MAC = b"\x02own00", b"\x02peer0"
LARGEST = 1 << 17
BUCKETS = 256

HEADERS = (PLAIN, PLAIN, VNET.pack(NEEDS_CSUM, 0, 0, 0, 20, 16), VNET.pack(NEEDS_CSUM, GSO_TCPV4, 52, 60, 20, 16))

segments = st.builds(
    Segment,
    payload=st.sampled_from((b"", b"data", b"x" * 100, b"x" * 300)),
    version=st.sampled_from((4, 4, 6)),
    protocol=st.sampled_from((TCP, UDP)),
    destination=st.sampled_from((2, 3, 8, 9, 20, 40)),
    ttl=st.sampled_from((0, 1, 64, 64)),
    tos=st.sampled_from((0, 0, 0, 1, 2, 3, 0xB8)),
)
damage = st.tuples(st.integers(0, 39), st.sampled_from((0, 0, 0, 0, 1, 0x40)))
outward = st.tuples(st.just("out"), st.sampled_from(HEADERS), segments, damage)
inward = st.tuples(st.just("in"), st.sampled_from((REMOTE, REMOTE, REMOTE, STRANGER)), segments, damage)
trains = st.tuples(st.just("train"), st.integers(20, 200), segments, damage)
"""Segments of one flow, so many bytes of payload each, sent in one call: the kernel hands them over in one piece."""
wholes = st.tuples(
    st.just("whole"),
    st.integers(60, 200),
    st.builds(
        Segment, st.sampled_from((b"", b"x" * 100, b"x" * 300)), st.sampled_from((4, 6)), st.sampled_from((TCP, UDP))
    ),
    damage,
)
"""A packet that is not cut, of segments of so many bytes of payload, as another namespace's kernel hands it over."""

# Each burst in one direction: between the two there is no order. Sequence numbers do not go on from one to the next.
bursts = st.lists(outward, min_size=1, max_size=4) | st.lists(inward | trains | wholes, min_size=1, max_size=4)
scripts = st.lists(bursts, max_size=8)


class DeviceEnd(Tun):
    """What a TUN queue is to its reader: packets with a virtio header each, in and out of a socket pair."""

    def __init__(self, end: socket.socket, *, udp: bool) -> None:
        self._fd = end.fileno()
        self.device, self.offloads = "pair", ("csum", "tso4", "tso6", *(("uso4", "uso6") if udp else ()))
        self.lost = 0

    @property
    def overflowed(self) -> int:
        return self.lost


class World:
    """One lane with its device's and its peers' other ends."""

    def __init__(
        self,
        mode: messages.Mode,
        undo: ExitStack,
        *,
        fastpath: bool,
        udp: bool = False,
        mtu: int = 400,
        held: int = MOST_HELD,
    ) -> None:
        ours, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.enter_context(ours)
        undo.enter_context(self.device)
        self.bell, rung = socket.socketpair()
        undo.enter_context(self.bell)
        undo.enter_context(rung)
        for end in (ours, self.device, rung):
            end.setblocking(False)
        self.peers = [undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        self.peers[0].bind((REMOTE, 0))
        port = self.peers[0].getsockname()[1]
        self.peers[1].bind((STRANGER, 0))
        self.peers[0].setblocking(False)
        self.peers[0].setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        self.outer: list[int] = []
        (wire,) = open_wires(IPv4Address(LOCAL), port, 1, spread=False)
        undo.callback(wire.close)
        self._mode = mode
        self.to = (LOCAL, port)
        own = tuple(ip_network(text) for text in ("10.2.0.2/31", "fd02::2/127"))
        address = bytes((127, 0, 0, 1))
        wanted = messages.Configure(mode, "pair", address, port, mtu, own, 1, OWN_MAC)
        self.directory = PeerTable(wanted)
        subnets = [ip_network(text) for text in ("10.1.0.0/24", "10.2.0.8/29", "fd01::/64", "fd02::8/125")]
        self._put(REMOTE, subnets)
        self._put(UNREACHABLE, [ip_network("10.2.0.16/28")])
        self._room = Room(held)
        self.end = DeviceEnd(ours, udp=udp)
        relay = Relay(self.directory, self.end, wire, self._room, lambda _: True, lambda: 0.0)
        self._turns = Loop()
        undo.callback(self._turns.close)
        self._ends = (ours, wire)
        self.wire = wire
        self.long_way: list[str] = []
        self._lane = self._noted(relay.lane)
        self._turns.watch(ours.fileno(), relay.outward)
        self._turns.watch(wire.fileno(), relay.inward)
        self._turns.watch(rung.fileno(), lambda: self._rest(rung))
        if fastpath:
            self._turns.wait_by(self._wait)

    def _put(self, address: str, subnets: Iterable[IPv4Network | IPv6Network]) -> None:
        at = IPv4Address(address).packed
        self.directory.put(
            messages.Peer(str(subnet), subnet.network_address.packed, subnet.prefixlen, at, MAC) for subnet in subnets
        )

    def _noted(self, lane: FastpathLane) -> FastpathLane:
        *rest, outward, admit, failed, overflowed = lane

        def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
            return lambda *arguments: self.long_way.append(name) or call(*arguments)  # type: ignore[func-returns-value]

        return (*rest, noted("out", outward), noted("in", admit), failed, overflowed)  # type: ignore[return-value]

    def _wait(self, epoll: int) -> list[int]:
        directory, admission = self.directory, self.directory.admission
        known, admitted = directory.table.known, admission.admitted
        room = self._room.from_device, self._room.from_wire, self._room.notes, self._room.holds
        return accelerator.wait(epoll, (self._lane,), *room, known, admitted, admission.offset, directory.mtu, True)

    def _rest(self, rung: socket.socket) -> None:
        rung.recv(1)
        self._turns.stop()

    def send(
        self, direction: str, how: bytes | str | int, segment: Segment, damage: tuple[int, int], outer: int = 0
    ) -> None:
        """Let a packet wait at the device, or datagrams at the wire, with a codepoint in the outer header."""
        at, flip = damage
        if direction == "whole":
            packets = [bytearray(encode(segment, finished=False))]
        elif isinstance(how, int):
            packets = [bytearray(packet) for packet in cut(segment, how)] or [bytearray(encode(segment))]
        else:
            packets = [bytearray(encode(segment, finished=direction == "in" or how == PLAIN))]
        packets[-1][at % len(packets[-1])] ^= flip
        if isinstance(how, bytes):
            self.device.send(how + packets[0])
            return
        datagrams = [self.head(segment.version) + packet for packet in packets]
        size = struct.pack("H", how if direction == "whole" else len(datagrams[0]))
        control = ((socket.IPPROTO_UDP, UDP_SEGMENT, size), (socket.IPPROTO_IP, IP_TOS, struct.pack("i", outer)))
        self.peers[how == STRANGER].sendmsg(datagrams, control, 0, self.to)

    def head(self, version: int) -> bytes:
        """What goes before an inner packet to us."""
        return vxlan_header(1, OWN_MAC, MAC, version) if self._mode is messages.Mode.VXLAN else b""

    def work_off(self) -> None:
        """Let everything go that waits."""
        while self.waiting:
            self.turn()

    @property
    def waiting(self) -> bool:
        """Whether something waits: at the device, at the wire, or in a hold, which is empty where it begins and ends.

        See struct crowd in fastpath.c: three numbers go before these two, and those of the buckets follow.
        """
        crowd = struct.Struct(f"@3N2N{2 * BUCKETS}I")
        crowds = [crowd.unpack_from(self._room.notes, number * crowd.size) for number in range(2)]
        return bool(select.select(self._ends, [], [], 0)[0]) or any(each[3] < each[4] for each in crowds)

    def turn(self) -> None:
        """Let each direction have one turn."""
        self._turns._running = True
        self.bell.send(b".")
        self._turns.run()

    def left(self) -> tuple[list[bytes], list[bytes]]:
        """What came out at the device and at the peer; `outer` has the codepoints of the latter's outer headers."""
        written, _ = _drain(self.device)
        sent, self.outer = _drain(self.peers[0])
        return written, sent

    def counted(self) -> tuple[dict[str, int], tuple[int, ...]]:
        """What was counted."""
        return dict(self.directory.drops), astuple(self.directory.total())


def _drain(end: socket.socket) -> tuple[list[bytes], list[int]]:
    found: list[bytes] = []
    marks: list[int] = []
    while True:
        try:
            data, control, _, _ = end.recvmsg(LARGEST, 64)
        except BlockingIOError:
            return found, marks
        found.append(data)
        marks += [value[0] for _, kind, value in control if kind == IP_TOS]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(messages.Mode), st.booleans(), st.sampled_from((0, 0, 1, 2, 3)), scripts)
def test_the_express_way_leads_where_the_long_way_does(
    mode: messages.Mode,
    udp: bool,
    outer: int,
    script: list[list[tuple[str, bytes | str | int, Segment, tuple[int, int]]]],
) -> None:
    with ExitStack() as undo:
        worlds = [World(mode, undo, fastpath=fastpath, udp=udp) for fastpath in (False, True)]
        for burst in script:
            for world in worlds:
                for item in burst:
                    world.send(*item, outer)
                    if udp:
                        world.work_off()  # UDP has no order that would tell what was merged across receipts.
                world.work_off()
            long, fastpath = (world.left() for world in worlds)
            assert fastpath == long
            assert worlds[1].outer == worlds[0].outer
            assert worlds[1].counted() == worlds[0].counted()


@pytest.mark.parametrize("mode", messages.Mode)
def test_what_comes_alone_and_is_known_does_not_take_the_long_way(mode: messages.Mode) -> None:
    with ExitStack() as undo:
        world = World(mode, undo, fastpath=True)
        out, into = encode(Segment(b"out", destination=8)), encode(Segment(b"in", destination=2))
        for long_way in (["in", "out"], []):
            world.long_way.clear()
            world.device.send(PLAIN + out)
            world.peers[0].sendto(world.head(4) + into, world.to)
            world.work_off()
            assert sorted(world.long_way) == long_way
            (written,), (sent,) = world.left()
            assert (written[len(PLAIN) :], sent[-len(out) :]) == (into, out)
        assert world.counted() == ({}, (2, 2 * len(out), 2, 2 * len(into)))


@pytest.mark.parametrize("path", [1400, 1430])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_just_fits_device_and_path_goes_the_express_way_and_a_byte_more_is_answered(
    protocol: int, version: int, path: int
) -> None:
    """Without options, with the longest, and UDP: a segment counts with its own headers."""
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.RAW, undo, fastpath=fastpath, mtu=1380)
            world.directory.narrow(REMOTE, path, 0.0)
            most = min(1380, path - 28)
            for options in (b"",) if protocol == UDP else (b"", bytes(12), bytes(40)):
                world.long_way.clear()
                for more in (0, 0, 1):
                    packet = Segment(bytes(4000), version, protocol, destination=8, options=options)
                    size = most - packet.header + more
                    kind = GSO_UDP_L4 if protocol == UDP else GSO_TCPV4 if version == 4 else GSO_TCPV6
                    field = 6 if protocol == UDP else 16
                    vnet = VNET.pack(NEEDS_CSUM, kind, packet.header, size, packet.network, field)
                    world.send("out", vnet, packet, (0, 0))
                    world.work_off()
                    answers, sent = world.left()
                    assert (len(answers), len(sent)) == ((1, 0) if more else (0, -(-4000 // size)))
                if fastpath:
                    assert world.long_way == ["out", "out"][options != b"" and protocol == TCP :], "new, too large"
            assert world.counted()[0].keys() == {"out-too-big"}


@pytest.mark.parametrize("udp", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_what_another_kernel_did_not_cut_is_cut_for_a_device_that_cannot(udp: bool, version: int) -> None:
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.VXLAN, undo, fastpath=fastpath, udp=udp)
            segment = Segment(bytes(range(250)) * 4, version, UDP, destination=2)
            for _ in range(2):
                world.send("whole", 300, segment, (0, 0))
                world.work_off()
                written, _ = world.left()
                if udp:
                    at = 20 if version == 4 else 40
                    header = VNET.pack(NEEDS_CSUM, GSO_UDP_L4, at + 8, 300, at, 6)
                    assert written == [header + encode(segment, finished=False)]
                else:
                    assert written == [PLAIN + packet for packet in cut(segment, 300)]
            assert world.counted()[0] == {}


def test_what_the_device_does_not_take_is_dropped_and_counted() -> None:
    with ExitStack() as undo:
        worlds = [World(messages.Mode.RAW, undo, fastpath=fastpath) for fastpath in (False, True)]
        for world in worlds:
            for _ in range(2000):
                world.send("in", REMOTE, Segment(b"data", destination=2), (0, 0))
                world.work_off()
        long, fastpath = (world.counted() for world in worlds)
        assert fastpath == long
        assert fastpath[0].keys() == {"in-device-eagain"}


def test_what_the_device_does_not_take_is_counted_packet_by_packet() -> None:
    """A merged one that is lost is as many packets as it stands for."""
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.VXLAN, undo, fastpath=fastpath, udp=True)
            train = Segment(bytes(50 * 20), protocol=UDP, destination=2)
            for _ in range(400):
                world.send("train", 50, train, (0, 0))
                world.work_off()
            (written, _), (drops, totals) = world.left(), world.counted()
            assert drops == {"in-device-eagain": (400 - len(written)) * 20}
            assert totals[2] == len(written) < 400


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_turn_is_bounded_in_datagrams(direction: str) -> None:
    """However many little ones of one flow wait: the others' packets do not wait for more than some hundred of them."""
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.VXLAN, undo, fastpath=fastpath, udp=True, mtu=1450)
            packet = Segment(bytes(60 * 20), protocol=UDP, destination=8 if direction == "out" else 2)
            vnet = VNET.pack(NEEDS_CSUM, GSO_UDP_L4, packet.header, 20, 20, 6)

            item = ("out", vnet, packet, (0, 0)) if direction == "out" else ("train", 20, packet, (0, 0))
            world.send(*item)
            world.work_off()
            world.left()
            for _ in range(30):
                world.send(*item)
            world.turn()
            done = world.directory.total()
            datagrams = 60 * done.sent if direction == "out" else (done.received_bytes - 28 * done.received) // 20
            assert 60 < datagrams <= 60 + 256 + 60, "256 KiB, of which a datagram counts for one"
            world.work_off()
            done = world.directory.total()
            assert (done.sent, done.received_bytes - 28 * done.received)[direction == "in"] == (31, 31 * 60 * 20)[
                direction == "in"
            ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", range(4))
def test_marks_of_congestion_pass_through_the_tunnel_both_ways(inner: int, version: int) -> None:
    """RFC 6040, of packets alone and of super-packets, of flows that are new and that are known."""
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.VXLAN, undo, fastpath=fastpath, udp=True)
            for _ in range(2):
                for vnet, payload in ((PLAIN, b"data"), (None, bytes(180))):
                    out = Segment(payload, version, destination=8, tos=0xB8 | inner)
                    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6
                    large = VNET.pack(NEEDS_CSUM, kind, out.header, 60, out.network, 16)
                    world.send("out", vnet or large, out, (0, 0))
                    world.work_off()
                    assert world.left()[1]
                    assert set(world.outer) == {inner}, "the codepoint alone; DSCP stays inside"
                for outer in range(4):
                    world.send("train", 60, Segment(bytes(180), version, UDP, destination=2, tos=inner), (0, 0), outer)
                    world.work_off()
                    written, _ = world.left()
                    wanted = 3 if outer == 3 else 1 if (inner, outer) == (2, 1) else inner
                    tos = [packet[11] if version == 4 else packet[11] >> 4 for packet in written]
                    assert tos == ([] if (inner, outer) == (0, 3) else [wanted])
            assert world.counted()[0] == ({"in-ecn": 6} if inner == 0 else {})


@pytest.mark.parametrize("size", [24, 25, 35, 50, 70])
@pytest.mark.parametrize("version", [4, 6])
def test_uncut_super_packets_in_a_row_stay_apart_whatever_their_segments_size(size: int, version: int) -> None:
    """Where the size divides that of the headers (50 bytes, IPv6: 70), each looked like more of one."""
    with ExitStack() as undo:
        for fastpath in (False, True):
            world = World(messages.Mode.VXLAN, undo, fastpath=fastpath, udp=True, mtu=1450)
            segment = Segment(bytes(20 * size), version, UDP, destination=2)
            world.send("whole", size, segment, (0, 0))
            world.work_off()
            for _ in range(10):
                world.send("whole", size, segment, (0, 0))
            world.work_off()
            written, _ = world.left()
            header = VNET.pack(NEEDS_CSUM, GSO_UDP_L4, segment.header, size, segment.network, 6)
            assert written == [header + encode(segment, finished=False)] * 11


def crowd(protocol: int, number: int = 0) -> bytes:
    """What takes more than half of a turn, so that few are sent in one: 150 datagrams with a number in each."""
    packet = Segment(150 * struct.pack("I", number), protocol=protocol, destination=8, options=b"")
    kind, field = (GSO_UDP_L4, 6) if protocol == UDP else (GSO_TCPV4, 16)
    return VNET.pack(NEEDS_CSUM, kind, packet.header, 4, 20, field) + encode(packet, finished=False)


def crowded_world(undo: ExitStack, held: int = MOST_HELD) -> World:
    world = World(messages.Mode.VXLAN, undo, fastpath=True, udp=True, mtu=1450, held=held)
    world.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    return world


POLITE = Segment(b"polite", protocol=UDP, destination=8, ports=(7, 7))


@pytest.mark.parametrize(
    ("protocol", "overflows", "relieved"), [(UDP, True, True), (UDP, False, False), (TCP, True, False)]
)
def test_a_flow_that_crowds_a_lane_waits_behind_all_others(protocol: int, overflows: bool, relieved: bool) -> None:
    """Whatever they stand behind in the device's queue. And it loses nothing, as long as it may be held."""
    with ExitStack() as undo:
        world = crowded_world(undo)
        flood = crowd(protocol)
        world.device.send(flood)
        world.work_off()
        world.send("out", PLAIN, POLITE, (0, 0))
        world.work_off()
        world.left()
        before = world.counted()[1][0]
        passed = 0
        for step in range(400):
            world.end.lost += overflows
            for _ in range(4):
                world.device.send(flood)
            if step % 10 == 9:
                world.send("out", PLAIN, POLITE, (0, 0))
            world.turn()
            came = sum(packet.endswith(b"polite") for packet in world.left()[1])
            passed += came if step >= 200 else 0
        assert (passed == 20) == relieved
        world.work_off()
        drops, totals = world.counted()
        assert (drops, totals[0] - before) == ({}, 1600 + 40)


@pytest.mark.parametrize("overflows", [1, 400])
def test_a_flow_of_bursts_that_crowds_nobody_loses_nothing(overflows: int) -> None:
    """Neither in the burst that the device's queue was too short for, nor in those that come after it."""
    with ExitStack() as undo:
        world = crowded_world(undo)
        packet = crowd(UDP)
        for burst in range(6):
            for number in range(400):
                world.end.lost += number < overflows and not burst
                world.device.send(packet)
                if not number % 4:
                    world.turn()
                    world.left()
            world.work_off()
            world.left()
        drops, totals = world.counted()
        assert (drops, totals[0]) == ({}, 2400)


def test_a_flow_that_is_held_stays_in_order_and_loses_what_is_too_much() -> None:
    with ExitStack() as undo:
        world = crowded_world(undo, held=2 << 16)
        arrived: list[int] = []
        for sent in range(1600):
            world.device.send(crowd(UDP, sent))
            if sent % 4 == 3:
                world.end.lost += 1
                world.turn()
                arrived += [struct.unpack("I", datagram[-4:])[0] for datagram in world.left()[1]]
        while world.waiting:
            world.turn()
            arrived += [struct.unpack("I", datagram[-4:])[0] for datagram in world.left()[1]]
        drops, totals = world.counted()
        assert drops["out-flood"] + 150 * totals[0] == 150 * 1600
        assert arrived == sorted(arrived)
        assert arrived[-1] > 1500, "it goes on"


@pytest.mark.parametrize("stranger", [False, True])
def test_a_flow_that_crowds_the_wire_waits_behind_all_others(stranger: bool) -> None:
    """And not one whose addresses and ports a stranger puts into his flood. Nothing is lost but what found it full."""
    with ExitStack() as undo:
        world = crowded_world(undo)
        with socket.socket(fileno=os.dup(world.wire.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        ports = (7, 7) if stranger else (8, 8)
        flood = Segment(bytes(1200), protocol=UDP, destination=2, ports=ports)
        train = [world.head(4) + packet for packet in cut(flood, 20)]
        flooder = world.peers[stranger]
        control = ((socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", len(train[0]))),)
        polite = Segment(b"polite", protocol=UDP, destination=2, ports=(7, 7))
        expected = 0
        for step in range(300):
            for _ in range(20):
                flooder.sendmsg(train, control, 0, world.to)
            world.turn()
            world.left()
            if step >= 100 and step % 10 == 9:
                world.turn()
                world.left()
                world.send("in", REMOTE, polite, (0, 0))
                world.turn()
                assert [packet for packet in world.left()[0] if packet.endswith(b"polite")]
                expected += 1
        assert expected == 20
        assert world.wire.overflowed
        assert "in-flood" not in world.directory.drops, "it is held, not dropped"
