"""VXLAN headers: what is written is read, and no datagram makes the reader fail or read beyond it."""

from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.packet.frame import VXLAN_LENGTH, DropReason, parse_vxlan, vxlan_header

macs = st.binary(min_size=6, max_size=6)
vnis = st.integers(0, 2**24 - 1)


@given(vnis, macs, macs, st.sampled_from((4, 6)), st.binary(max_size=60))
def test_what_is_written_is_read(vni: int, destination: bytes, source: bytes, version: int, rest: bytes) -> None:
    datagram = vxlan_header(vni, destination, source, version) + bytes((version << 4,)) + rest
    assert parse_vxlan(memoryview(datagram), vni, destination) == VXLAN_LENGTH


@given(st.binary(max_size=60), vnis, macs)
def test_anything_is_refused_or_starts_with_ip(datagram: bytes, vni: int, mac: bytes) -> None:
    result = parse_vxlan(memoryview(datagram), vni, mac)
    assert isinstance(result, DropReason) or datagram[result] >> 4 in (4, 6)


@given(vnis, macs, macs, st.sampled_from((4, 6)), st.integers(0, 22), st.integers(1, 255))
def test_a_changed_byte_that_counts_is_noticed(
    vni: int, destination: bytes, source: bytes, version: int, at: int, flip: int
) -> None:
    datagram = bytearray(vxlan_header(vni, destination, source, version) + bytes((version << 4,)))
    datagram[at] ^= flip
    result = parse_vxlan(memoryview(datagram), vni, destination)
    reserved = at in (1, 2, 3, 7) or 14 <= at < 20
    harmless = (at == 0 and not flip & 0x08) or (at == 22 and not flip & 0xF0)
    assert (result == VXLAN_LENGTH) == (reserved or harmless)
