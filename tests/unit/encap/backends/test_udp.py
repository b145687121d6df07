from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.encap.backends.base import Found, Underlay
from flanneld_py.encap.backends.udp import Udp
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.family import IPV6, IPAddress
from flanneld_py.encap.peers import Own, Peers
from flanneld_py.encap.state import (
    ROUTE_PROTOCOL,
    RTPROT_BOOT,
    Address,
    Entry,
    FdbEntry,
    Neighbour,
    Route,
    TunLink,
)
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import Lease, LeaseAttrs, Subnets

UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("1.2.3.4"))
SUBNET = IPv4Network("10.5.1.0/24")
OWN = Own("k/10.5.1.0-24", Subnets(SUBNET), IPv4Address("1.2.3.4"), IPv4Address("192.0.2.1"))
OWN_LEASE = Lease(Subnets(SUBNET), LeaseAttrs(IPv4Address("1.2.3.4")))


def nobody(_: IPAddress) -> bool:
    """Nobody is on our link."""
    return False


def configured(options: str = "") -> Udp:
    config = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"%s}}' % options.encode())
    return Udp(config, UNDERLAY, nobody)


def test_what_we_publish_is_what_flannel_publishes() -> None:
    assert encode_attrs(configured().attrs(Found("id"))) == b'{"PublicIP":"1.2.3.4","PublicIPv6":null}'


def test_over_ipv6_it_is_the_same_with_longer_headers_and_a_device_of_its_own() -> None:
    config = parse_config(b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48"}')
    address, subnet = IPv6Address("2001:db8::1"), IPv6Network("fd00:5:0:1::/64")
    underlay = replace(UNDERLAY, address6=address, public_ip6=IPv6Address("2001:db8::ff"))
    backend = Udp(config, underlay, nobody, IPV6)
    lease = Lease(Subnets(SUBNET, subnet), LeaseAttrs(IPv4Address("1.2.3.4"), IPv6Address("2001:db8::ff")))
    own = Own("k", lease.subnets, IPv6Address("2001:db8::ff"), address)
    device = "flannel0-v6"
    assert backend.datapath(lease) == messages.Configure(
        messages.Mode.RAW, device, address.packed, 8285, 1452, (subnet,)
    )
    assert backend.link(lease) == TunLink(device, 1452)
    address_entry = Address(device, subnet.network_address.packed, 128)
    assert backend.own_entries(own) == (
        address_entry,
        Route(device, IPv6Network("fd00:5::/48").network_address.packed, 48, None),
    )
    assert backend.owns(address_entry)
    assert not backend.owns(Address(device, bytes([10, 5, 9, 0]), 32))
    assert backend.attrs(Found("id")).public_ip6 == IPv6Address("2001:db8::ff")


def test_no_backend_section_is_udp_as_in_flannel() -> None:
    config = parse_config(b'{"Network": "10.5.0.0/16"}')
    assert config.backend_type == "udp"
    assert Udp(config, UNDERLAY, nobody).link(OWN_LEASE) == TunLink("flannel0", 1472)


def test_the_data_plane_gets_bare_packets_the_port_and_our_subnet() -> None:
    assert configured().datapath(OWN_LEASE) == messages.Configure(
        messages.Mode.RAW, "flannel0", bytes([192, 0, 2, 1]), 8285, 1472, (SUBNET,)
    ), "it binds the interface's address, not the public one: a host behind NAT has no other"
    changed = configured(', "port": 4000, "Mtu": 1400').datapath(OWN_LEASE)
    assert (changed.port, changed.mtu) == (4000, 1372)


def test_one_route_serves_all_peers() -> None:
    network = Route("flannel0", bytes([10, 5, 0, 0]), 16, None)
    assert configured().own_entries(OWN) == (Address("flannel0", bytes([10, 5, 1, 0]), 32), network)


@pytest.mark.parametrize("backend_type", ["", "vxlan", "host-gw"])
def test_a_peer_needs_nothing_in_the_kernel_whatever_its_lease_names(backend_type: str) -> None:
    config = parse_config(b'{"Network": "10.5.0.0/16"}')
    lease = Lease(Subnets(IPv4Network("10.5.2.0/24")), LeaseAttrs(IPv4Address("192.0.2.2"), None, backend_type))
    peers = Peers(config, configured(), OWN)
    assert peers.update([("k", lease)]) == {"k": ()}
    assert peers.used == {"k"}


def test_two_subnets_of_one_host_are_both_used() -> None:
    peers = Peers(parse_config(b'{"Network": "10.5.0.0/16"}'), configured(), OWN)
    attrs = LeaseAttrs(IPv4Address("192.0.2.2"))
    peers.update((f"k/{third}", Lease(Subnets(IPv4Network(f"10.5.{third}.0/24")), attrs)) for third in (2, 3))
    assert peers.used == {"k/2", "k/3"}


def test_a_host_inside_network_is_a_peer_if_it_is_on_our_link_only() -> None:
    config, near, far = parse_config(b'{"Network": "10.5.0.0/16"}'), IPv4Address("10.5.240.2"), "10.5.240.130"
    leases = [
        (f"k/{third}", Lease(Subnets(IPv4Network(f"10.5.{third}.0/24")), LeaseAttrs(IPv4Address(host))))
        for third, host in ((2, near), (3, far))
    ]
    address = IPv4Address("10.5.240.1")
    backend = Udp(config, Underlay("eth0", 1500, address, address), lambda asked: asked == near)
    assert backend.asks_on_link
    peers = Peers(config, backend, Own(OWN.key, OWN.subnets, address, address))
    peers.update(leases)
    assert peers.used == {"k/2"}
    assert "is inside Network 10.5.0.0/16 and not on the link of eth0" in peers.rejected["k/3"]
    outside = Peers(config, configured(), OWN)
    outside.update(leases)
    assert outside.used == set()
    assert not configured().asks_on_link


@pytest.mark.parametrize(
    ("entry", "ours"),
    [
        (Route("flannel0", bytes([10, 9, 0, 0]), 16, None, ROUTE_PROTOCOL), True),
        (Route("flannel0", bytes([10, 5, 7, 0]), 24, None, RTPROT_BOOT), False),
        (Address("flannel0", bytes([10, 5, 9, 0]), 32), True),
        (Address("flannel0", bytes([192, 168, 9, 1]), 24), False),
        (Address("flannel0", bytes(15) + b"\1", 128), False),
        (Neighbour("flannel0", bytes([10, 5, 9, 0]), bytes(6)), False),
        (Route("flannel0-v6", bytes.fromhex("fd000005") + bytes(12), 48, None, ROUTE_PROTOCOL), False),
        (FdbEntry("flannel0", bytes(6), bytes([192, 0, 2, 2])), False),
    ],
)
def test_what_an_earlier_run_left_is_ours_and_an_operators_is_not(entry: Entry, ours: bool) -> None:
    assert configured().owns(entry) is ours


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (', "Port": 0', "Backend.Port is 0; it must be a number from 1 to 65535"),
        (', "Port": "8285"', "Backend.Port is '8285'"),
        (', "MTU": 90', "leaves 62 bytes to containers; it must be at least 96"),
    ],
)
def test_options_that_cannot_be(options: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        configured(options)
