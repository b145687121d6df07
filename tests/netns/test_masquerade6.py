"""Masquerade over IPv6 on real hosts, beside IPv4 and alone: whose address and port arrive where.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┴── core fd00:30::1: outside of the overlay; routes to containers through h1      (IPv6: ipv6.py)
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.netns.capture import captured
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import Container6, attach6, underlay6
from tests.netns.test_agent import until
from tests.netns.test_firewall import (
    DAMAGE,
    KINDS,
    OWN_PORTS,
    PORT,
    rewritten_only_to_the_outside,
    seen_from,
    sh,
    sources,
)
from tests.netns.userspace import UNDERLAY6, ends6

pytestmark = pytest.mark.root

IPV6 = {"EnableIPv6": True, "IPv6Network": "fd42::/48"}
DUAL, ALONE = {**LEASED, **IPV6}, {"EnableIPv4": False, **IPV6}
CONFIGS = pytest.mark.parametrize("config", [DUAL, ALONE], ids=["dual stack", "alone"])
OUTSIDE, EXCLUDED = UNDERLAY6[1], IPv6Address("2001:db8:7::1")

Start = Callable[..., tuple[Lab, list[Container6]]]


@pytest.fixture
def start(make_lab: MakeLab) -> Start:
    """Make a lab with its agents, containers with IPv6 addresses, and an outside; all reach each other."""

    def make(config: object, *arguments: str) -> tuple[Lab, list[Container6]]:
        lab = make_lab(hosts=2, overlay="none", config=config, agent_args=arguments)
        underlay6(lab)
        lab.core.ip(f"addr add {OUTSIDE}/{UNDERLAY6.prefixlen} dev br0 nodad")
        for host in lab.hosts:
            host.agent.start()
        for host in lab.hosts:
            host.agent.wait_ready()
        containers = attach6(lab)
        for pair in (containers, containers[::-1]):
            until(lambda pair=pair: ping(*pair, count=1, patience=0.3).received, "they reach each other", 20)  # type: ignore[misc]
        return lab, containers

    return make


@CONFIGS
@KINDS
def test_who_sees_whose_address(start: Start, kind: str, config: object) -> None:
    lab, (here, there) = start(config, "--ip-masq", "--firewall", kind)
    host = ends6(lab)[0].underlay
    outside = seen_from(here.namespace, lab.core, OUTSIDE)
    assert sources(outside) == {host}
    assert [port for _, port in outside] != list(OWN_PORTS), "ports at random"

    assert seen_from(here.namespace, there.namespace, there.address) == [(here.address, port) for port in OWN_PORTS]
    lab.core.ip(f"route add fd42::/48 via {host}")
    assert sources(seen_from(lab.core, here.namespace, here.address)) == {OUTSIDE}
    vtep = IPv6Interface(lab.hosts[0].agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).network.network_address
    assert sources(seen_from(lab.core, there.namespace, there.address)) == {vtep}, "the answer comes back through us"


@KINDS
def test_what_a_capture_on_the_underlay_shows(start: Start, kind: str, tmp_path: Path) -> None:
    lab, (here, there) = start(DUAL, "--ip-masq", "--firewall", kind)
    with captured(lab.hosts[0].namespace, "eth0", PORT, tmp_path / "underlay.pcap") as letters:
        seen_from(here.namespace, lab.core, OUTSIDE)
        seen_from(here.namespace, there.namespace, there.address)
        until(lambda: len(letters()) == 2 * len(OWN_PORTS), "all letters are in the capture")
        rewritten_only_to_the_outside(letters(), here.address, there.address, ends6(lab)[0].underlay, OUTSIDE)


@KINDS
def test_ports_stay_and_networks_are_excluded_if_asked(start: Start, kind: str) -> None:
    lab, (here, _) = start(
        DUAL, "--ip-masq", "--ip-masq-fully-random-disable", "--firewall", kind, "--snat-exclude", "2001:db8:7::/64"
    )
    host = ends6(lab)[0].underlay
    lab.core.ip(f"addr add {EXCLUDED}/128 dev br0 nodad")
    lab.hosts[0].namespace.ip(f"route add {EXCLUDED} via {OUTSIDE}")
    assert seen_from(here.namespace, lab.core, OUTSIDE) == [(host, port) for port in OWN_PORTS]
    assert sources(seen_from(here.namespace, lab.core, EXCLUDED)) == {here.address}


def in_ipv6(command: str) -> str:
    return (
        command.replace(" ip flanneld-py", " ip6 flanneld-py").replace("iptables", "ip6tables").replace("224", "ff00")
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_others_take_away_comes_back(start: Start, kind: str) -> None:
    lab, (here, _) = start(DUAL, "--ip-masq", "--firewall", kind)
    host = lab.hosts[0]
    show = "nft -s list table ip6 flanneld-py" if kind == "nftables" else "ip6tables -t nat -S FLANNEL-POSTRTG"
    before = sh(host, show)
    for damage in map(in_ipv6, DAMAGE[kind]):
        sh(host, damage)
        until(lambda: host.namespace.run(["sh", "-c", show], check=False).stdout == before, damage)
        assert here.address not in sources(seen_from(here.namespace, lab.core, OUTSIDE)), damage
