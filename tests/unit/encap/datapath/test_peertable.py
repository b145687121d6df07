"""The peers of a data plane: what a new configuration changes about them, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.forward import MOST
from flanneld_py.encap.datapath.peertable import PATH_SECONDS, Hop, PeerTable

CONFIGURE = messages.Configure(
    messages.Mode.VXLAN, "flannel.1", bytes((10, 0, 0, 1)), 8472, 1450, (IPv4Network("10.5.1.0/24"),), 1, bytes(6)
)
PEER = messages.Peer("10.5.2.0-24", bytes((10, 5, 2, 0)), 24, bytes((10, 0, 0, 2)), b"\x02peer1")
DESTINATION = bytes((10, 5, 2, 9))


def hop(directory: PeerTable) -> Hop:
    found = directory.table.lookup(DESTINATION)
    assert isinstance(found, Hop)
    return found


def test_a_configuration_that_changes_nothing_for_peers_does_not_touch_them() -> None:
    """An agent that is restarted sends it again: ten thousand peers made anew would hold up packets for 0.2 s."""
    directory = PeerTable(CONFIGURE)
    directory.put([PEER])
    before = hop(directory)
    directory.configure(CONFIGURE)
    directory.configure(replace(CONFIGURE, mtu=1400, subnets=()))
    assert directory.table.known == {DESTINATION: before}
    assert hop(directory) is before
    assert directory.mtu == 1400


def test_another_vni_or_mac_of_ours_is_in_the_headers_to_every_peer() -> None:
    directory = PeerTable(CONFIGURE)
    directory.put([PEER])
    hop(directory).tally.sent = 7
    directory.configure(replace(CONFIGURE, vni=0x020304, mac=b"\x02own11"))
    assert directory.table.known == {}
    assert hop(directory).prefix4 == b"\x08\0\0\0\x02\x03\x04\0" + PEER.mac + b"\x02own11\x08\0"
    assert hop(directory).tally.sent == 7


@pytest.mark.parametrize(
    ("mode", "own", "other", "path", "mtu"),
    [
        (messages.Mode.VXLAN, "192.0.2.1", "192.0.2.2", 1400, 1350),
        (messages.Mode.RAW, "192.0.2.1", "192.0.2.2", 1400, 1372),
        (messages.Mode.VXLAN, "2001:db8::1", "2001:db8::2", 1400, 1330),
        (messages.Mode.RAW, "2001:db8::1", "2001:db8::2", 1400, 1352),
        (messages.Mode.VXLAN, "2001:db8::1", "2001:db8::2", 1280, 1280),
        (messages.Mode.VXLAN, "192.0.2.1", "192.0.2.2", 68, 1280),
        (messages.Mode.VXLAN, "192.0.2.1", "192.0.2.2", 1500, MOST),
        (messages.Mode.VXLAN, "192.0.2.1", "192.0.2.9", 1400, MOST),
    ],
)
def test_a_narrow_path_is_learned_for_all_peers_behind_its_address_and_forgotten_in_time(
    mode: messages.Mode, own: str, other: str, path: int, mtu: int
) -> None:
    wanted = replace(CONFIGURE, mode=mode, local=ip_address(own).packed)
    directory = PeerTable(wanted)
    at = ip_address(other.replace("::9", "::2").replace(".9", ".2")).packed
    second = replace(PEER, key="10.5.3.0-24", subnet=bytes((10, 5, 3, 0)), address=at)
    elsewhere = replace(PEER, key="10.5.4.0-24", subnet=bytes((10, 5, 4, 0)), address=bytes(len(at)))
    directory.put([replace(PEER, address=at), second, elsewhere])

    def mtus() -> list[int]:
        found = [directory.table.lookup(bytes((10, 5, third, 9))) for third in (2, 3, 4)]
        return [remote.mtu for remote in found if remote is not None]

    directory.narrow(other, path, 1000.0)
    assert mtus() == [mtu, mtu, MOST]
    directory.narrow(other, path, 1100.0)
    directory.widen(1000.0 + PATH_SECONDS - 1)
    assert mtus() == [mtu, mtu, MOST]
    if mtu > 1280 and mtu != MOST:
        directory.narrow(other, path - 10, 1100.0)
        assert mtus() == [mtu - 10, mtu - 10, MOST]
    directory.widen(1100.0 + PATH_SECONDS)
    assert mtus() == [MOST, MOST, MOST]


def test_a_peer_that_comes_again_has_no_narrow_path() -> None:
    directory = PeerTable(replace(CONFIGURE, subnets=(IPv6Network("fd00::/64"),)))
    directory.put([PEER])
    directory.narrow("10.0.0.2", 1400, 0.0)
    assert hop(directory).mtu == 1350
    directory.remove(PEER.key)
    directory.put([PEER])
    assert hop(directory).mtu == MOST
