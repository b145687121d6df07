from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.encap.backends.alloc import Alloc
from flanneld_py.encap.backends.base import Found, Underlay
from flanneld_py.encap.backends.hostgw import HostGw
from flanneld_py.encap.backends.table import published
from flanneld_py.encap.family import IPV4, IPV6, Family, IPAddress
from flanneld_py.encap.peers import Unusable
from flanneld_py.encap.state import RTPROT_BOOT, Neighbour, Route
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import Lease, LeaseAttrs, Subnets, stand_in

CONFIG = parse_config(
    b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd42::/48", "Backend": {"Type": "host-gw"}}'
)
US, US6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
UNDERLAY = Underlay("eth0", 1500, US, US, US6, US6)
LINKS = IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64")
ROUTE = Route("eth0", bytes([10, 5, 9, 0]), 24, bytes([192, 0, 2, 9]))
ROUTE6 = Route("eth0", IPv6Address("fd42:0:0:9::").packed, 64, IPv6Address("2001:db8::9").packed)
ROUTES = {IPV4: ROUTE, IPV6: ROUTE6}
FAMILIES = pytest.mark.parametrize("family", [IPV4, IPV6], ids=lambda family: family.name)


def on_link(address: IPAddress) -> bool:
    return any(address.version == link.version and address in link for link in LINKS)


def host_gw(family: Family) -> HostGw:
    return HostGw(CONFIG, UNDERLAY, on_link, family)


def lease(public_ip: str = "192.0.2.9", public_ip6: str = "2001:db8::9", backend_type: str = "host-gw") -> Lease:
    subnets = Subnets(IPv4Network("10.5.9.0/24"), IPv6Network("fd42:0:0:9::/64"))
    return Lease(subnets, LeaseAttrs(IPv4Address(public_ip), IPv6Address(public_ip6), backend_type))


@pytest.mark.parametrize(
    ("families", "addresses"),
    [
        ((IPV4,), b'"PublicIP":"192.0.2.1","PublicIPv6":null'),
        ((IPV4, IPV6), b'"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"'),
        ((IPV6,), b'"PublicIP":"%s","PublicIPv6":"2001:db8::1"' % str(stand_in(US6)).encode()),
    ],
)
def test_what_we_publish_is_what_flannel_publishes(families: tuple[Family, ...], addresses: bytes) -> None:
    found = Found("id")
    direct = published([(host_gw(family), found) for family in families])
    leased = published([(Alloc(CONFIG, UNDERLAY, family), found) for family in families])
    assert encode_attrs(direct) == b'{%s,"BackendType":"host-gw"}' % addresses
    assert encode_attrs(leased) == b"{%s}" % addresses


@FAMILIES
def test_a_peer_is_a_route_by_way_of_its_host(family: Family) -> None:
    assert host_gw(family).peer(lease()).entries == (ROUTES[family],)
    assert Alloc(CONFIG, UNDERLAY, family).peer(lease()).entries == ()


@FAMILIES
def test_containers_have_the_whole_mtu(family: Family) -> None:
    assert host_gw(family).mtu == Alloc(CONFIG, UNDERLAY, family).mtu == 1500


@pytest.mark.parametrize(
    ("family", "peer", "complaint"),
    [
        (IPV4, lease("198.51.100.9"), "PublicIP 198.51.100.9 is not on the link of eth0.*DirectRouting"),
        (IPV6, lease(public_ip6="2001:db8:9::9"), "PublicIPv6 2001:db8:9::9 is not on the link of eth0.*DirectRouting"),
        (IPV4, lease(backend_type="vxlan"), "backend type is"),
        (IPV6, lease(backend_type=""), "backend type is"),
    ],
)
def test_who_cannot_be_a_gateway_is_left_out(family: Family, peer: Lease, complaint: str) -> None:
    with pytest.raises(Unusable, match=complaint):
        host_gw(family).peer(peer)
    other = IPV6 if family is IPV4 else IPV4
    if "link" in complaint:
        assert host_gw(other).peer(peer).entries == (ROUTES[other],)


@pytest.mark.parametrize(("family", "flag"), [(IPV4, "--public-ip 198"), (IPV6, "--public-ipv6 2001:db8:9::")])
def test_behind_nat_a_host_cannot_be_a_gateway(family: Family, flag: str) -> None:
    behind = Underlay("eth0", 1500, US, IPv4Address("198.51.100.1"), US6, IPv6Address("2001:db8:9::1"))
    with pytest.raises(ConfigInvalid, match=flag):
        HostGw(CONFIG, behind, lambda _: True, family)


@FAMILIES
@pytest.mark.parametrize("kind", ["host-gw", "alloc"])
def test_ours_is_what_bears_our_mark_inside_network(family: Family, kind: str) -> None:
    backend = host_gw(family) if kind == "host-gw" else Alloc(CONFIG, UNDERLAY, family)
    ours, others = ROUTES[family], ROUTES[IPV6 if family is IPV4 else IPV4]
    assert backend.owns(ours)
    assert not backend.owns(others), "it is the other family's backend's"
    assert not backend.owns(ours._replace(protocol=RTPROT_BOOT))
    assert not backend.owns(ours._replace(device="eth1"))
    assert not backend.owns(ours._replace(subnet=bytes([10, 6, *ours.subnet[2:]])))
    assert not backend.owns(ours._replace(gateway=None))
    assert not backend.owns(Neighbour("eth0", ours.subnet, bytes(6)))
