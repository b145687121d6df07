"""ECN through the tunnel: RFC 6040's table of section 4.2, and what of it must not touch anything else."""

from __future__ import annotations

import pytest

from flanneld_py.encap.packet.ecn import CE, ECT0, ECT1, NOT_ECT, combine, marking
from tests.packets import Segment, encode

TABLE = {
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): None,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}
"""Arriving inner and outer header -> outgoing header, None: dropped (RFC 6040, figure 4)."""


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("dscp", [0, 10, 63])
@pytest.mark.parametrize(("inner", "outer"), TABLE)
def test_the_outer_header_combines_with_the_inner_one(inner: int, outer: int, dscp: int, version: int) -> None:
    def packet(codepoint: int) -> bytes:
        return encode(Segment(b"data", version, tos=dscp << 2 | codepoint))

    datagrams = memoryview(bytearray(3 * (b"VXLAN" + packet(inner))))
    assert marking(packet(inner)) == inner
    wanted = TABLE[inner, outer]
    left, lost = combine(datagrams, len(datagrams) // 3, 5, outer)
    assert (bytes(left), lost) == ((b"", 3) if wanted is None else (3 * (b"VXLAN" + packet(wanted)), 0))


def test_only_what_cannot_be_marked_is_dropped_wherever_it_is() -> None:
    ect, other, short = (encode(Segment(payload, tos=tos)) for payload, tos in ((b"data", 2), (b"rest", 0), (b"", 2)))
    datagrams = memoryview(bytearray(other + ect + other + ect + short))
    left, lost = combine(datagrams, len(ect), 0, CE)
    marked, last = (encode(Segment(payload, tos=3)) for payload in (b"data", b""))
    assert (bytes(left), lost) == (marked + marked + last, 2)


def test_a_wrong_checksum_stays_wrong_and_what_is_no_packet_stays_as_it_is() -> None:
    wrong = bytearray(encode(Segment(b"data", tos=2)))
    wrong[10] ^= 0x40
    right = encode(Segment(b"data", tos=3))
    left = bytes(combine(memoryview(wrong), len(wrong), 0, CE)[0])
    assert left[:10] + left[12:] == right[:10] + right[12:]
    assert left[10:12] != right[10:12]
    for noise in (bytes(19), b"\x45" + bytes(18), b"\x70" + bytes(40)):
        same, lost = combine(memoryview(bytearray(noise)), len(noise), 0, CE)
        assert (bytes(same), lost) == (noise, 0)
