"""IPv6 in userspace between agents, beside IPv4 and alone: `vxlan`, also with a peer on kernel VXLAN, and `udp`.

h1c1 ── h1 (userspace)           ──┐
h2c1 ── h2 (userspace or kernel) ──┴── core: etcd      (the picture: tests/lab/__init__.py; IPv6: ipv6.py)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping, ping_through
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import attach6, underlay6
from tests.netns.test_agent import nothing_lost, until
from tests.netns.test_userspace import KERNEL, USERSPACE, datapath_pids, shown
from tests.netns.transfer import datagrams, transfer

pytestmark = pytest.mark.root

DUAL = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
ALONE = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
MTU = {"vxlan": 1430, "udp": 1452}
DEVICES = {"vxlan": ("flannel.1", "flannel-v6.1"), "udp": ("flannel0", "flannel0-v6")}
USERSPACE_FIELDS = ("userspace", "userspace_ipv6")
DATAGRAMS = 600
AWHILE = 0.1
"""Seconds between pings: ping waits for the last reply no longer than that, once it had one."""

Start = Callable[..., tuple[Lab, tuple[Station, Station]]]


@pytest.fixture
def start(make_lab: MakeLab) -> Iterator[Start]:
    """Make a lab of two hosts with their agents, and containers with IPv6 addresses."""
    labs = []

    def make(
        backend: str, config: object = DUAL, second: Sequence[str] = USERSPACE
    ) -> tuple[Lab, tuple[Station, Station]]:
        lab = make_lab(hosts=2, overlay="none", backend=backend, config=config)
        labs.append(lab)
        underlay6(lab)
        for host, arguments in zip(lab.hosts, (USERSPACE, second), strict=True):
            host.agent.start(*arguments)
        for host in lab.hosts:
            host.agent.wait_ready()
        one, two = attach6(lab)
        until(lambda: ping(one, two, count=1).received, "h1c1 reaches h2c1 over IPv6", 20)
        until(lambda: ping(two, one, count=1).received, "h2c1 reaches h1c1 over IPv6", 20)
        return lab, (one, two)

    yield make
    for lab in labs:
        for host in lab.hosts:
            host.agent.close()


def drops(lab: Lab) -> list[Any]:
    """What the data planes have dropped: the explanation of a loss."""
    documents = [shown(host) for host in lab.hosts]
    return [document[name] and document[name]["drops_packets"] for document in documents for name in USERSPACE_FIELDS]


def everything_arrives(lab: Lab, a: Station, b: Station, mtu: int) -> None:
    largest = mtu - (28 if a.address.version == 4 else 48)
    for source, target in ((a, b), (b, a)):
        assert ping(source, target, payload=largest, interval=AWHILE).loss == 0, drops(lab)
        for payload in (largest + 1, 5000, 60_000):
            done = ping(source, target, payload=payload, fragment=True, count=3, interval=AWHILE)
            assert done.loss == 0, drops(lab)
        transfer(source, target, 16 << 20)
        arrivals = datagrams(source, target, DATAGRAMS)
        assert (arrivals.broken, arrivals.repeated) == (0, 0)
        assert arrivals.whole > DATAGRAMS // 2


def refused(process: dict[str, Any]) -> dict[str, int]:
    """What was dropped, but for the kernel's own multicast listener reports."""
    return {name: count for name, count in process["drops_packets"].items() if name != "out-multicast"}


@pytest.mark.parametrize(
    ("backend", "second"),
    [("vxlan", USERSPACE), ("vxlan", KERNEL), ("udp", USERSPACE)],
    ids=["vxlan", "vxlan with the kernel's", "udp"],
)
def test_dual_stack(start: Start, backend: str, second: Sequence[str]) -> None:
    lab, containers6 = start(backend, DUAL, second)
    assert {host.agent.subnet_env()["FLANNEL_MTU"] for host in lab.hosts} == {str(MTU[backend])}
    everything_arrives(lab, *containers6, MTU[backend])
    assert lab.wait_connected() == []
    everything_arrives(lab, *lab.pairs()[0], MTU[backend])
    document = shown(lab.hosts[0])
    processes = [document["userspace"], document["userspace_ipv6"]]
    assert sorted(process["pid"] for process in processes) == sorted(datapath_pids(lab.hosts[0]))
    assert document["device"] == ", ".join(DEVICES[backend])
    for process in processes:
        assert refused(process) == {}
        (peer,) = process["peers"]
        assert min(peer["sent_packets"], peer["received_packets"]) > 0
    assert shown(lab.hosts[1])["userspace_ipv6"] is None or second is USERSPACE


@pytest.mark.parametrize(
    ("backend", "second"),
    [("vxlan", USERSPACE), ("vxlan", KERNEL), ("udp", USERSPACE)],
    ids=["vxlan", "vxlan with the kernel's", "udp"],
)
def test_ipv6_alone(start: Start, backend: str, second: Sequence[str]) -> None:
    lab, containers6 = start(backend, ALONE, second)
    everything_arrives(lab, *containers6, MTU[backend])
    for host in lab.hosts:
        assert "FLANNEL_SUBNET" not in host.agent.subnet_env()
        assert shown(host)["userspace"] is None
    assert refused(shown(lab.hosts[0])["userspace_ipv6"]) == {}
    before = [host.agent.subnet_env() for host in lab.hosts]
    for host in lab.hosts:
        host.agent.restart()
        host.agent.wait_ready()
    assert [host.agent.subnet_env() for host in lab.hosts] == before
    assert ping(*containers6).loss == 0


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_an_agent_that_is_killed_and_restarted_loses_no_packet_of_either_family(start: Start, backend: str) -> None:
    lab, containers6 = start(backend)
    host = lab.hosts[0]
    before = datapath_pids(host)
    assert len(before) == 2
    with ping_through(*lab.pairs()[0]) as ipv4, ping_through(*containers6) as ipv6:
        for stream in (ipv4, ipv6):
            stream.wait_replies(5)
        host.agent.kill()
        for stream in (ipv4, ipv6):
            stream.wait_replies(20)
        host.agent.start(*USERSPACE)
        host.agent.wait_ready()
        nothing_lost(ipv4)
        nothing_lost(ipv6)
    assert datapath_pids(host) == before


def test_the_death_of_ipv6s_process_is_not_noticed_in_ipv4(start: Start) -> None:
    lab, containers6 = start("udp")
    host = lab.hosts[0]
    victim = shown(host)["userspace_ipv6"]["pid"]
    with ping_through(*lab.pairs()[0]) as ipv4:
        ipv4.wait_replies(5)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in datapath_pids(host) and len(datapath_pids(host)) == 2, "another process")
        until(lambda: ping(*containers6, count=1).received, "IPv6 is back", 20)
        nothing_lost(ipv4)


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_all_are_ended_for_good_on_request(start: Start, backend: str) -> None:
    lab, _ = start(backend)
    host = lab.hosts[0]
    assert host.agent.terminate() == 0
    assert len(datapath_pids(host)) == 2
    done = host.namespace.run([*host.agent._argv, "--datapath-stop"], timeout=15)
    assert done.stderr.count("userspace data plane stopped") == 2
    until(lambda: datapath_pids(host) == [], "the processes are gone")


def test_turning_ipv6_on_leaves_ipv4s_process_as_it_is(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none", backend="vxlan")
    underlay6(lab)
    for host in lab.hosts:
        host.agent.start(*USERSPACE)
    for host in lab.hosts:
        host.agent.wait_ready()
        lab.attach(host)
    assert lab.wait_connected() == []
    before = [datapath_pids(host) for host in lab.hosts]
    assert lab.etcd is not None
    with ping_through(*lab.pairs()[0]) as ipv4:
        config = lab.plan.network_config().replace("{", '{"EnableIPv6": true, "IPv6Network": "fd42::/48", ', 1)
        lab.etcd.ctl("put", f"{lab.plan.etcd_prefix}/config", stdin=config.encode())
        for host in lab.hosts:
            host.agent.restart()
            host.agent.wait_ready()
        nothing_lost(ipv4)
    for host, pids in zip(lab.hosts, before, strict=True):
        assert set(pids) < set(datapath_pids(host))
        host.agent.close()


def complaint(host: Host, *arguments: str) -> str:
    """What one ping from the host's container, which nobody answers, gets as an answer."""
    done = host.containers[0].namespace.run(["ping", "-6", "-n", "-c", "1", "-W", "3", *arguments], check=False)
    assert done.returncode == 1, done.stdout
    return done.stdout


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_a_subnet_that_nobody_leased_is_unreachable_and_not_silent(start: Start, backend: str) -> None:
    lab, _ = start(backend)
    assert "Destination unreachable: No route" in complaint(lab.hosts[0], "fd42:0:0:ffff::7")
    if backend == "udp":
        assert shown(lab.hosts[0])["userspace_ipv6"]["drops_packets"]["out-no-route"] == 1


@pytest.mark.parametrize("teller", ["the kernel", "the data plane"])
@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_a_packet_that_is_too_large_is_told_the_mtu(start: Start, backend: str, teller: str) -> None:
    """From a bridge and a container with an MTU of their own; the data plane where the device is too large as well."""
    lab, containers6 = start(backend)
    host = lab.hosts[0]
    larger = ["link set c1 mtu 1500", "link set cni0 mtu 1500"]
    if teller == "the data plane":
        host.agent.kill()  # It would make it right again.
        larger.append(f"link set {DEVICES[backend][1]} mtu 1500")
    host.namespace.ip(*larger)
    host.containers[0].namespace.ip("link set eth0 mtu 1500")
    said = complaint(host, "-M", "do", "-s", str(1500 - 48), str(containers6[1].address))
    assert "Packet too big" in said
    assert f"mtu={MTU[backend]}" in said.replace("= ", "=").replace(" =", "=")
