"""Which leases are peers over IPv6: the rules of test_peers.py, on the other family's subnets and addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.vxlan import Vxlan
from flanneld_py.encap.family import IPV6
from flanneld_py.encap.peers import Own, Peers
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.model import NO_IPV4, Lease, LeaseAttrs, Subnets, stand_in

CONFIG = parse_config(
    b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
)
US = IPv6Address("2001:db8::1")
BACKEND = Vxlan(CONFIG, Underlay("eth0", 1500, None, None, US, US), lambda _: False, IPV6, nexthop_objects=True)
OWN = Own("own", Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64")), US, US)


def lease(v6: str | None, public: str | None, mac: int = 9, created: int = 1, v4: str = "10.5.9.0/24") -> Lease:
    address = IPv6Address(public) if public else None
    attrs = LeaseAttrs(
        stand_in(address) if address and v4 == str(NO_IPV4) else IPv4Address("192.0.2.9"),
        address,
        "vxlan",
        {"VNI": 1, "VtepMAC": "02:00:00:00:00:44"},
        {"VNI": 1, "VtepMAC": f"02:00:00:00:06:{mac:02x}"} if v6 else None,
    )
    return Lease(Subnets(IPv4Network(v4), IPv6Network(v6) if v6 else None), attrs, created, created)


GOOD = lease("fd00:5:0:2::/64", "2001:db8::2", 2)


@pytest.mark.parametrize("record", [GOOD, lease("fd00:5:0:2::/64", "2001:db8::2", v4=str(NO_IPV4))])
def test_a_lease_is_a_peer_with_and_without_ipv4_beside_it(record: Lease) -> None:
    peers = Peers(CONFIG, BACKEND, OWN)
    entries = peers.update([("k", record)])["k"]
    assert {entry.device for entry in entries} == {"flannel-v6.1"}
    assert len(entries) == 4


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (lease(None, None), "it has no IPv6 subnet"),
        (lease("fd00:5:0:3::/64", None), "it has no IPv6 underlay address"),
        (lease("fd00:6:0:3::/64", "2001:db8::3"), "outside Network fd00:5::/48"),
        (lease("fd00:5:0:1:8000::/65", "2001:db8::3"), "overlaps our own fd00:5:0:1::/64"),
        (lease("fd00:5:0:3::/64", "2001:db8::1"), "is our own"),
        (lease("fd00:5:0:3::/64", "fe80::3"), "no address of a host"),
        (lease("fd00:5:0:3::/64", "ff02::3"), "no address of a host"),
        (lease("fd00:5:0:3::/64", "::1"), "PublicIPv6 ::1 is no address of a host"),
        (lease("fd00:5:0:3::/64", "::ffff:192.0.2.3"), "no address of a host"),
        (lease("fd00:5:0:3::/64", "::192.0.2.3"), "no address of a host"),
        (lease("fd00:5:0:3::/64", "fd00:5:0:3::7"), "inside its own subnet"),
        (lease("fd00:5:0:3::/64", "fd00:5:0:1::7"), "inside our own subnet"),
    ],
)
def test_a_bad_record_is_left_out_with_its_reason(record: Lease, reason: str) -> None:
    peers = Peers(CONFIG, BACKEND, OWN)
    peers.update([("good", GOOD), ("bad", record)])
    assert reason in peers.rejected["bad"]
    assert peers.used == {"good"}


def test_a_host_inside_network_is_a_peer_where_no_subnet_covers_it() -> None:
    peers = Peers(CONFIG, BACKEND, OWN)
    assert len(peers.update([("k", lease("fd00:5:0:3::/64", "fd00:5:0:f000::3"))])["k"]) == 4


def test_rivals_of_any_length_are_found() -> None:
    peers = Peers(CONFIG, BACKEND, OWN)
    wide, late = lease("fd00:5::/62", "2001:db8::3", 3, 1), lease("fd00:5:0:2::/64", "2001:db8::4", 4, 5)
    peers.update([("wide", lease("fd00:5:0:4::/62", "2001:db8::5", 5, 1)), ("good", GOOD)])
    assert peers.used == {"good", "wide"}
    assert peers.update([("overlaps us", wide), ("late", late)])["late"] == ()
    assert peers.update([("good", None)])["late"] != ()
