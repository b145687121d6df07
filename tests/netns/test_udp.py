"""Flannel's udp backend: bare packets in UDP, between agents with real etcd.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core: etcd      (the picture: tests/lab/__init__.py)
h3c1 ── h3 ──┘
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from scapy.layers.inet import IP, UDP

from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.lab.namespace import Namespace
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import nothing_lost
from tests.netns.test_userspace import STREAM, datapath_pids, shown
from tests.netns.transfer import transfer

pytestmark = pytest.mark.root

MTU = 1500 - 28


@pytest.fixture
def lab(make_lab: MakeLab) -> Iterator[Lab]:
    lab = make_lab(hosts=3, backend="udp")
    assert lab.wait_connected() == []
    yield lab
    for host in lab.hosts:
        host.agent.close()


def words(host: Host, *command: str) -> str:
    return host.namespace.run(list(command)).stdout


def complaint(host: Host, *arguments: str) -> str:
    """What one ping from the host's container, which nobody answers, gets as an answer."""
    done: subprocess.CompletedProcess[str] = host.containers[0].namespace.run(
        ["ping", "-c", "1", "-W", "3", *arguments], check=False
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_every_pair_answers_up_to_the_whole_mtu(lab: Lab) -> None:
    assert {host.agent.subnet_env()["FLANNEL_MTU"] for host in lab.hosts} == {str(MTU)}
    assert [ping(*pair, payload=MTU - 28).loss for pair in lab.pairs()] == [0.0] * 6
    for pair in lab.pairs():
        transfer(*pair, STREAM)


def test_hosts_reach_containers_from_their_own_address(lab: Lab) -> None:
    for host in lab.hosts:
        for container in lab.containers:
            assert "1 received" in words(host, "ping", "-c", "1", "-W", "3", str(container.address))


def test_the_registry_and_the_device_are_as_flannel_has_them(lab: Lab) -> None:
    assert lab.etcd is not None
    values = lab.etcd.ctl("get", "--prefix", "--print-value-only", f"{lab.plan.etcd_prefix}/subnets/").split()
    assert sorted(values) == sorted(f'{{"PublicIP":"{host.address}","PublicIPv6":null}}' for host in lab.hosts)
    for host in lab.hosts:
        base = host.agent.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/32")
        assert f"inet {base} " in words(host, "ip", "-4", "addr", "show", "dev", "flannel0")
        assert words(host, "ip", "route", "show", "dev", "flannel0").split()[:3] == ["10.42.0.0/16", "proto", "76"]


def test_the_status_shows_what_carries_the_packets_and_to_whom(lab: Lab) -> None:
    document = shown(lab.hosts[0])
    assert (document["backend"], document["device"], document["peers"]) == ("udp", "flannel0", 2)
    assert document["datapath"] == {"kind": "userspace", "reason": "the udp backend always is"}
    assert [document["userspace"]["pid"]] == datapath_pids(lab.hosts[0])
    assert all(peer["sent_packets"] and peer["received_bytes"] for peer in document["userspace"]["peers"])
    assert "offloads of the data plane in use" in lab.hosts[0].agent.log.read_text()


def test_an_agent_that_is_killed_and_restarted_loses_no_packet(lab: Lab) -> None:
    host = lab.hosts[0]
    (before,) = datapath_pids(host)
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(5)
        host.agent.kill()
        stream.wait_replies(20)
        host.agent.start()
        host.agent.wait_ready()
        nothing_lost(stream)
    assert datapath_pids(host) == [before]


def test_a_subnet_that_nobody_leased_is_unreachable_and_not_silent(lab: Lab) -> None:
    leased = {host.agent.subnet_env()["FLANNEL_SUBNET"] for host in lab.hosts}
    free = next(base for base in (f"10.42.{number}" for number in range(256)) if f"{base}.1/24" not in leased)
    assert "Net Unreachable" in complaint(lab.hosts[0], f"{free}.7")


def test_a_packet_that_is_too_large_is_told_the_mtu(lab: Lab) -> None:
    """From a bridge and a container with an MTU of their own, as a careless engine makes them."""
    host, receiver = lab.hosts[0], lab.containers[1]
    host.namespace.ip("link set c1 mtu 1500", "link set cni0 mtu 1500")
    host.containers[0].namespace.ip("link set eth0 mtu 1500")
    assert f"mtu = {MTU}" in complaint(host, "-M", "do", "-s", str(1500 - 28), str(receiver.address))


def test_the_data_plane_itself_tells_the_mtu(lab: Lab) -> None:
    """Where the kernel does not: somebody has made the device larger than what the wire takes."""
    host, receiver = lab.hosts[0], lab.containers[1]
    host.agent.kill()  # It would make it right again.
    host.namespace.ip("link set flannel0 mtu 1500", "link set c1 mtu 1500", "link set cni0 mtu 1500")
    host.containers[0].namespace.ip("link set eth0 mtu 1500")
    assert f"mtu = {MTU}" in complaint(host, "-M", "do", "-s", str(1500 - 28), str(receiver.address))


def test_a_time_to_live_that_ends_on_the_way_is_told(lab: Lab) -> None:
    for hops in ("1", "2"):
        assert "Time to live exceeded" in complaint(lab.hosts[0], "-t", hops, str(lab.containers[1].address))


def test_only_a_peer_delivers_and_only_in_its_own_name(lab: Lab) -> None:
    first, second, third = lab.containers
    with listening(first) as lines:
        send(lab.core, lab.hosts[0], packet(second, first, b"a stranger, in a peer's name"))
        send(lab.hosts[1].namespace, lab.hosts[0], packet(third, first, b"a peer, in another's name"))
        send(lab.hosts[1].namespace, lab.hosts[0], packet(second, first, b"a peer, in its own name"))
        assert lines.readline() == b"a peer, in its own name\n"


LISTEN = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inlet:
    inlet.bind(("0.0.0.0", 7007))
    print("listening", flush=True)
    while True:
        print(inlet.recv(2048).decode(), flush=True)
"""


@contextmanager
def listening(container: Container) -> Iterator[IO[bytes]]:
    """Receive in a container, line by line."""
    with container.namespace.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"listening\n"
            yield process.stdout
        finally:
            process.kill()


SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
    outlet.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8285))
"""


def packet(source: Container, target: Container, payload: bytes) -> bytes:
    """A UDP packet that a kernel takes for one from this container to that."""
    udp = UDP(sport=7007, dport=7007)
    return bytes(IP(src=str(source.address), dst=str(target.address)) / udp / payload)


def send(namespace: Namespace, host: Host, inner: bytes) -> None:
    """Put a bare packet into UDP by hand."""
    namespace.run([sys.executable, "-c", SEND, str(host.address), inner.hex()])
