"""The packets' way through one lane: a real socket on loopback, and a device that is a fake."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.gather import Train
from flanneld_py.encap.datapath.peertable import PeerTable
from flanneld_py.encap.datapath.relay import Relay, Room
from flanneld_py.encap.datapath.tun import Tun
from flanneld_py.encap.datapath.wire import Wire, open_wires
from flanneld_py.encap.packet.frame import vxlan_header
from flanneld_py.encap.packet.virtio import PLAIN
from tests.packets import UDP, Segment, encode

LOCAL, REMOTE = "127.0.0.1", "127.0.0.2"
OWN_MAC, MAC = b"\x02own00", b"\x02peer0"
NOWHERE = PLAIN + encode(Segment(b"out", protocol=UDP, destination=9))


class Flood(Tun):
    """A device at which packets to nobody wait without end."""

    def __init__(self) -> None:
        self.device, self.offloads = "flood", ()
        self.read = 0
        self.written: list[bytes] = []

    def gather(self, buffer: memoryview, most: int, have: int) -> list[Train]:
        size = len(NOWHERE)
        buffer[: most * size] = most * NOWHERE
        self.read += most
        return [(0, most * size, size, 0, NOWHERE[26:30])]

    def write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self.written.append(bytes(parts[1]))


@pytest.fixture
def wire() -> Iterator[Wire]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOCAL, 0))
        port = probe.getsockname()[1]
    (wire,) = open_wires(IPv4Address(LOCAL), port, 1, spread=True)
    yield wire
    wire.close()


def test_a_flood_into_nowhere_does_not_starve_what_comes_in(wire: Wire) -> None:
    """Datagrams of many flows come one by one; if each took a turn, a turn with 64 refusals would go before each."""
    with socket.socket(fileno=os.dup(wire.fileno())) as receiver:
        to = receiver.getsockname()
    wanted = messages.Configure(
        messages.Mode.VXLAN, "flood", bytes((127, 0, 0, 1)), to[1], 1450, (IPv4Network("10.2.0.0/24"),), 1, OWN_MAC
    )
    directory = PeerTable(wanted)
    directory.put([messages.Peer("peer", bytes((10, 1, 0, 0)), 24, IPv4Address(REMOTE).packed, MAC)])
    device = Flood()
    relay = Relay(directory, device, wire, Room(), lambda _: False, lambda: 0.0)
    head = vxlan_header(1, OWN_MAC, MAC, 4)
    sent = [encode(Segment(bytes(number), protocol=UDP, source=1, destination=2)) for number in range(1, 641)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((REMOTE, 0))
        for packet in sent:
            sender.sendto(head + packet, to)
    while len(device.written) < len(sent) and device.read < 64 * len(sent):
        relay.outward()
        relay.inward()
    assert device.written == sent
    assert device.read < 3 * len(sent)
