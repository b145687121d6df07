from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest

from flanneld_py.agent.underlay.choose import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_OPTIMISTIC,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    SCOPE_LINK,
    Host,
    Interface,
    InterfaceAddress,
    NoInterface,
    UnderlayChoice,
    UnderlayOptions,
    choose,
    outside,
)


def interface(name: str, index: int, *addresses: str) -> Interface:
    return Interface(name, index, 1500, bytes(6), tuple(InterfaceAddress(ip_address(a)) for a in addresses))


NAT = interface("enp0s3", 2, "10.0.2.15")
LAN = interface("enp0s8", 3, "192.168.56.11", "192.168.56.12")
HOST = Host((interface("lo", 1, "127.0.0.1"), NAT, LAN, interface("docker0", 4)), defaults=("enp0s3",))


def pick(
    *names: str,
    regexes: Sequence[str] = (),
    can_reach: str = "",
    public_ip: str = "",
    public_ip6: str = "",
    host: Host = HOST,
    families: str = "4",
) -> UnderlayChoice:
    asked = UnderlayOptions(
        names,
        regexes,
        ip_address(can_reach) if can_reach else None,
        IPv4Address(public_ip) if public_ip else None,
        IPv6Address(public_ip6) if public_ip6 else None,
    )
    return choose(host, asked, ipv4="4" in families, ipv6="6" in families)


def test_without_flags_the_default_route_decides() -> None:
    assert pick() == UnderlayChoice(NAT, IPv4Address("10.0.2.15"), IPv4Address("10.0.2.15"))


def test_the_links_broadcast_address_is_nobodys() -> None:
    wide = replace(LAN.addresses[0], broadcast=IPv4Address("192.168.56.255"))
    host = replace(HOST, interfaces=(NAT, replace(LAN, addresses=(wide,))))
    with pytest.raises(NoInterface, match=r"^--public-ip 192\.168\.56\.255 is the broadcast address of enp0s8; give"):
        pick("enp0s8", public_ip="192.168.56.255", host=host)
    assert pick("enp0s3", public_ip="192.168.56.255", host=host).public_ip == IPv4Address("192.168.56.255")


def test_by_name_by_address_and_the_first_that_fits() -> None:
    assert pick("enp0s8").address == IPv4Address("192.168.56.11")
    assert pick("192.168.56.12") == UnderlayChoice(LAN, IPv4Address("192.168.56.12"), IPv4Address("192.168.56.12"))
    assert pick("eth7", "docker0", "enp0s8", "enp0s3").interface is LAN


def test_regexes_come_after_names_and_look_at_addresses_first() -> None:
    assert pick(regexes=[r"^192\.168\.56\.12"]).address == IPv4Address("192.168.56.12")
    assert pick(regexes=["s8$"]).interface is LAN
    assert pick("enp0s3", regexes=["s8$"]).interface is NAT
    assert pick("eth7", regexes=["nothing", "s8$"]).interface is LAN


def test_can_reach_takes_interface_and_source_of_the_route() -> None:
    host = replace(HOST, reach=(3, IPv4Address("192.168.56.12")))
    assert pick(can_reach="192.168.56.1", host=host).address == IPv4Address("192.168.56.12")
    assert pick(can_reach="192.168.56.1", host=replace(HOST, reach=(3, None))).address == IPv4Address("192.168.56.11")


def test_a_public_address_of_ours_chooses_its_interface() -> None:
    assert pick(public_ip="192.168.56.12") == UnderlayChoice(
        LAN, IPv4Address("192.168.56.12"), IPv4Address("192.168.56.12")
    )


def test_a_public_address_behind_nat_is_advertised_only() -> None:
    """Flannel exits here: it looks the address up on the interfaces."""
    assert pick(public_ip="203.0.113.9") == UnderlayChoice(NAT, IPv4Address("10.0.2.15"), IPv4Address("203.0.113.9"))
    assert pick("enp0s8", public_ip="203.0.113.9").address == IPv4Address("192.168.56.11")


def test_the_better_address_of_an_interface() -> None:
    def addresses(*entries: InterfaceAddress) -> Host:
        return Host((replace(NAT, addresses=entries),), defaults=("enp0s3",))

    link_local = InterfaceAddress(IPv4Address("169.254.1.1"), scope=SCOPE_LINK)
    dynamic = InterfaceAddress(IPv4Address("10.0.0.1"), flags=0)
    permanent = InterfaceAddress(IPv4Address("10.0.0.2"))
    deprecated = InterfaceAddress(IPv4Address("10.0.0.3"), flags=0x80 | IFA_F_DEPRECATED)
    secondary = InterfaceAddress(IPv4Address("10.0.0.4"), flags=0x80 | IFA_F_SECONDARY)
    host = addresses(deprecated, link_local, dynamic, secondary, permanent)
    assert pick(host=host).address == permanent.address
    assert pick(host=addresses(deprecated, link_local, dynamic)).address == dynamic.address
    assert pick(host=addresses(deprecated, link_local)).address == link_local.address


def test_nothing_that_fits_is_an_error_that_shows_what_there_is() -> None:
    with pytest.raises(NoInterface, match=r"matches eth7, /xyz/; there are: lo \(127.0.0.1\), enp0s3 \(10.0.2.15\)"):
        pick("eth7", regexes=["xyz"])
    with pytest.raises(NoInterface, match="no default route"):
        pick(host=replace(HOST, defaults=()))
    with pytest.raises(NoInterface, match=r"route to 192\.0\.2\.1"):
        pick(can_reach="192.0.2.1")
    with pytest.raises(NoInterface, match="MTU of 0"):
        pick(host=Host((replace(NAT, mtu=0),), defaults=("enp0s3",)))


ONE, TWO = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:2::1")
BOTH = interface("eth0", 2, "192.0.2.1", "fe80::1", str(ONE))
FOUR = interface("eth1", 3, "198.51.100.1", "fe80::2")
SIX = interface("eth2", 4, "fe80::3", "2001:db8:2::2", str(TWO))
MIXED = Host((interface("lo", 1, "127.0.0.1", "::1"), BOTH, FOUR, SIX), defaults=("eth0",), defaults6=("eth2",))


def test_each_family_has_its_default_route_and_dual_stack_takes_ipv4s() -> None:
    assert pick(host=MIXED, families="4").interface is BOTH
    assert pick(host=MIXED, families="6").interface is SIX
    both = pick(host=MIXED, families="46")
    assert both == UnderlayChoice(BOTH, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"), ONE, ONE)


def test_an_interface_without_a_family_that_is_on_does_not_fit() -> None:
    assert pick("eth1", "eth0", host=MIXED, families="46").interface is BOTH
    assert pick("eth1", "eth2", host=MIXED, families="6").interface is SIX
    assert pick(regexes=["^eth"], host=MIXED, families="6").interface is BOTH
    with pytest.raises(NoInterface, match=r"no interface with an IPv4 and an IPv6 address matches eth1, eth2; there"):
        pick("eth1", "eth2", host=MIXED, families="46")
    with pytest.raises(NoInterface, match="no default route over an interface with an IPv6 address; give --iface"):
        pick(host=replace(MIXED, defaults6=("eth1",)), families="6")


def test_a_named_ipv6_address_is_taken_in_any_spelling() -> None:
    assert pick("2001:DB8:2:0::1", host=MIXED, families="6") == UnderlayChoice(SIX, None, None, TWO, TWO)
    assert pick(str(ONE), host=MIXED, families="46").address == IPv4Address("192.0.2.1")


def test_in_dual_stack_public_ipv6_names_the_address_beside_an_ipv4_one() -> None:
    """Flannel: `--iface` is the IPv4 address, `--public-ipv6` the IPv6 one of the same interface."""
    other = IPv6Address("2001:db8:1::2")
    host = replace(MIXED, interfaces=(interface("eth0", 2, "192.0.2.1", str(ONE), str(other)),))
    choice = pick("192.0.2.1", public_ip6=str(other), host=host, families="46")
    assert (choice.address6, choice.public_ip6) == (other, other)
    assert pick(public_ip="192.0.2.1", public_ip6=str(other), host=host, families="46").address6 == other


def test_a_public_ipv6_address_chooses_its_interface_or_is_advertised_only() -> None:
    assert pick(public_ip6="2001:db8:2::2", host=MIXED, families="6").address6 == IPv6Address("2001:db8:2::2")
    elsewhere = pick(public_ip6="2001:db8:9::9", host=MIXED, families="6")
    assert (elsewhere.address6, elsewhere.public_ip6) == (IPv6Address("2001:db8:2::2"), IPv6Address("2001:db8:9::9"))
    assert pick(public_ip6="2001:db8:2::2", host=MIXED, families="4") == pick(host=MIXED)


def test_a_regex_on_addresses_has_to_match_in_each_family() -> None:
    assert pick(regexes=["2001:db8:2::1$"], host=MIXED, families="6").address6 == TWO
    with pytest.raises(NoInterface):
        pick(regexes=["2001:db8:1::"], host=MIXED, families="46")
    assert pick(regexes=["2001:db8:1::|^192"], host=MIXED, families="46").address6 == ONE


def test_can_reach_gives_one_family_and_the_interface_the_other() -> None:
    host = replace(MIXED, reach=(2, ONE))
    assert pick(can_reach="2001:db8:1::9", host=host, families="46").address == IPv4Address("192.0.2.1")


def test_the_better_ipv6_address_of_an_interface() -> None:
    def best(*entries: InterfaceAddress) -> IPv6Address | None:
        return pick(host=Host((replace(SIX, addresses=entries),), (), defaults6=("eth2",)), families="6").address6

    temporary = InterfaceAddress(IPv6Address("2001:db8::1"), flags=IFA_F_SECONDARY)
    dynamic = InterfaceAddress(IPv6Address("2001:db8::2"), flags=0)
    permanent = InterfaceAddress(IPv6Address("2001:db8::3"))
    duplicate = InterfaceAddress(IPv6Address("2001:db8::4"), flags=IFA_F_DADFAILED | 0x80)
    assert best(temporary, dynamic, duplicate, permanent) == permanent.address
    assert best(duplicate, temporary, dynamic) == dynamic.address
    assert best(duplicate, temporary) == temporary.address
    with pytest.raises(NoInterface):
        best(duplicate, InterfaceAddress(IPv6Address("fe80::1"), scope=SCOPE_LINK))


def test_an_address_that_still_does_is_kept() -> None:
    """The kernel lists IPv6 addresses newest first: another one must not move the host."""
    kept = IPv4Address("192.168.56.12")
    assert choose(HOST, UnderlayOptions(("enp0s8",)), keep=[kept]).address == kept
    assert choose(HOST, UnderlayOptions(("192.168.56.11",)), keep=[kept]).address == IPv4Address("192.168.56.11")
    old = InterfaceAddress(kept, flags=IFA_F_DEPRECATED)
    lan = replace(LAN, addresses=(LAN.addresses[0], old))
    host = replace(HOST, interfaces=(lan,))
    assert choose(host, UnderlayOptions(("enp0s8",)), keep=[kept]).address == IPv4Address("192.168.56.11")


def test_an_address_that_is_looked_for_elsewhere_is_none_yet() -> None:
    tentative = InterfaceAddress(ONE, flags=IFA_F_TENTATIVE)
    host = replace(MIXED, interfaces=(replace(BOTH, addresses=(tentative,)),))
    with pytest.raises(NoInterface):
        choose(host, UnderlayOptions(), ipv4=False, ipv6=True)
    optimistic = replace(tentative, flags=IFA_F_TENTATIVE | IFA_F_OPTIMISTIC)
    host = Host((replace(BOTH, addresses=(optimistic,)),), defaults=("eth0",), defaults6=("eth0",))
    assert choose(host, UnderlayOptions(), ipv4=False, ipv6=True).address6 == ONE


def test_the_overlay_is_no_underlay() -> None:
    """An interface that is made anew comes after our device and the containers' bridge."""
    ours = [IPv4Network("10.42.7.0/24")]
    device = interface("flannel.1", 5, "10.42.7.0")
    bridge = interface("cni0", 6, "10.42.7.1")
    eth0 = interface("eth0", 9, "10.0.0.5")
    host = outside(Host((device, bridge, eth0), defaults=()), ours)
    assert choose(host, UnderlayOptions(regexes=[r"^10\."])).interface is eth0
    with pytest.raises(NoInterface):
        choose(outside(Host((device, bridge), defaults=()), ours), UnderlayOptions(regexes=[r"^10\."]))


TUN = Interface("tun0", 9, 1500, b"", (InterfaceAddress(ip_address("10.9.0.1")),), "tun")


def test_a_vpn_that_takes_the_default_route_is_no_underlay() -> None:
    host = Host((NAT, LAN, TUN), defaults=("tun0", "enp0s3"))
    assert pick(host=host).interface is NAT
    assert pick("tun0", host=host).interface is TUN, "but if it is named"
    with pytest.raises(NoInterface, match=r"no default route .* but that over tun0, a tunnel's, .*; give --iface"):
        pick(host=replace(host, defaults=("tun0",)))
    wireguard = replace(TUN, name="wg0", kind="wireguard")
    assert pick(host=Host((NAT, wireguard), defaults=("wg0", "enp0s3"))).interface is NAT
    six = replace(TUN, addresses=(InterfaceAddress(ONE),))
    assert pick(host=replace(MIXED, interfaces=(SIX, six), defaults6=("tun0", "eth2")), families="6").interface is SIX


def test_of_several_default_routes_the_best_over_an_interface_that_may_be_counts() -> None:
    """One over our own device, or the containers' bridge (dhcpcd makes such), hides that of the host no more."""
    device = interface("flannel.1", 5, "10.42.7.0")
    host = outside(Host((NAT, LAN, device), defaults=("flannel.1", "enp0s8", "enp0s3")), [IPv4Network("10.42.7.0/24")])
    assert pick(host=host).interface is LAN


def test_while_it_runs_it_stays_where_address_and_link_live() -> None:
    moved, kept = replace(HOST, defaults=("enp0s8",)), [IPv4Address("10.0.2.15")]
    assert choose(moved, UnderlayOptions(), keep=kept, stay=True).interface is NAT
    assert choose(moved, UnderlayOptions(), keep=kept).interface is LAN, "a start takes the default route's"
    assert choose(moved, UnderlayOptions(), keep=[IPv4Address("10.0.2.16")], stay=True).interface is LAN
    dead = replace(moved, interfaces=(replace(NAT, live=False), LAN))
    assert choose(dead, UnderlayOptions(), keep=kept, stay=True).interface is LAN
    assert (
        choose(replace(dead, defaults=("enp0s3",)), UnderlayOptions(), keep=kept, stay=True).interface.name == "enp0s3"
    )
    assert choose(moved, UnderlayOptions(("enp0s8",)), keep=kept, stay=True).interface is LAN, "as asked for"


def test_no_packet_leaves_by_lo() -> None:
    lo = replace(interface("lo", 1, "127.0.0.1", "203.0.113.1"), loopback=True)
    host = replace(HOST, interfaces=(lo, NAT))
    for asked in ("lo", "127.0.0.1", "203.0.113.1"):
        with pytest.raises(NoInterface, match="no packet leaves this host by lo: name the interface"):
            pick(asked, host=host)
    anycast = IPv4Address("203.0.113.1")
    assert pick(public_ip=str(anycast), host=host) == UnderlayChoice(NAT, IPv4Address("10.0.2.15"), anycast)


def test_the_address_of_the_network_is_nobodys() -> None:
    wide = replace(LAN.addresses[0], base=IPv4Address("192.168.56.0"))
    host = replace(HOST, interfaces=(NAT, replace(LAN, addresses=(wide,))))
    with pytest.raises(NoInterface, match=r"^--public-ip 192\.168\.56\.0 is the network's own address on enp0s8; give"):
        pick("enp0s8", public_ip="192.168.56.0", host=host)
    lowest = replace(wide, address=IPv4Address("192.168.56.0"))
    host = replace(HOST, interfaces=(NAT, replace(LAN, addresses=(lowest,))))
    assert pick("enp0s8", public_ip="192.168.56.0", host=host).address == lowest.address, "Linux 5.14 has such hosts"
