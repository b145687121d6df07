"""Real LXC on two hosts: containers on lxc-net's bridge over the overlay, and LXC's other network types beside it.

h1 ── lxcbr0 .1 ── flannel.1 ─ ─ ─ ─ flannel.1 ── lxcbr0 .1 ── h2
│      └ h1c1 (DHCP)        (VXLAN over eth0)        └ h2c1 (DHCP)
├ h1host   shares h1's network
├ h1empty  has none
└ h1mac    172.30.0.101 on macvlan over eth0         ...and h2mac on h2
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from tests.lab.engine import fetch, measure, ready_hosts
from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.lxc import EMPTY, HOST, LXC_NET, Lxc
from tests.lab.measure import ping
from tests.lab.namespace import LabError
from tests.lab.processes import start_time
from tests.netns.conftest import LEASED
from tests.netns.ipv6 import Container6, underlay6
from tests.patience import patient, within

pytestmark = pytest.mark.root

DUAL = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
MACVLAN = (
    "lxc.net.0.type = macvlan",
    "lxc.net.0.macvlan.mode = bridge",
    "lxc.net.0.link = eth0",
    "lxc.net.0.flags = up",
)
"""Settings of a container's interface; its address comes after them."""
WHO = "#!/bin/sh\necho\necho $REMOTE_ADDR\n"


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts with LXC, and a container on the bridge of each; the second tells who asks it. Both families.

    The first host had a bridge with another address before.
    """

    lab: Lab
    engines: tuple[Lxc, Lxc]
    containers: tuple[Container, Container]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ready_hosts(2, DUAL, underlay6) as lab, ExitStack() as running:
        lab.hosts[0].namespace.ip("link add lxcbr0 type bridge", "addr add 10.0.3.1/24 dev lxcbr0")
        one, other = (Lxc(host, lab.run.name) for host in lab.hosts)
        for engine in (one, other):
            running.callback(engine.close)
            engine.start()
        containers = one.run("h1c1"), other.run("h2c1")
        script = lab.hosts[1].directory / "lxc/h2c1/rootfs/www/cgi-bin/who"
        script.parent.mkdir(parents=True)
        script.write_text(WHO)
        script.chmod(0o755)
        other.execute("h2c1", "httpd", "-p", "80", "-h", "/www")
        yield Site(lab, (one, other), containers)


@pytest.fixture(scope="module")
def alone() -> Iterator[Lxc]:
    """LXC's tools on a host whose agent is ready, with no bridge yet."""
    with ready_hosts(1, LEASED) as lab, ExitStack() as running:
        engine = Lxc(lab.hosts[0], lab.run.name)
        running.callback(engine.close)
        engine.prepare()
        yield engine


def addresses(station: Host | Container, device: str, family: int = 4) -> list[str]:
    """A device's addresses with their lengths, apart from link-local ones and those that are still looked for twice."""
    shown = station.namespace.run(["ip", "-j", f"-{family}", "addr", "show", "dev", device], check=False).stdout
    found = [address for link in json.loads(shown or "[]") for address in link.get("addr_info", [])]
    return [f"{a['local']}/{a['prefixlen']}" for a in found if a["scope"] == "global" and not a.get("tentative")]


def address6(container: Container, timeout: float = 20) -> Container6:
    """A container by the IPv6 address that it gives itself out of what the host announces."""
    deadline = within(timeout)
    while not (found := addresses(container, "eth0", 6)):
        assert time.monotonic() < deadline, f"{container.name} has no IPv6 address within {patient(timeout):g} s"
        time.sleep(0.05)
    return Container6(container.name, container.namespace, IPv6Address(found[0].partition("/")[0]))


def test_containers_reach_each_other_both_ways_at_the_overlays_mtu(site: Site) -> None:
    for host, container in zip(site.lab.hosts, site.containers, strict=True):
        assert container.address in IPv4Network(host.agent.subnet_env()["FLANNEL_SUBNET"], strict=False)
    pairs = measure(site.containers)
    assert [(pair.source, pair.target, pair.loss) for pair in pairs] == [("h1c1", "h2c1", 0), ("h2c1", "h1c1", 0)]
    mtu = int(site.lab.hosts[0].agent.subnet_env()["FLANNEL_MTU"])
    assert ping(*site.containers, payload=mtu - 28).loss == 0
    assert ping(*site.containers, payload=mtu + 1 - 28).received == 0


def test_ipv6_both_ways(site: Site) -> None:
    # Without a DHCP client: busybox's script flushes IPv6 addresses as well.
    containers = [engine.run(f"{engine.host.name}six", dhcp=False) for engine in site.engines]
    one, other = map(address6, containers)
    assert ping(one, other, count=1, patience=3).received == 1
    assert ping(other, one).loss == 0


def test_a_container_is_seen_by_its_own_address(site: Site) -> None:
    one, other = site.containers
    got = site.engines[0].execute("h1c1", "wget", "-q", "-O", "-", f"http://{other.address}/cgi-bin/who")
    assert got.stdout.strip() == f"[::ffff:{one.address}]"


def test_a_forwarded_port_is_reached_from_the_other_host(site: Site) -> None:
    near, host = site.lab.hosts
    rule = f"-p tcp --dport 8080 -j DNAT --to-destination {site.containers[1].address}:80"
    host.namespace.run(["iptables", "-t", "nat", "-A", "PREROUTING", *rule.split()])
    assert fetch(near, f"http://{host.address}:8080/cgi-bin/who").strip() == f"[::ffff:{near.address}]"


def test_hosts_and_containers_of_the_other_host_reach_each_other(site: Site) -> None:
    for host, container in zip(site.lab.hosts, reversed(site.containers), strict=True):
        assert ping(host, container).loss == 0
        assert ping(container, host).loss == 0


def test_type_none_is_the_hosts_own_network(site: Site) -> None:
    shared = site.engines[0].run("h1host", HOST, dhcp=False)
    assert shared.namespace.path.stat().st_ino == site.lab.hosts[0].namespace.path.stat().st_ino
    assert ping(shared, site.containers[1]).loss == 0


def test_type_empty_reaches_nobody(site: Site) -> None:
    empty = site.engines[0].run("h1empty", EMPTY, dhcp=False)
    assert empty.namespace.run(["ip", "-o", "link"]).stdout.count("\n") == 1
    answer = site.engines[0].execute("h1empty", "ping", "-c", "1", "-w", "1", str(site.containers[1].address))
    assert answer.returncode != 0


def test_a_shared_network_is_the_others(site: Site) -> None:
    shared = site.engines[0].run("h1shared", "lxc.namespace.share.net = h1c1", dhcp=False)
    assert shared.namespace.path.stat().st_ino == site.containers[0].namespace.path.stat().st_ino
    assert ping(shared, site.containers[1]).loss == 0


def test_macvlan_beside_the_overlay(site: Site) -> None:
    plan, stations = site.lab.plan, []
    for number, engine in enumerate(site.engines, 1):
        address = plan.underlay[100 + number]
        lines = [*MACVLAN, f"lxc.net.0.ipv4.address = {address}/{plan.underlay.prefixlen}"]
        stations.append(replace(engine.run(f"h{number}mac", *lines, dhcp=False), address=address))
    one, other = stations
    assert [pair.loss for pair in measure(stations)] == [0, 0]
    assert ping(one, site.lab.hosts[1]).loss == 0
    assert ping(other, site.lab.hosts[0]).loss == 0
    # The kernel lets no macvlan device and its parent speak with each other.
    assert ping(one, site.lab.hosts[0], count=1, patience=0.3).received == 0
    assert ping(*site.containers).loss == 0


def test_an_address_outside_the_subnet_is_reached_by_its_host_alone(site: Site) -> None:
    lines = ["lxc.net.0.ipv4.address = 10.99.0.5/32", "lxc.net.0.ipv4.gateway = dev"]
    stray = replace(site.engines[0].run("h1stray", *lines, dhcp=False), address=IPv4Address("10.99.0.5"))
    site.lab.hosts[0].namespace.ip("route add 10.99.0.5 dev lxcbr0")
    assert ping(site.lab.hosts[0], stray).loss == 0
    assert ping(site.containers[1], stray, count=1, patience=0.3).received == 0
    assert ping(stray, site.containers[1], count=1, patience=0.3).received == 0
    assert ping(*site.containers).loss == 0


def test_a_bridge_with_another_address_has_that_of_the_subnet(site: Site) -> None:
    [host, _] = site.lab.hosts
    assert addresses(host, "lxcbr0") == [host.agent.subnet_env()["FLANNEL_SUBNET"]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no /run/flannel/subnet.env: this host has no subnet yet"),
        ("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\n", "not inside FLANNEL_NETWORK 10.42.0.0/16"),
        ("FLANNEL_IPV6_NETWORK=fd42::/48\nFLANNEL_IPV6_SUBNET=fd42::1/64\n", "the bridge needs an IPv4 subnet"),
    ],
    ids=["none yet", "of another network", "without IPv4"],
)
def test_without_a_subnet_there_is_no_bridge_until_there_is_one(alone: Lxc, text: str | None, why: str) -> None:
    host, subnet_file = alone.host, alone.host.agent.subnet_file
    right = subnet_file.read_text()
    subnet_file.unlink()
    if text:
        subnet_file.write_text(text)
    try:
        with pytest.raises(LabError, match=why):
            alone.tool(LXC_NET, "start")
        assert "lxcbr0" not in host.namespace.run(["ip", "-o", "link"]).stdout
    finally:
        subnet_file.write_text(right)
    alone.tool(LXC_NET, "start")
    assert addresses(host, "lxcbr0") == [host.agent.subnet_env()["FLANNEL_SUBNET"]]
    alone.tool(LXC_NET, "stop")


def test_a_restart_of_the_bridge_takes_another_subnet_although_containers_are_on_it(alone: Lxc) -> None:
    host, subnet_file = alone.host, alone.host.agent.subnet_file
    right = subnet_file.read_text()
    alone.tool(LXC_NET, "start")
    host.namespace.ip("link add c1 type veth peer name there", "link set c1 master lxcbr0 up")
    subnet_file.write_text("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n")
    try:
        alone.tool(LXC_NET, "restart")
        assert addresses(host, "lxcbr0") == ["10.42.7.1/24"]
    finally:
        subnet_file.write_text(right)
        host.namespace.ip("link del c1")
    alone.tool(LXC_NET, "stop")


def test_what_is_left_of_an_engine_that_nobody_closed_goes_with_the_lab() -> None:
    with ready_hosts(1, LEASED) as lab:
        engine = Lxc(lab.hosts[0], lab.run.name)
        engine.start()
        pid = int(engine.run("h1c1").namespace.path.parts[2])
        dnsmasq = int(engine.tool("cat", "/run/lxc/dnsmasq.pid").stdout)
        engine.kill()
        assert None not in (start_time(pid), start_time(dnsmasq))
        directory = lab.run.directory
    assert (start_time(pid), start_time(dnsmasq)) == (None, None)
    assert not directory.exists()
    assert f"{directory}/" not in Path("/proc/self/mountinfo").read_text()
