"""One datagram with a UDP super-packet in it is told from many datagrams of the size that the socket says."""

from __future__ import annotations

import struct

import pytest

from flanneld_py.encap.packet.partial import cut, uncut
from flanneld_py.encap.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, VNET
from tests.packets import sound

OFFSET = 22
SIZE = 1300


def datagram(payload: int, *, finished: bool = False, protocol: int = 17) -> bytes:
    """A VXLAN datagram with a UDP packet whose checksum field holds the pseudo-header's sum only."""
    addresses = bytes([10, 5, 2, 2, 10, 5, 1, 2])
    length = 8 + payload
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, protocol, 0) + addresses
    pseudo = (int.from_bytes(addresses, "big") + 17 + length) % 0xFFFF
    udp = struct.pack("!HHHH", 7, 7, length, pseudo ^ 0xFFFF if finished else pseudo)
    return bytes(OFFSET) + ip + udp + bytes(payload)


def test_a_super_packet_is_passed_on_with_its_segment_size() -> None:
    data = datagram(13_000)
    write = uncut(memoryview(data), SIZE, OFFSET)
    assert write is not None
    header, start, stop = write
    assert VNET.unpack(header) == (NEEDS_CSUM, GSO_UDP_L4, 28, SIZE, 20, 6)
    assert (start, stop) == (0, len(data))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (datagram(1000) * 3, 1050),
        (datagram(1000), 1050),
        (datagram(13_000, finished=True), SIZE),
        (datagram(13_000, protocol=6), SIZE),
        (datagram(13_000)[:-1], SIZE),
        (bytes(60), 30),
    ],
    ids=["many datagrams", "one datagram", "a finished checksum", "TCP", "cut short", "nonsense"],
)
def test_all_else_is_what_the_socket_says(data: bytes, size: int) -> None:
    assert uncut(memoryview(data), size, OFFSET) is None


def test_a_super_packet_is_cut_as_a_nic_would() -> None:
    data = memoryview(datagram(3000))
    whole = uncut(data, SIZE, OFFSET)
    assert whole is not None
    datagrams, size = cut(data, whole, OFFSET)
    assert (len(datagrams), size) == (3 * (OFFSET + 28) + 3000, OFFSET + 28 + SIZE)
    for at, payload in ((0, SIZE), (size, SIZE), (2 * size, 400)):
        inner = bytes(datagrams[at + OFFSET : at + size])
        assert len(inner) == 28 + payload
        assert sound(inner)
    bare = memoryview(datagram(0))
    assert cut(bare, (VNET.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 40, 20, 6), 0, len(bare)), OFFSET)[1] == 0
