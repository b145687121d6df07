"""Masquerade and forward rules on real hosts: what packets look like where they arrive, and what the rules survive.

    h1c1 ── h1 ──┐
    h2c1 ── h2 ──┴── core 172.30.0.1: outside of the overlay's Network; routes to containers through h1

A `Mailbox` is a UDP socket that writes down who sent to it: source addresses and ports as they were on the wire.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.lab.namespace import Namespace
from tests.netns.capture import Letter, captured
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import nothing_lost, subnet, until
from tests.netns.test_userspace import shown

pytestmark = pytest.mark.root

PORT = 9999
RECEIVE = """
import socket
box = socket.socket(socket.AF_INET%s, socket.SOCK_DGRAM)
box.bind(("", %d))
print("open", flush=True)
while True:
    print(*box.recvfrom(100)[1][:2], flush=True)
"""
SEND = """
import socket, sys
for port in range(int(sys.argv[2]), int(sys.argv[3])):
    letter = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
    letter.bind(("", port))
    letter.sendto(b"x", (sys.argv[1], %d))
"""
OWN_PORTS = range(40000, 40020)

IPAddress = IPv4Address | IPv6Address
KINDS = pytest.mark.parametrize("kind", ["nftables", "iptables"])


class Mailbox:
    """Who sent to a UDP port, in order of arrival."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def senders(self, count: int) -> list[tuple[IPAddress, int]]:
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline().decode().split() for _ in range(count)]
        return [(ip_address(address), int(port)) for address, port in lines]


@contextmanager
def mailbox(place: Namespace, address: IPAddress) -> Iterator[Mailbox]:
    family = "6" if address.version == 6 else ""
    process = place.popen([sys.executable, "-c", RECEIVE % (family, PORT)], stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield Mailbox(process)
        finally:
            process.kill()


def seen_from(source: Namespace, place: Namespace, address: IPAddress) -> list[tuple[IPAddress, int]]:
    """Send from OWN_PORTS and tell who the other end saw."""
    with mailbox(place, address) as box:
        ports = [str(OWN_PORTS.start), str(OWN_PORTS.stop)]
        source.run([sys.executable, "-c", SEND % PORT, str(address), *ports])
        return box.senders(len(OWN_PORTS))


def sources(seen: list[tuple[IPAddress, int]]) -> set[IPAddress]:
    return {address for address, _ in seen}


def rewritten_only_to_the_outside(
    letters: list[Letter], here: IPAddress, there: IPAddress, host: IPAddress, outside: IPAddress
) -> None:
    """Check what passed the underlay: plain packets have the host's address, those in the tunnel the container's."""
    assert {(each.tunnelled, each.source, each.destination) for each in letters} == {
        (False, host, outside),
        (True, here, there),
    }
    assert [each.port for each in letters if each.tunnelled] == list(OWN_PORTS)
    ports = [each.port for each in letters if not each.tunnelled]
    assert sorted(ports) != list(OWN_PORTS)
    assert ports != sorted(ports), "at random"


def sh(host: Host, command: str) -> str:
    return host.namespace.run(["sh", "-ec", command]).stdout


def masqueraded(lab: Lab, container: Container) -> bool:
    """Whether the outside sees the host instead of the container."""
    return container.address not in sources(seen_from(container.namespace, lab.core, lab.plan.gateway))


def connected(make_lab: MakeLab, *arguments: str) -> Lab:
    lab = make_lab(hosts=2, agent_args=arguments)
    assert lab.wait_connected() == []
    return lab


@KINDS
def test_who_sees_whose_address(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)
    (here, there), (h1, _) = lab.containers, lab.hosts
    assert h1.agent.subnet_env()["FLANNEL_IPMASQ"] == "true"

    outside = seen_from(here.namespace, lab.core, lab.plan.gateway)
    assert sources(outside) == {h1.address}
    assert [port for _, port in outside] != list(OWN_PORTS), "ports at random"

    assert seen_from(here.namespace, there.namespace, there.address) == [(here.address, port) for port in OWN_PORTS]
    lab.core.ip(f"route add {lab.plan.network} via {h1.address}")
    assert sources(seen_from(lab.core, here.namespace, here.address)) == {lab.plan.gateway}
    vtep = ip_network(subnet(h1)).network_address
    assert sources(seen_from(lab.core, there.namespace, there.address)) == {vtep}, "the answer comes back through us"


@KINDS
def test_what_a_capture_on_the_underlay_shows(make_lab: MakeLab, kind: str, tmp_path: Path) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)
    (here, there), (h1, _) = lab.containers, lab.hosts
    with captured(h1.namespace, "eth0", PORT, tmp_path / "underlay.pcap") as letters:
        seen_from(here.namespace, lab.core, lab.plan.gateway)
        seen_from(here.namespace, there.namespace, there.address)
        until(lambda: len(letters()) == 2 * len(OWN_PORTS), "all letters are in the capture")
        rewritten_only_to_the_outside(letters(), here.address, there.address, h1.address, lab.plan.gateway)


@KINDS
def test_ports_stay_if_asked(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--ip-masq-fully-random-disable", "--firewall", kind)
    seen = seen_from(lab.containers[0].namespace, lab.core, lab.plan.gateway)
    assert seen == [(lab.hosts[0].address, port) for port in OWN_PORTS]


@KINDS
def test_excluded_networks_see_containers(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind, "--snat-exclude", "198.51.100.0/24,203.0.113.0/24")
    here = lab.containers[0].namespace
    lab.core.ip("addr add 203.0.113.1/32 dev br0")
    assert sources(seen_from(here, lab.core, IPv4Address("203.0.113.1"))) == {lab.containers[0].address}
    assert sources(seen_from(here, lab.core, lab.plan.gateway)) == {lab.hosts[0].address}


DAMAGE = {
    "nftables": [
        "nft flush ruleset",
        "nft delete table ip flanneld-py",
        "nft flush chain ip flanneld-py postrouting",
        "nft delete chain ip flanneld-py postrouting",
        "nft delete rule ip flanneld-py postrouting handle"
        " $(nft -a list chain ip flanneld-py postrouting | sed -n 's/.*daddr != 224.* handle //p')",
        "nft insert rule ip flanneld-py postrouting accept",
    ],
    "iptables": [
        "nft flush ruleset",
        "iptables -t nat -F",
        "iptables -t nat -F FLANNEL-POSTRTG",
        "iptables -t nat -F POSTROUTING",
        "printf '*nat\\n-F POSTROUTING\\n-F FLANNEL-POSTRTG\\n-X FLANNEL-POSTRTG\\nCOMMIT\\n'"
        " | iptables-restore --noflush",
        "printf '*nat\\nCOMMIT\\n' | iptables-restore",
        "iptables -t nat -I FLANNEL-POSTRTG -j RETURN",
        "iptables -t nat -I POSTROUTING -j ACCEPT",
    ],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_others_take_away_comes_back(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)
    host = lab.hosts[0]
    show = "nft -s list table ip flanneld-py" if kind == "nftables" else "iptables -t nat -S FLANNEL-POSTRTG"
    before = sh(host, show)
    for damage in DAMAGE[kind]:
        sh(host, damage)
        began = time.monotonic()
        until(lambda: host.namespace.run(["sh", "-c", show], check=False).stdout == before, damage)
        print(f"\n{time.monotonic() - began:.3f} s after: {damage}")  # pytest -s; not judged
        until(lambda: masqueraded(lab, lab.containers[0]), damage)


@pytest.mark.parametrize("iptables", ["iptables-nft", "iptables-legacy"])
@KINDS
def test_forwarding_goes_on_when_docker_drops_by_policy(make_lab: MakeLab, kind: str, iptables: str) -> None:
    """Docker comes later, makes its chains, and sets FORWARD's policy; it comes again after a flush."""
    lab = connected(make_lab, "--firewall", kind, "--iptables-resync", "1")
    docker = (
        f"{iptables} -N DOCKER; {iptables} -A DOCKER ! -i docker0 -o cni0 -j DROP;"
        f"{iptables} -N DOCKER-USER; {iptables} -A DOCKER-USER -j RETURN; {iptables} -P FORWARD DROP;"
        f"{iptables} -I FORWARD -o cni0 -j DOCKER; {iptables} -I FORWARD -j DOCKER-USER;"
    )
    for host in lab.hosts:
        sh(host, docker)
    assert lab.wait_connected() == []
    for host in lab.hosts:
        jumps = [line for line in sh(host, f"{iptables}-save").splitlines() if "-j FLANNEL-FWD" in line]
        assert jumps == ['-A DOCKER-USER -m comment --comment "flanneld-py forward" -j FLANNEL-FWD']
        sh(host, f"printf '*filter\\nCOMMIT\\n' | {iptables}-restore; {docker}")
    assert lab.wait_connected() == []
    sh(lab.hosts[0], f"{iptables} -I DOCKER-USER -s {lab.containers[1].address} -j DROP")
    assert ping(*lab.pairs()[0], count=2, patience=0.3).received == 0, (
        "what the operator wrote there counts before ours"
    )


def test_forwarding_without_docker_passes_a_chain_that_ends_in_reject(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none")
    for host in lab.hosts:
        sh(host, "iptables -A FORWARD -i nowhere -j DROP; iptables -A FORWARD -j REJECT")
        host.agent.start()
    for host in lab.hosts:
        host.agent.wait_ready()
        lab.attach(host)
    assert lab.wait_connected() == []
    assert 'go to iptables because="the host has iptables rules"' in lab.hosts[0].agent.log_tail()


def dropped(host: Host) -> list[dict[str, str]]:
    found = shown(host)["firewall"]["dropped_by_others"]
    assert isinstance(found, list)
    return found


def test_what_cannot_be_overruled_is_named_and_passes_by_what_is_said(make_lab: MakeLab) -> None:
    lab = connected(make_lab)
    host = lab.hosts[0]
    sh(host, "nft add table inet filter")
    sh(host, "nft add chain inet filter forward '{ type filter hook forward priority 0; policy drop; }'")
    until(lambda: "nft insert rule inet filter forward ip saddr 10.42.0.0/16 accept" in host.agent.log_tail(), "a hint")
    sh(host, "nft insert rule inet filter forward ip saddr 10.42.0.0/16 accept")
    sh(host, "nft insert rule inet filter forward ip daddr 10.42.0.0/16 accept")
    assert lab.wait_connected() == []
    # Rules, not policies; and in the tunnel's way as well.
    other = lab.hosts[1]
    sh(other, "nft add table inet asleep '{ flags dormant; }'")
    sh(other, "nft add chain inet asleep input '{ type filter hook input priority -20; policy drop; }'")
    sh(other, "nft add table inet early")
    sh(other, "nft add chain inet early input '{ type filter hook input priority -10; }'")
    sh(other, "nft add rule inet early input udp dport 8472 counter drop")
    sh(other, "iptables -t mangle -A FORWARD -d 10.42.0.0/16 -i flannel.1 -j DROP")
    until(lambda: len(dropped(other)) == 2, "both are named")
    assert ping(*lab.pairs()[0], count=2, patience=0.3).received == 0
    for obstacle in dropped(other):
        assert obstacle["do"] in other.agent.log_tail().replace('\\"', '"')
        sh(other, obstacle["do"])
    until(lambda: dropped(other) == [], "it is over")
    assert lab.wait_connected() == []


@pytest.mark.parametrize(("backend", "kind"), [("vxlan", "nftables"), ("host-gw", "iptables")])
def test_flows_that_began_without_masquerade_begin_anew(make_lab: MakeLab, backend: str, kind: str) -> None:
    """Somebody else's nat chain has had the kernel decide on them, for as long as they go on."""
    lab = make_lab(hosts=1, backend=backend)
    host, container = lab.hosts[0], lab.hosts[0].containers[0]
    sh(host, "nft add table ip other; nft add chain ip other post '{ type nat hook postrouting priority 90; }'")
    sh(host, "nft add rule ip other post ip saddr 172.17.0.0/16 masquerade")
    assert not masqueraded(lab, container)
    host.agent.terminate()
    host.agent.start("--firewall", kind, "--ip-masq")
    host.agent.wait_ready()
    until(lambda: masqueraded(lab, container), "the same ports as before")
    assert "flows that had begun without masquerade begin anew flows=" in host.agent.log_tail()


@KINDS
def test_a_restart_changes_nothing_and_loses_nothing(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)
    host, here = lab.hosts[0], lab.containers[0]
    handles = sh(host, "nft -a list ruleset")
    with ping_through(*lab.pairs()[0]) as stream:
        host.agent.kill()
        assert masqueraded(lab, here), "rules stay while the agent is down"
        host.agent.start()
        host.agent.wait_ready()
        nothing_lost(stream)
    assert sh(host, "nft -a list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'") == sh(
        host, f"cat <<'END' | sed 's/packets [0-9]* bytes [0-9]*//'\n{handles}END\n"
    )


def test_changing_places_loses_no_masquerade_and_leaves_nothing(make_lab: MakeLab) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", "nftables")
    host, here = lab.hosts[0], lab.containers[0]
    for kind, other in (("iptables", "\tchain postrouting {"), ("nftables", "FLANNEL-POSTRTG")):
        host.agent.terminate()
        host.agent.start("--firewall", kind)
        host.agent.wait_ready()
        assert other not in sh(host, "nft list ruleset")
        assert masqueraded(lab, here)
    host.agent.terminate()
    host.agent.start("--ip-masq=false", "--iptables-forward-rules=false")
    host.agent.wait_ready()
    assert "flannel" not in sh(host, "nft list ruleset; iptables-save; iptables-legacy-save").lower()
    assert host.agent.subnet_env()["FLANNEL_IPMASQ"] == "false"
    assert not masqueraded(lab, here)


def test_a_tool_that_hangs_does_not_hold_up_containers(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none", agent_args=("--ip-masq", "--firewall", "nftables"))
    host = lab.hosts[0]
    hangs, tool = host.directory / "hangs", host.directory / "nft"
    hangs.touch()
    tool.write_text(f'#!/bin/sh\n[ -e {hangs} ] && exec sleep 1000\nexec "{shutil.which("nft")}" "$@"\n')
    tool.chmod(0o755)
    host.agent.start(env={"PATH": f"{host.directory}:{os.environ['PATH']}"})
    host.agent.wait_ready(10)
    assert host.agent.subnet_env()["FLANNEL_IPMASQ"] == "true"
    hangs.unlink()
    until(lambda: "flanneld-py" in sh(host, "nft list tables"), "the rules, when nft works again", 60)
    until(lambda: shown(host)["firewall"]["in_force"], "it says that they are in force")
    assert shown(host)["firewall"]["kind"] == "nftables"
    assert "did not end within" in shown(host)["firewall"]["last_error"]
    assert "did not end within" in host.agent.log_tail()


def test_two_networks_on_one_host_have_rules_of_their_own(make_lab: MakeLab) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", "nftables")
    assert lab.etcd is not None
    lab.etcd.ctl("put", "/second/config", '{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}')
    host = lab.hosts[0]
    before = sh(host, "nft list table ip flanneld-py")
    second = host.namespace.popen(
        [
            *(lab.plan.flanneld or str(Path(sys.executable).with_name("flanneld-py")), "--iface", "eth0"),
            *("--etcd-endpoints", f"http://{lab.plan.gateway}:2379", "--etcd-prefix", "/second", "--ip-masq"),
            *("--subnet-file", str(host.directory / "second" / "subnet.env"), "--firewall", "nftables"),
        ]
    )
    with second:
        try:
            until((host.directory / "second" / "subnet.env").exists, "the second network")
            assert "10.77.0.0/16" in sh(host, "nft list table ip flanneld-py-7")
            assert sh(host, "nft list table ip flanneld-py") == before
        finally:
            second.terminate()


def test_the_blackhole_route_is_kept_and_stands_in_nobodys_way(make_lab: MakeLab) -> None:
    lab = connected(make_lab, "--ip-blackhole-route", "--iptables-resync", "1")
    host = lab.hosts[0]
    show = "ip route show type blackhole proto 76"
    route = f"blackhole {subnet(host)}"
    until(lambda: sh(host, show).startswith(route), "the route")
    sh(host, f"ip route del {route} metric 4294967295")
    until(lambda: sh(host, show).startswith(route), "the route again")
    assert lab.wait_connected() == []
    assert ping(host, lab.containers[0], count=1).received == 1
    sh(host, "ip link set cni0 down")
    there = str(lab.containers[0].address)
    assert host.namespace.run(["ip", "route", "get", there], check=False).returncode != 0, "not to the default route"
    host.agent.terminate()
    host.agent.start("--ip-blackhole-route=false")
    host.agent.wait_ready()
    until(lambda: sh(host, show) == "", "the route is gone")
