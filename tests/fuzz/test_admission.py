"""What is remembered about a flow changes no decision: Admission against the same checks made every time."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from flanneld_py.encap.datapath.admission import Admission
from flanneld_py.encap.datapath.forward import Drop, Own, Remote, Table, inbound
from flanneld_py.encap.packet.frame import DropReason, parse_vxlan, vxlan_header

MAC = b"\x02\0\0\0\0\x01"
OWN = Own(((bytes((10, 1, 0, 0)), 24), (b"\xfd" + bytes(11) + bytes((10, 1, 0, 0)), 120)), bytes((10, 1, 0, 0)), None)
PEERS = {f"peer {i}": Remote(bytes((10, 2, i, 0)), 24, bytes((172, 30, 0, i)), MAC) for i in range(3)} | {
    f"peer6 {i}": Remote(b"\xfd" + bytes(11) + bytes((10, 2, i, 0)), 120, bytes((172, 30, 0, i)), MAC) for i in range(3)
}

octet = st.sampled_from((0, 1, 2, 10))
addresses = st.tuples(st.sampled_from((1, 2)), octet, octet).map(lambda rest: bytes((10, *rest)))
frames = st.builds(
    vxlan_header, st.sampled_from((1, 1, 2)), st.sampled_from((MAC, bytes(6))), st.just(MAC), st.sampled_from((4, 4, 6))
)


@st.composite
def datagrams(draw: st.DrawFn, encapsulated: bool) -> bytes:
    payload = draw(st.integers(0, 3))
    if draw(st.booleans()):
        length = payload + draw(st.sampled_from((0, 0, 0, 1)))
        inner = struct.pack(
            "!IHBB", draw(st.sampled_from((6, 6, 4))) << 28, length, 17, draw(st.sampled_from((1, 64, 0)))
        )
        packet6 = inner + b"\xfd" + bytes(11) + draw(addresses) + b"\xfd" + bytes(11) + draw(addresses) + bytes(payload)
        return (draw(frames) if encapsulated else b"") + packet6
    packet = bytearray(20 + payload)
    packet[0] = draw(st.sampled_from((0x45, 0x45, 0x45, 0x46, 0x65, 0)))
    packet[2:4] = (len(packet) + draw(st.sampled_from((0, 0, 0, 1)))).to_bytes(2, "big")
    packet[8] = draw(st.sampled_from((1, 64, 0)))
    packet[12:16], packet[16:20] = draw(addresses), draw(addresses)
    whole = (draw(frames) if encapsulated else b"") + packet
    return whole[: draw(st.sampled_from((len(whole), len(whole), 0, 10, 30)))]


steps = st.sampled_from((*PEERS, "none", "none", "none"))
sources = st.integers(0, 3).map(lambda i: bytes((172, 30, 0, i)))


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_the_same_as_without_memory(data: st.DataObject, encapsulated: bool) -> None:
    table, vxlan = Table(), (1, MAC) if encapsulated else None
    for key, peer in PEERS.items():
        table.set(key, peer)
    admission = Admission(table, OWN, vxlan)
    for change, source, datagram in data.draw(
        st.lists(st.tuples(steps, sources, datagrams(encapsulated)), min_size=1, max_size=40)
    ):
        if change in PEERS:
            if change in table:
                table.remove(change)
            else:
                table.set(change, PEERS[change])
            admission.forget()
        assert admission.admit(source, memoryview(datagram)) == plainly(table, source, datagram, encapsulated)


def plainly(table: Table, source: bytes, datagram: bytes, encapsulated: bool) -> Remote | DropReason:
    start = parse_vxlan(memoryview(datagram), 1, MAC) if encapsulated else 0
    if isinstance(start, DropReason):
        return start
    decision = inbound(table, source, datagram[start:], OWN)
    return decision.reason if isinstance(decision, Drop) else decision.remote


def test_a_full_memory_is_emptied_and_goes_on() -> None:
    table = Table()
    table.set("peer", Remote(bytes((10, 2, 0, 0)), 16, bytes(4), b""))
    admission = Admission(table, Own(((bytes((10, 1, 0, 0)), 16),)), None)
    for number in range(20_000):
        packet = bytearray(b"\x45\0\0\x14\0\0\0\0\x40\0\0\0\x0a\2\0\0\x0a\1\0\0")
        packet[14:16] = number.to_bytes(2, "big")
        assert isinstance(admission.admit(bytes(4), memoryview(packet)), Remote)
