"""Real Docker engines on two hosts: the default bridge over the overlay, and Docker's other network modes beside it.

h1 dockerd ── docker0 .1 ── flannel.1 ─ ─ ─ ─ flannel.1 ── docker0 .1 ── dockerd h2
   │            └ h1c1 .2       (VXLAN over eth0)           └ h2c1 .2
   ├ h1host   shares h1's network
   ├ h1none   has none
   ├ h1shared shares h1c1's
   └ h1mac    172.30.0.101 on macvlan over eth0         ...and h2mac on h2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.lab.docker import Docker
from tests.lab.engine import fetch, measure, ready_hosts
from tests.lab.host import Container
from tests.lab.image import PAGE, SERVE
from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.lab.namespace import LabError
from tests.lab.processes import start_time
from tests.netns.conftest import LEASED

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts with their engines, and a container on the default bridge of each, which serves a page on port 80.

    The first had a docker0 with another address before its engine was started.
    """

    lab: Lab
    engines: tuple[Docker, Docker]
    containers: tuple[Container, Container]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ready_hosts(2, LEASED) as lab, ExitStack() as running:
        engines = tuple(Docker(host, lab.run.name) for host in lab.hosts)
        lab.hosts[0].namespace.ip("link add docker0 type bridge", "addr add 10.99.0.1/24 dev docker0")
        for engine in engines:
            running.callback(engine.close)
            engine.start()
        one, other = engines
        containers = one.run("h1c1", command=SERVE), other.run("h2c1", "--publish", "8080:80", command=SERVE)
        yield Site(lab, (one, other), containers)


def answers(engine: Docker, name: str, address: IPv4Address) -> bool:
    """Whether a container's own ping gets an answer."""
    return engine.execute(name, "ping", "-c", "3", "-A", "-w", "5", str(address)).returncode == 0


def test_containers_reach_each_other_both_ways_at_the_overlays_mtu(site: Site) -> None:
    pairs = measure(site.containers)
    assert [(pair.source, pair.target, pair.loss) for pair in pairs] == [("h1c1", "h2c1", 0), ("h2c1", "h1c1", 0)]
    assert ping(*site.containers, payload=1450 - 28).loss == 0
    assert ping(*site.containers, payload=1451 - 28).received == 0


def test_a_container_is_seen_by_its_own_address(site: Site) -> None:
    one, other = site.containers
    got = site.engines[0].execute("h1c1", "wget", "-q", "-O", "-", f"http://{other.address}/")
    assert got.stdout == PAGE
    assert f"[::ffff:{one.address}]" in site.engines[1].logs("h2c1")


def test_it_works_although_docker_drops_what_is_forwarded(site: Site) -> None:
    for host in site.lab.hosts:
        assert "-P FORWARD DROP" in host.namespace.run(["iptables", "-S", "FORWARD"]).stdout
    assert ping(*site.containers).loss == 0


def test_hosts_and_containers_of_the_other_host_reach_each_other(site: Site) -> None:
    for host, container in zip(site.lab.hosts, reversed(site.containers), strict=True):
        assert ping(host, container).loss == 0
        assert ping(container, host).loss == 0


def test_a_published_port_is_reached_from_the_other_host_and_its_containers(site: Site) -> None:
    address = site.lab.hosts[1].address
    assert fetch(site.lab.hosts[0], f"http://{address}:8080/") == PAGE
    got = site.engines[0].execute("h1c1", "wget", "-q", "-O", "-", f"http://{address}:8080/")
    assert got.stdout == PAGE


def test_host_mode_is_the_hosts_own_network(site: Site) -> None:
    engine, (_, far) = site.engines[0], site.containers
    shared = engine.run("h1host", network="host")
    assert shared.namespace.path.stat().st_ino == site.lab.hosts[0].namespace.path.stat().st_ino
    assert answers(engine, "h1host", far.address)


def test_none_reaches_nobody(site: Site) -> None:
    engine = site.engines[0]
    alone = engine.run("h1none", network="none")
    assert alone.namespace.run(["ip", "-o", "link"]).stdout.count("\n") == 1
    assert not answers(engine, "h1none", site.containers[1].address)


def test_container_mode_shares_the_others_address(site: Site) -> None:
    engine, (near, far) = site.engines[0], site.containers
    shared = engine.run("h1shared", network="container:h1c1")
    assert shared.namespace.path.stat().st_ino == near.namespace.path.stat().st_ino
    assert answers(engine, "h1shared", far.address)


def test_a_macvlan_network_beside_the_overlay(site: Site) -> None:
    plan = site.lab.plan
    stations = []
    for number, engine in enumerate(site.engines, 1):
        place = ["--subnet", str(plan.underlay), "--gateway", str(plan.gateway), "--opt", "parent=eth0"]
        engine.create_network("lan", "--driver", "macvlan", *place)
        address = plan.underlay[100 + number]
        stations.append(engine.run(f"h{number}mac", "--ip", str(address), network="lan"))
    one, other = stations
    assert ping(one, other, count=1, patience=3).received == 1
    assert [pair.loss for pair in measure(stations)] == [0, 0]
    assert ping(one, site.lab.hosts[1]).loss == 0
    assert ping(other, site.lab.hosts[0]).loss == 0
    # The kernel lets no macvlan device and its parent speak with each other.
    assert ping(one, site.lab.hosts[0], count=1).received == 0
    assert ping(*site.containers).loss == 0


def test_a_network_of_its_own_reaches_the_overlay_masqueraded_and_is_not_reached(site: Site) -> None:
    engine, (_, far) = site.engines[0], site.containers
    engine.create_network("own", "--subnet", "10.77.0.0/24")
    own = engine.run("h1own", network="own")
    assert answers(engine, "h1own", far.address)
    assert ping(far, own, count=1).received == 0


def test_an_address_by_hand_is_refused_on_the_subnets_bridge(site: Site) -> None:
    with pytest.raises(LabError, match="user specified IP address is supported on user defined networks only"):
        site.engines[0].run("h1stray", "--ip", "10.99.0.5")


def test_a_bridge_with_another_address_has_that_of_the_subnet(site: Site) -> None:
    [host, _] = site.lab.hosts
    shown = host.namespace.run(["ip", "-o", "-4", "addr", "show", "docker0"]).stdout
    assert [line.split()[3] for line in shown.splitlines()] == [host.agent.subnet_env()["FLANNEL_SUBNET"]]


def test_the_agents_restart_is_not_noticed(site: Site) -> None:
    host = site.lab.hosts[0]
    host.agent.restart()
    host.agent.wait_ready()
    assert ping(*site.containers).loss == 0


def test_an_engine_that_does_not_answer_in_time_does_not_run_on() -> None:
    with ready_hosts(1, LEASED) as lab:
        [host] = lab.hosts
        with pytest.raises(LabError, match="does not answer"):
            Docker(host, lab.run.name).start(timeout=0)
        assert host.namespace.run(["pgrep", "-f", f"dockerd --host unix://{host.directory}/"], check=False).stdout == ""


def test_what_a_killed_engine_leaves_goes_with_the_lab() -> None:
    with ready_hosts(1, LEASED) as lab:
        engine = Docker(lab.hosts[0], lab.run.name)
        engine.start()
        pid = int(engine.run("h1c1").namespace.path.parts[2])
        engine.kill()
        assert start_time(pid) is not None, "a container outlives its engine"
        directory = lab.run.directory
    assert start_time(pid) is None
    assert not directory.exists()
    assert f"{directory}/" not in Path("/proc/self/mountinfo").read_text()
