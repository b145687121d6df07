from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from flanneld_py.registry.codec import decode_record
from flanneld_py.registry.model import Lease
from flanneld_py.registry.store import KeyValue
from tests.bench.peers import MOST, NETWORK, SUBNET_MAX, Peer

PREFIX = "/coreos.com/network"


def test_a_peer_is_a_lease_that_the_daemon_can_read() -> None:
    peer = Peer(258)
    lease = decode_record(PREFIX, KeyValue(peer.key(PREFIX), peer.value, 1, 1))
    assert isinstance(lease, Lease)
    assert lease.subnets.v4 == IPv4Network("10.65.2.0/24")
    assert lease.attrs.public_ip == IPv4Address("198.18.2.2")
    assert lease.attrs.backend_type == "vxlan"
    assert lease.attrs.backend_data == {"VNI": 1, "VtepMAC": "06:fb:00:00:01:02"}


def test_all_peers_differ_and_leave_room_for_the_host() -> None:
    last = Peer(MOST + 1000)
    assert last.subnet.subnet_of(NETWORK)
    assert Peer(0).base > IPv4Address(SUBNET_MAX)
    assert len({(peer.key(PREFIX), peer.value) for peer in map(Peer, range(1000))}) == 1000
    assert not last.mac[0] & 1
