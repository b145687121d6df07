from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.firewall.conntrack import Flow, ends, lacks_masquerade, read_flow
from flanneld_py.encap.firewall.policy import Policy, rules
from flanneld_py.encap.netlink import rtnetlink as rt

POLICY = Policy(
    ip_network("10.42.0.0/16"),
    ip_network("10.42.5.0/24"),
    masquerade=True,
    excluded=(ip_network("198.51.100.0/24"),),
    host=ip_address("192.0.2.1"),
)
TCP, UDP = 6, 17


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def way(source: str, destination: str, protocol: int = UDP, nested: int = 0x8000) -> bytes:
    first = 1 if ":" not in source else 3
    ip = attribute(first, ip_address(source).packed) + attribute(first + 1, ip_address(destination).packed)
    proto = attribute(1, bytes([protocol])) + attribute(2, b"\x9c\x40") + attribute(3, b"\0\x35")
    return attribute(nested | 1, ip) + attribute(nested | 2, proto)


def message(source: str, destination: str, answers_to: str = "", protocol: int = UDP, status: int = 0x8) -> bytes:
    family = rt.AF_INET6 if ":" in source else rt.AF_INET
    original = attribute(0x8001, way(source, destination, protocol))
    reply = attribute(0x8002, way(destination, answers_to or source, protocol))
    return pack("=BBH", family, 0, 0) + original + reply + attribute(3, pack("!I", status)) + attribute(12, b"abcd")


def flow(source: str, destination: str, answers_to: str = "", protocol: int = UDP, status: int = 0x8) -> Flow:
    told = message(source, destination, answers_to, protocol, status)
    found = read_flow(told, 0, len(told))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("source", "destination", "answers_to", "lacks"),
    [
        ("10.42.5.2", "203.0.113.5", "", True),
        ("10.42.5.2", "203.0.113.5", "192.0.2.1", False),  # Masqueraded.
        ("10.42.5.2", "10.42.9.2", "", False),
        ("10.42.9.2", "10.42.5.2", "", False),
        ("10.42.5.2", "198.51.100.7", "", False),
        ("10.42.5.2", "224.0.0.251", "", False),
        ("203.0.113.5", "10.42.5.2", "", False),
        ("203.0.113.5", "10.42.9.2", "", True),  # By way of this host to another host's container.
        ("203.0.113.5", "203.0.113.6", "", False),
    ],
)
def test_flows_without_the_masquerade_that_they_should_have(
    source: str, destination: str, answers_to: str, lacks: bool
) -> None:
    found = flow(source, destination, answers_to)
    assert lacks_masquerade(found, rules(POLICY).masquerade) == lacks
    assert not lacks_masquerade(found, ())


def test_a_connection_that_works_as_it_is_stays() -> None:
    begun, answered = 0x8, 0xA
    masquerade = rules(POLICY).masquerade
    assert lacks_masquerade(flow("10.42.5.2", "203.0.113.5", protocol=TCP, status=begun), masquerade)
    assert not lacks_masquerade(flow("10.42.5.2", "203.0.113.5", protocol=TCP, status=answered), masquerade)
    assert lacks_masquerade(flow("10.42.5.2", "203.0.113.5", protocol=UDP, status=answered), masquerade)


def test_without_a_tunnel_it_is_the_same() -> None:
    """host-gw and DirectRouting."""
    direct = rules(replace(POLICY, underlay="eth0", direct=frozenset((ip_address("192.0.2.7"),)))).masquerade
    assert lacks_masquerade(flow("10.42.5.2", "192.0.2.7"), direct)
    assert not lacks_masquerade(flow("10.42.5.2", "10.42.9.2"), direct)


def test_ipv6() -> None:
    policy = Policy(ip_network("fd42::/48"), ip_network("fd42:0:0:5::/64"), masquerade=True)
    assert lacks_masquerade(flow("fd42:0:0:5::2", "2001:db8::5"), rules(policy).masquerade)
    assert not lacks_masquerade(flow("fd42:0:0:5::2", "fd42:0:0:6::2"), rules(policy).masquerade)
    told = message("fd42:0:0:5::2", "2001:db8::5")
    assert ends(told, 0) == (ip_address("fd42:0:0:5::2").packed, ip_address("2001:db8::5").packed)


def test_the_ends_at_a_glance_are_those_of_the_whole_reading() -> None:
    told = message("10.42.5.2", "203.0.113.5")
    assert ends(told, 0) == (ip_address("10.42.5.2").packed, ip_address("203.0.113.5").packed)
    assert ends(told[:4] + told[52:], 0) is None, "laid out in another way"


@given(st.binary(max_size=120))
def test_nothing_that_comes_is_too_odd(told: bytes) -> None:
    for family in (rt.AF_INET, rt.AF_INET6):
        buffer = bytes([family]) + bytes(3) + told
        ends(buffer, 0)
        with suppress(rt.Malformed):
            read_flow(buffer, 0, len(buffer))
