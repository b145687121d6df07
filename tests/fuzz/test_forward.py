"""Forwarding: the table against a naive scan; decisions against anything."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.datapath.forward import Deliver, Drop, Own, Remote, Reply, Send, Table, inbound, outbound
from tests.packets import words

OWN = Own(((bytes((10, 1, 0, 0)), 24), (bytes((0xFD, 1, *bytes(14))), 64)), bytes((10, 1, 0, 0)), None)


def network(base: bytes, length: int) -> Remote:
    subnet = ip_network((int.from_bytes(base, "big") if len(base) == 4 else base, length), strict=False)
    return Remote(subnet.network_address.packed, length, base[-4:], b"")


# Few values, so that subnets nest and meet.
octets = st.sampled_from((0, 1, 2, 128, 255))
v4 = st.lists(octets, min_size=4, max_size=4).map(bytes)
v6 = st.lists(octets, min_size=16, max_size=16).map(bytes)
remotes = st.builds(network, v4, st.integers(0, 32)) | st.builds(network, v6, st.integers(0, 128))
steps = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | remotes), max_size=30)


def filled(changes: list[tuple[str, Remote | None]]) -> tuple[Table, dict[str, Remote]]:
    table, model = Table(), dict[str, Remote]()
    for change in changes:
        fill(table, model, change)
    return table, model


def fill(table: Table, model: dict[str, Remote], change: tuple[str, Remote | None]) -> None:
    key, remote = change
    model.pop(key, None)
    if remote is None:
        table.remove(key)
    else:
        table.set(key, remote)
        model[key] = remote


@given(steps, st.lists(v4 | v6, max_size=20))
def test_the_longest_prefix_wins(changes: list[tuple[str, Remote | None]], destinations: list[bytes]) -> None:
    table, model = Table(), dict[str, Remote]()
    for change in changes:
        fill(table, model, change)
        for destination in destinations:
            best: Remote | None = None
            for remote in model.values():
                subnet = ip_network((ip_address(remote.base), remote.length))
                if ip_address(destination) in subnet and (best is None or remote.length >= best.length):
                    best = remote
            assert table.lookup(destination) == table.known.get(destination) == best


@given(steps, v4)
def test_who_is_behind_an_address(changes: list[tuple[str, Remote | None]], address: bytes) -> None:
    table, model = filled(changes)
    assert table.from_address(address) == tuple(remote for remote in model.values() if remote.address == address)


@given(
    steps,
    v4,
    st.binary(max_size=90) | st.binary(min_size=19, max_size=80).map(lambda rest: b"\x45" + rest),
    st.integers(0, 100),
    st.booleans(),
)
def test_any_packet_gets_a_decision(
    changes: list[tuple[str, Remote | None]], source: bytes, packet: bytes, mtu: int, fitting: bool
) -> None:
    if fitting and len(packet) >= 20:
        packet = packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]
    table, model = filled(changes)
    match outbound(table, packet, mtu):
        case Reply(reply, _):
            assert (reply[20:21] in (b"\x03", b"\x05") and words(reply[20:]) == 0xFFFF) or reply[0] >> 4 == 6
        case Send(remote):
            assert remote in model.values()
            assert len(packet) <= mtu
        case Drop():
            pass
    match inbound(table, source, packet, OWN):
        case Deliver(remote):
            assert remote.address == source
        case Drop():
            pass
