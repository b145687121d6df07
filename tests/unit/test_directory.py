"""The peers of a data plane: what a new configuration changes about them, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from flanneld_py.encap import orders
from flanneld_py.encap.directory import Directory, Hop

CONFIGURE = orders.Configure(
    orders.Mode.VXLAN, "flannel.1", bytes((10, 0, 0, 1)), 8472, 1450, (IPv4Network("10.5.1.0/24"),), 1, bytes(6)
)
PEER = orders.Peer("10.5.2.0-24", bytes((10, 5, 2, 0)), 24, bytes((10, 0, 0, 2)), b"\x02peer1")
DESTINATION = bytes((10, 5, 2, 9))


def hop(directory: Directory) -> Hop:
    found = directory.table.lookup(DESTINATION)
    assert isinstance(found, Hop)
    return found


def test_a_configuration_that_changes_nothing_for_peers_does_not_touch_them() -> None:
    """An agent that is restarted sends it again: ten thousand peers made anew would hold up packets for 0.2 s."""
    directory = Directory(CONFIGURE)
    directory.put([PEER])
    before = hop(directory)
    directory.configure(CONFIGURE)
    directory.configure(replace(CONFIGURE, mtu=1400, subnets=()))
    assert directory.table.known == {DESTINATION: before}
    assert hop(directory) is before
    assert directory.mtu == 1400


def test_another_vni_or_mac_of_ours_is_in_the_headers_to_every_peer() -> None:
    directory = Directory(CONFIGURE)
    directory.put([PEER])
    hop(directory).tally.sent = 7
    directory.configure(replace(CONFIGURE, vni=0x020304, mac=b"\x02own11"))
    assert directory.table.known == {}
    assert hop(directory).prefix4 == b"\x08\0\0\0\x02\x03\x04\0" + PEER.mac + b"\x02own11\x08\0"
    assert hop(directory).tally.sent == 7
