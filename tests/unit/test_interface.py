from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from flanneld_py.agent.interface import (
    IFA_F_DEPRECATED,
    IFA_F_SECONDARY,
    SCOPE_LINK,
    Choice,
    Host,
    Interface,
    InterfaceAddress,
    NoInterface,
    choose,
    default_interface,
)


def interface(name: str, index: int, *addresses: str) -> Interface:
    return Interface(name, index, 1500, bytes(6), tuple(InterfaceAddress(IPv4Address(a)) for a in addresses))


NAT = interface("enp0s3", 2, "10.0.2.15")
LAN = interface("enp0s8", 3, "192.168.56.11", "192.168.56.12")
HOST = Host((interface("lo", 1, "127.0.0.1"), NAT, LAN, interface("docker0", 4)), default="enp0s3")


def pick(
    *names: str,
    regexes: Sequence[str] = (),
    can_reach: str = "",
    public_ip: str = "",
    host: Host = HOST,
) -> Choice:
    return choose(
        host,
        names,
        regexes,
        IPv4Address(can_reach) if can_reach else None,
        IPv4Address(public_ip) if public_ip else None,
    )


def test_without_flags_the_default_route_decides() -> None:
    assert pick() == Choice(NAT, IPv4Address("10.0.2.15"), IPv4Address("10.0.2.15"))


def test_by_name_by_address_and_the_first_that_fits() -> None:
    assert pick("enp0s8").address == IPv4Address("192.168.56.11")
    assert pick("192.168.56.12") == Choice(LAN, IPv4Address("192.168.56.12"), IPv4Address("192.168.56.12"))
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
    assert pick(public_ip="192.168.56.12") == Choice(LAN, IPv4Address("192.168.56.12"), IPv4Address("192.168.56.12"))


def test_a_public_address_behind_nat_is_advertised_only() -> None:
    """Flannel exits here: it looks the address up on the interfaces."""
    assert pick(public_ip="203.0.113.9") == Choice(NAT, IPv4Address("10.0.2.15"), IPv4Address("203.0.113.9"))
    assert pick("enp0s8", public_ip="203.0.113.9").address == IPv4Address("192.168.56.11")


def test_the_better_address_of_an_interface() -> None:
    def addresses(*entries: InterfaceAddress) -> Host:
        return Host((replace(NAT, addresses=entries),), default="enp0s3")

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
        pick(host=replace(HOST, default=None))
    with pytest.raises(NoInterface, match=r"route to 192\.0\.2\.1"):
        pick(can_reach="192.0.2.1")
    with pytest.raises(NoInterface, match="MTU of 0"):
        pick(host=Host((replace(NAT, mtu=0),), default="enp0s3"))


def test_the_default_route_in_the_kernels_table() -> None:
    table = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0
flannel.1\t0002050A\t0002050A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""
    assert default_interface(table) == "eth0"
    assert default_interface(table.splitlines()[0]) is None
