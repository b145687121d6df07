from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from flanneld_py.encap.alloc import Alloc
from flanneld_py.encap.backend import Found, Underlay
from flanneld_py.encap.hostgw import HostGw
from flanneld_py.encap.peers import Unusable
from flanneld_py.encap.state import RTPROT_BOOT, Neighbour, Route
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import Lease, LeaseAttrs, Subnets

CONFIG = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}')
UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"))
LINK = IPv4Network("192.0.2.0/24")
BACKEND = HostGw(CONFIG, UNDERLAY, lambda address: address in LINK)
ROUTE = Route("eth0", bytes([10, 5, 9, 0]), 24, bytes([192, 0, 2, 9]))


def lease(public_ip: str = "192.0.2.9", backend_type: str = "host-gw") -> Lease:
    return Lease(Subnets(IPv4Network("10.5.9.0/24")), LeaseAttrs(IPv4Address(public_ip), backend_type=backend_type))


def test_what_we_publish_is_what_flannel_publishes() -> None:
    expected = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'
    assert encode_attrs(BACKEND.attrs(Found("id"))) == expected
    assert encode_attrs(Alloc(CONFIG, UNDERLAY).attrs(Found("id"))) == b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'


def test_a_peer_is_a_route_by_way_of_its_host() -> None:
    assert BACKEND.peer(lease()).entries == (ROUTE,)
    assert Alloc(CONFIG, UNDERLAY).peer(lease()).entries == ()


def test_containers_have_the_whole_mtu() -> None:
    assert BACKEND.mtu == Alloc(CONFIG, UNDERLAY).mtu == 1500


@pytest.mark.parametrize(
    ("public_ip", "backend_type", "complaint"),
    [
        ("198.51.100.9", "host-gw", "198.51.100.9 is not on the link of eth0.*DirectRouting"),
        ("192.0.2.9", "vxlan", "backend type is"),
        ("192.0.2.9", "", "backend type is"),
    ],
)
def test_who_cannot_be_a_gateway_is_left_out(public_ip: str, backend_type: str, complaint: str) -> None:
    with pytest.raises(Unusable, match=complaint):
        BACKEND.peer(lease(public_ip, backend_type))


def test_behind_nat_a_host_cannot_be_a_gateway() -> None:
    behind = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1"))
    with pytest.raises(ConfigInvalid, match="--public-ip 198"):
        HostGw(CONFIG, behind, lambda _: True)


@pytest.mark.parametrize("backend", [BACKEND, Alloc(CONFIG, UNDERLAY)])
def test_ours_is_what_bears_our_mark_inside_network(backend: HostGw | Alloc) -> None:
    assert backend.owns(ROUTE)
    assert not backend.owns(ROUTE._replace(protocol=RTPROT_BOOT))
    assert not backend.owns(ROUTE._replace(device="eth1"))
    assert not backend.owns(ROUTE._replace(subnet=bytes([10, 6, 9, 0])))
    assert not backend.owns(ROUTE._replace(gateway=None))
    assert not backend.owns(Neighbour("eth0", bytes([10, 5, 9, 0]), bytes(6)))
