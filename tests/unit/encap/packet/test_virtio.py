"""Virtio headers: how many packets one stands for."""

import pytest

from flanneld_py.encap.packet.virtio import GSO_TCPV4, NEEDS_CSUM, PLAIN, VNET, pieces, segments


@pytest.mark.parametrize(
    ("total", "size", "count"), [(0, 0, 1), (0, 9, 1), (9, 9, 1), (10, 9, 2), (18, 9, 2), (5, 9, 1)]
)
def test_pieces(total: int, size: int, count: int) -> None:
    assert pieces(total, size) == count


def test_a_super_packet_stands_for_its_segments() -> None:
    assert segments(PLAIN, 60_000) == 1
    assert segments(VNET.pack(NEEDS_CSUM, GSO_TCPV4, 40, 1000, 20, 16), 40 + 3001) == 4
