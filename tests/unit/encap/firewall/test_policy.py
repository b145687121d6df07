"""The rules as data, held against a list of packets: who is masqueraded, who is accepted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from flanneld_py.encap.firewall.policy import In, Match, NotIn, Policy, Rule, Verdict, rules

V4 = Policy(ip_network("10.42.0.0/16"), ip_network("10.42.5.0/24"), masquerade=True)
V6 = Policy(ip_network("fd42::/48"), ip_network("fd42:0:0:5::/64"), masquerade=True)
EXCLUDED = (ip_network("192.168.0.0/16"), ip_network("fd00:aa::/32"))


def fits(match: Match | None, address: IPv4Address | IPv6Address) -> bool:
    match match:
        case None:
            return True
        case In(network):
            return address in network
        case NotIn(network):
            return address not in network


def verdict(
    chain: tuple[Rule, ...],
    source: str,
    destination: str,
    *,
    marked: bool = False,
    came_by: str = "eth0",
    leaves_by: str = "",
    port: int = 0,
) -> Verdict | None:
    """Do what the packet filter does: the first rule that fits decides."""
    for rule in chain:
        if (rule.marked and not marked) or rule.came_by not in (None, came_by):
            continue
        if rule.leaves_by not in (None, leaves_by) or rule.port not in (None, port):
            continue
        if fits(rule.source, ip_address(source)) and fits(rule.destination, ip_address(destination)):
            return rule.verdict
    return None


@pytest.mark.parametrize(
    ("policy", "here", "there", "outside", "excluded", "multicast"),
    [
        (V4, "10.42.5.2", "10.42.9.2", "198.51.100.1", "192.168.7.7", "224.0.0.9"),
        (V6, "fd42:0:0:5::2", "fd42:0:0:9::2", "2001:db8::1", "fd00:aa::7", "ff02::9"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_who_is_masqueraded(policy: Policy, here: str, there: str, outside: str, excluded: str, multicast: str) -> None:
    chain = rules(replace(policy, excluded=EXCLUDED)).masquerade
    leave, masquerade = Verdict.RETURN, Verdict.MASQUERADE_RANDOM
    assert verdict(chain, here, there) == leave
    assert verdict(chain, there, here) == leave
    assert verdict(chain, here, here) == leave
    assert verdict(chain, outside, here) == leave, "our containers see who speaks to them"
    assert verdict(chain, here, outside) == masquerade
    assert verdict(chain, here, excluded) == leave
    assert verdict(chain, outside, there) == masquerade, "the answer has to come back through us"
    assert verdict(chain, here, multicast) is None
    assert verdict(chain, outside, outside) is None
    assert verdict(chain, here, outside, marked=True) == leave, "kube-proxy's own business"


@pytest.mark.parametrize(
    ("policy", "here", "there", "host", "other"),
    [
        (V4, "10.42.5.2", "10.42.9.2", "10.42.240.1", "10.42.240.2"),
        (V6, "fd42:0:0:5::2", "fd42:0:0:9::2", "fd42:0:0:f000::1", "fd42:0:0:f000::2"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_host_inside_network_keeps_its_own_packets_as_they_are(
    policy: Policy, here: str, there: str, host: str, other: str
) -> None:
    chain = rules(replace(policy, host=ip_address(host))).masquerade
    assert verdict(chain, host, other) == Verdict.RETURN, "the tunnel's own packets among them"
    assert verdict(chain, host, there) == Verdict.RETURN
    assert verdict(chain, here, other) == Verdict.RETURN
    assert verdict(chain, here, "192.0.2.9" if policy is V4 else "2001:db8::9") == Verdict.MASQUERADE_RANDOM
    beside = replace(policy, host=ip_address("192.0.2.1" if policy is V4 else "2001:db8::1"))
    assert rules(beside).masquerade == rules(policy).masquerade, "flannel's rules where it makes no difference"


@pytest.mark.parametrize(
    ("policy", "here", "peer", "ours", "other"),
    [
        (V4, "10.42.5.2", "10.42.240.1", "192.0.2.1", "192.0.2.2"),
        (V6, "fd42:0:0:5::2", "fd42:0:0:f000::1", "2001:db8::1", "2001:db8::2"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_no_container_speaks_to_the_tunnel_and_a_peer_inside_network_does(
    policy: Policy, here: str, peer: str, ours: str, other: str
) -> None:
    drop = Verdict.DROP
    chain = rules(replace(policy, port=8472, underlay="eth0", host=ip_address(ours))).tunnel
    assert verdict(chain, here, other, came_by="cni0", port=8472) == drop
    assert verdict(chain, here, ours, came_by="cni0", port=8472) == drop
    assert verdict(chain, here, other, came_by="cni0", port=53) is None
    assert verdict(chain, here, peer, came_by="cni0", port=8472) is None, "a tunnel between containers"
    assert verdict(chain, peer, ours, port=8472) != drop, "hosts may be partly inside Network"
    assert verdict(chain, peer, other, port=8472) == drop, "we would masquerade it: it would come from us"
    inside = rules(replace(policy, port=8472, underlay="eth0", host=ip_address(peer))).tunnel
    assert inside == rules(replace(policy, port=8472)).tunnel, "no rule more where none is needed"


def test_without_random_ports() -> None:
    chain = rules(replace(V4, random_fully=False)).masquerade
    assert verdict(chain, "10.42.5.2", "198.51.100.1") == Verdict.MASQUERADE


def test_who_is_accepted() -> None:
    chain = rules(V4).forward
    assert verdict(chain, "10.42.5.2", "198.51.100.1") == Verdict.ACCEPT
    assert verdict(chain, "198.51.100.1", "10.42.5.2") == Verdict.ACCEPT
    assert verdict(chain, "198.51.100.1", "198.51.100.2") is None


def test_what_is_switched_off_has_no_rules() -> None:
    assert rules(replace(V4, masquerade=False)).masquerade == ()
    off = rules(replace(V4, forward=False, device="flannel.1"))
    assert (off.forward, off.raw) == ((), ())


@pytest.mark.parametrize(
    ("policy", "here", "there", "peer", "stranger", "excluded"),
    [
        (V4, "10.42.5.2", "10.42.9.2", "192.0.2.7", "192.0.2.8", "192.168.7.7"),
        (V6, "fd42:0:0:5::2", "fd42:0:0:9::2", "2001:db8::7", "2001:db8::8", "fd00:aa::7"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_what_the_overlay_brings_is_let_through_before_anybody_drops_it(
    policy: Policy, here: str, there: str, peer: str, stranger: str, excluded: str
) -> None:
    accept = Verdict.ACCEPT
    chain = rules(replace(policy, device="flannel.1", excluded=EXCLUDED)).raw
    assert verdict(chain, there, here, came_by="flannel.1") == accept
    assert verdict(chain, stranger, here, came_by="flannel.1") == accept, "a machine beside another host"
    assert verdict(chain, there, there, came_by="flannel.1") is None, "not to a container of ours"
    assert verdict(chain, there, here) is None, "without a tunnel nobody of the overlay comes that way"
    assert verdict(chain, excluded, here) == accept, "the answer to a container that it saw as itself"
    chain = rules(replace(policy, underlay="eth0", direct=frozenset((ip_address(peer),)))).raw
    assert verdict(chain, there, here) == accept
    assert verdict(chain, peer, here) == accept
    assert verdict(chain, stranger, here) is None
    assert verdict(chain, there, here, came_by="eth1") is None
    assert verdict(chain, peer, there) == Verdict.RETURN, "not held against every host"
    assert rules(replace(policy, underlay="eth0")).raw == (), "nobody comes that way"


def test_a_host_that_forwards_for_its_own_containers_only() -> None:
    here, there, stranger, peer = "10.42.5.2", "10.42.9.2", "192.0.2.8", "192.0.2.7"
    accept, drop = Verdict.ACCEPT, Verdict.DROP
    own = replace(V4, device="flannel.1", underlay="eth0", own_only=True, excluded=EXCLUDED)
    chain = rules(own).forward
    assert verdict(chain, here, there, came_by="docker0", leaves_by="flannel.1") == accept
    assert verdict(chain, there, here, came_by="flannel.1", leaves_by="docker0") == accept
    assert verdict(chain, stranger, there, leaves_by="flannel.1") == drop
    assert verdict(chain, here, there, leaves_by="flannel.1") == drop, "forged"
    assert verdict(chain, stranger, here, leaves_by="docker0") is None, "the engine's to decide"
    assert verdict(chain, "10.77.0.2", there, came_by="br-own", leaves_by="flannel.1") is None, "another bridge's"
    chain = rules(replace(own, direct=frozenset((ip_address(peer),)))).forward
    assert verdict(chain, here, there, came_by="docker0", leaves_by="eth0") == accept
    assert verdict(chain, there, here, leaves_by="docker0") == accept
    assert verdict(chain, peer, here, leaves_by="docker0") == accept
    assert verdict(chain, stranger, here, leaves_by="docker0") is None
    assert verdict(chain, stranger, there, leaves_by="eth0") == drop
    assert verdict(chain, here, stranger, came_by="docker0", leaves_by="eth0") != drop
    off = rules(replace(own, forward=False))
    assert (off.forward, off.closed) == ((), ())
