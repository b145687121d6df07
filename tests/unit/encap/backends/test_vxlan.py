from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.encap.backends.base import Found, Underlay
from flanneld_py.encap.backends.vxlan import Vxlan, choose_mac, device_name
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.family import IPV4, IPV6, Family
from flanneld_py.encap.peers import Own
from flanneld_py.encap.state import (
    RTPROT_BOOT,
    Address,
    Entry,
    FdbEntry,
    Neighbour,
    Nexthop,
    Route,
    TunLink,
    VxlanLink,
)
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import NO_IPV4, Json, Lease, LeaseAttrs, Subnets, stand_in

MAC = bytes.fromhex("0200000000aa")
ON_LINK = IPv4Address("192.0.2.9")
UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("198.51.100.1"))


def backend(options: str = "", *, nexthop_objects: bool = True) -> Vxlan:
    config = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"%s}}' % options.encode())
    return Vxlan(config, UNDERLAY, lambda address: address == ON_LINK, nexthop_objects=nexthop_objects)


def own_lease(options: str = "") -> Lease:
    """Our lease, as it is when the device has the MAC already."""
    device = VxlanLink("flannel.1", 1, 8472, 1450, MAC, "eth0", None)
    attrs = backend(options).attrs(Found("id", device=device))
    return Lease(Subnets(IPv4Network("10.5.1.0/24")), attrs)


def vxlan_link(options: str = "") -> VxlanLink:
    link = backend(options).link(own_lease(options))
    assert isinstance(link, VxlanLink)
    return link


def test_what_we_publish_is_what_flannel_publishes() -> None:
    assert encode_attrs(own_lease().attrs) == (
        b'{"PublicIP":"198.51.100.1","PublicIPv6":null,"BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:aa"}}'
    )


def test_the_device_by_default() -> None:
    assert vxlan_link() == VxlanLink(
        name="flannel.1",
        vni=1,
        port=8472,
        mtu=1450,
        mac=MAC,
        parent="eth0",
        local=bytes([192, 0, 2, 1]),
        learning=False,
        gbp=False,
    ), "the outer source is the interface's address, not the public one: a host behind NAT must be able to send"


@pytest.mark.parametrize(
    ("vni", "family", "name"),
    [
        (0, IPV4, "flannel.0"),
        (9_999_999, IPV4, "flannel.9999999"),
        (10_000_000, IPV4, "flannel4x989680"),
        (2**24 - 1, IPV4, "flannel4xffffff"),
        (0, IPV6, "flannel-v6.0"),
        (9999, IPV6, "flannel-v6.9999"),
        (10_000, IPV6, "flannel6x002710"),
        (2**24 - 1, IPV6, "flannel6xffffff"),
    ],
)
def test_a_device_has_flannels_name_or_one_that_fits(vni: int, family: Family, name: str) -> None:
    assert device_name(vni, family) == name
    assert len(name) <= 15


def test_vni_0_is_one_like_any_other() -> None:
    link = vxlan_link(', "VNI": 0')
    assert (link.name, link.vni) == ("flannel.0", 0)


def test_the_device_with_all_options_in_any_case() -> None:
    link = vxlan_link(', "vni": 42, "PORT": 4789, "Mtu": 1400, "gbp": true, "LEARNING": true')
    assert (link.name, link.vni, link.port, link.mtu, link.gbp, link.learning) == (
        "flannel.42",
        42,
        4789,
        1350,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (', "VNI": "one"', "Backend.VNI is 'one'"),
        (', "VNI": 16777216', "Backend.VNI"),
        (', "VNI": true', "Backend.VNI"),
        (', "VNI": -1', "Backend.VNI is -1; it must be a number from 0 to 16777215"),
        (', "Port": 70000', "Backend.Port is 70000"),
        (', "MTU": 100', "leaves 50 bytes"),
        (', "GBP": 1', "Backend.GBP is 1"),
        (', "Learning": "yes"', "Backend.Learning"),
        (', "DirectRouting": 1', "DirectRouting"),
    ],
)
def test_options_that_cannot_be(options: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        backend(options)


@pytest.mark.parametrize("nexthop_objects", [True, False])
def test_a_peer_needs_neighbour_fdb_and_route(nexthop_objects: bool) -> None:
    attrs = LeaseAttrs(IPv4Address("192.0.2.2"), None, "vxlan", {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"})
    peer = backend(nexthop_objects=nexthop_objects).peer(Lease(Subnets(IPv4Network("10.5.2.0/24")), attrs))
    base, mac = bytes([10, 5, 2, 0]), bytes.fromhex("020000000002")
    entries: set[Entry] = {
        Neighbour("flannel.1", base, mac),
        FdbEntry("flannel.1", mac, bytes([192, 0, 2, 2])),
        Route("flannel.1", base, 24, base),
    }
    if nexthop_objects:
        entries.add(Nexthop("flannel.1", base))
    assert set(peer.entries) == entries


def test_our_own_address_is_the_subnet_base_alone() -> None:
    address = IPv4Address("192.0.2.1")
    own = Own("k", Subnets(IPv4Network("10.5.1.0/24")), address, address)
    assert backend().own_entries(own) == (Address("flannel.1", bytes([10, 5, 1, 0]), 32),)


@pytest.mark.parametrize(
    ("entry", "ours"),
    [
        (Route("flannel.1", bytes([10, 5, 2, 0]), 24, bytes([10, 5, 2, 0]), RTPROT_BOOT), True),
        (Route("flannel.1", bytes([10, 9, 0, 0]), 16, bytes([10, 5, 2, 0])), True),
        (Route("flannel.1", bytes([10, 9, 0, 0]), 16, None, RTPROT_BOOT), False),
        (Route("flannel.1", bytes([10, 5, 2, 7]), 32, bytes([10, 5, 2, 0]), RTPROT_BOOT), False),
        (Address("flannel.1", bytes([10, 5, 9, 0]), 32), True),
        (Address("flannel.1", bytes([192, 168, 9, 1]), 24), False),
        (Neighbour("flannel.1", bytes([10, 5, 9, 0]), MAC), True),
        (Neighbour("flannel.1", bytes([192, 168, 9, 1]), MAC), False),
        (Neighbour("flannel.1", bytes(15) + b"\x01", MAC), False),
        (FdbEntry("flannel.1", MAC, bytes([192, 0, 2, 9])), True),
        (Nexthop("flannel.1", bytes([10, 5, 9, 0])), True),
    ],
)
def test_what_an_earlier_run_or_flannel_left_is_ours_and_an_operators_is_not(entry: Entry, ours: bool) -> None:
    assert backend().owns(entry) is ours


def free(_: bytes) -> bool:
    return False


def test_the_mac_lasts() -> None:
    device, published = bytes.fromhex("0200000000d0"), {"VtepMAC": "02:00:00:00:00:b0"}
    assert choose_mac(device, published, "id", free) == device
    assert choose_mac(None, published, "id", free) == bytes.fromhex("0200000000b0")
    derived = choose_mac(None, None, "id", free)
    assert derived == choose_mac(None, {"VtepMAC": "garbage"}, "id", free)
    assert derived[0] & 0b11 == 0b10, "locally administered, unicast"


def test_a_clone_gets_another_mac() -> None:
    original = choose_mac(None, None, "id", free)
    assert choose_mac(None, None, "id", original.__eq__) != original
    assert choose_mac(None, None, "another id", free) != original
    assert choose_mac(None, {"VtepMAC": original.hex(":")}, "id", original.__eq__) != original
    assert choose_mac(original, None, "id", original.__eq__) == original, "never under a device that is there"


def test_a_mac_that_another_lease_has_is_not_published_again() -> None:
    first = own_lease()
    again = backend().attrs(Found("id", lease=first, others=[first]))
    assert again != first.attrs, "a clone has its original's lease in mind"
    assert backend().attrs(Found("id", lease=first)) == first.attrs


def test_in_userspace_the_device_is_a_tun_and_the_process_has_the_macs() -> None:
    config = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
    userspace = Vxlan(config, UNDERLAY, lambda _: False, nexthop_objects=True, userspace=True)
    lease = own_lease()
    assert userspace.link(lease) == TunLink("flannel.1", 1450)
    assert userspace.datapath(lease) == messages.Configure(
        messages.Mode.VXLAN, "flannel.1", bytes([192, 0, 2, 1]), 8472, 1450, (lease.subnets.v4,), 1, MAC
    )
    assert backend().datapath(lease) is None


V6_CONFIG = parse_config(
    b'{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
)
V6_DIRECT = Route("eth0", IPv6Address("fd00:5:0:9::").packed, 64, IPv6Address("2001:db8::9").packed)
V6_UNDERLAY = Underlay("eth0", 1500, None, None, IPv6Address("2001:db8::1"), IPv6Address("2001:db8::99"))


def v6_backend(underlay: Underlay = V6_UNDERLAY) -> Vxlan:
    return Vxlan(V6_CONFIG, underlay, lambda _: False, IPV6, nexthop_objects=True)


def v6_lease(number: int, **changes: Json) -> Lease:
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}", **changes}
    address = IPv6Address(f"2001:db8::{number:x}")
    attrs = LeaseAttrs(stand_in(address), address, "vxlan", None, data)
    return Lease(Subnets(NO_IPV4, IPv6Network(f"fd00:5:0:{number:x}::/64")), attrs)


def test_ipv6_has_a_device_of_its_own_over_ipv6() -> None:
    device = VxlanLink("flannel-v6.1", 1, 8472, 1430, MAC, "eth0", None)
    attrs = v6_backend().attrs(Found("id", device=device))
    assert encode_attrs(attrs).endswith(
        b'"PublicIPv6":"2001:db8::99","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:aa"}}'
    )
    link = v6_backend().link(Lease(v6_lease(1).subnets, attrs))
    assert link == VxlanLink("flannel-v6.1", 1, 8472, 1430, MAC, "eth0", IPv6Address("2001:db8::1").packed)


def test_an_ipv6_peer_needs_neighbour_fdb_and_route() -> None:
    base, mac = IPv6Address("fd00:5:0:2::").packed, bytes.fromhex("020000000002")
    assert set(v6_backend().peer(v6_lease(2)).entries) == {
        Neighbour("flannel-v6.1", base, mac),
        FdbEntry("flannel-v6.1", mac, IPv6Address("2001:db8::2").packed),
        Route("flannel-v6.1", base, 64, base),
        Nexthop("flannel-v6.1", base),
    }


def test_of_two_devices_each_backend_owns_what_is_on_its_own() -> None:
    inside = IPv6Address("fd00:5:0:2::").packed
    assert v6_backend().owns(Address("flannel-v6.1", inside, 128))
    assert not v6_backend().owns(Address("flannel-v6.1", IPv6Address("fd00:6::").packed, 128))
    assert not v6_backend().owns(FdbEntry("flannel.1", MAC, bytes([192, 0, 2, 9])))
    assert not backend().owns(FdbEntry("flannel-v6.1", MAC, inside))


def test_ipv6_needs_a_larger_mtu() -> None:
    with pytest.raises(ConfigInvalid, match=r"leaves 1279 bytes to containers; it must be at least 1350"):
        v6_backend(replace(V6_UNDERLAY, mtu=1349))


def test_direct_routing_takes_the_tunnel_only_where_there_is_no_link() -> None:
    def lease(number: int) -> Lease:
        data: Json = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}
        attrs = LeaseAttrs(IPv4Address(f"192.0.2.{number}"), backend_type="vxlan", backend_data=data)
        return Lease(Subnets(IPv4Network(f"10.5.{number}.0/24")), attrs)

    direct = backend(', "DirectRouting": true')
    assert direct.peer(lease(9)).entries == (Route("eth0", bytes([10, 5, 9, 0]), 24, bytes([192, 0, 2, 9])),)
    assert direct.peer(lease(8)).entries == backend().peer(lease(8)).entries
    assert len(backend().peer(lease(9)).entries) == 4, "it is off by default"


def test_direct_routing_asks_for_the_underlay_address_of_its_family() -> None:
    config = replace(V6_CONFIG, backend={**V6_CONFIG.backend, "directrouting": True})
    near = IPv6Address("2001:db8::9")
    direct = Vxlan(config, V6_UNDERLAY, lambda address: address == near, IPV6, nexthop_objects=True)
    assert direct.peer(v6_lease(9)).entries == (V6_DIRECT,)
    assert direct.peer(v6_lease(8)).entries == v6_backend().peer(v6_lease(8)).entries


def test_on_the_underlay_interface_only_what_bears_our_mark_is_ours() -> None:
    ours = Route("eth0", bytes([10, 5, 9, 0]), 24, bytes([192, 0, 2, 9]))
    assert backend().owns(ours)
    assert not backend().owns(ours._replace(protocol=RTPROT_BOOT))
    assert not backend().owns(ours._replace(subnet=bytes([10, 6, 9, 0])))
    assert not backend().owns(Address("eth0", bytes([10, 5, 1, 0]), 32))
    assert v6_backend().owns(V6_DIRECT)
    assert not v6_backend().owns(V6_DIRECT._replace(protocol=RTPROT_BOOT))
    assert not v6_backend().owns(ours)
    assert not backend().owns(V6_DIRECT)
