"""The wire formats, byte by byte."""

import pytest

from flanneld_py.encap.packet.frame import DropReason, parse_vxlan, vxlan_header

OURS = bytes.fromhex("0200000000aa")
PEER = bytes.fromhex("0200000000bb")
HEADER = vxlan_header(1, OURS, PEER, 4)


def test_the_header_is_that_of_kernel_vxlan() -> None:
    assert HEADER.hex() == "0800000000000100" + OURS.hex() + PEER.hex() + "0800"
    assert vxlan_header(0xABCDEF, OURS, PEER, 6).hex() == "08000000abcdef00" + OURS.hex() + PEER.hex() + "86dd"


@pytest.mark.parametrize(
    ("datagram", "result"),
    [
        (HEADER + b"\x45", 22),
        (vxlan_header(1, OURS, PEER, 6) + b"\x60", 22),
        (HEADER, DropReason.SHORT),
        (b"", DropReason.SHORT),
        (b"\x00" + HEADER[1:] + b"\x45", DropReason.VNI),
        (vxlan_header(2, OURS, PEER, 4) + b"\x45", DropReason.VNI),
        (vxlan_header(1, PEER, OURS, 4) + b"\x45", DropReason.MAC),
        (HEADER[:-2] + b"\x08\x06\x00", DropReason.ETHERTYPE),
        (HEADER + b"\x60", DropReason.VERSION),
        (vxlan_header(1, OURS, PEER, 6) + b"\x45", DropReason.VERSION),
        (b"\xff\xff\xff\xff" + HEADER[4:] + b"\x45", 22),
    ],
)
def test_a_datagram_is_checked(datagram: bytes, result: int | DropReason) -> None:
    assert parse_vxlan(memoryview(datagram), 1, OURS) == result


def test_reasons_have_names_of_their_own() -> None:
    assert len({reason.value for reason in DropReason}) == len(DropReason)
