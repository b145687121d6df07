"""Real Docker engines on two hosts: the default bridge over the overlay, and Docker's other network modes beside it.

h1 dockerd ── docker0 .1 ── flannel.1 ─ ─ ─ ─ flannel.1 ── docker0 .1 ── dockerd h2
   │            └ h1c1 .2       (VXLAN over eth0)           └ h2c1 .2
   ├ h1host   shares h1's network
   ├ h1none   has none
   ├ h1shared shares h1c1's
   └ h1mac    172.30.0.101 on macvlan over eth0         ...and h2mac on h2
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Interface
from pathlib import Path

import pytest

from tests.lab.docker import Docker
from tests.lab.engine import fetch, measure, ready_hosts
from tests.lab.host import Host
from tests.lab.image import PAGE, SERVE
from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.lab.namespace import LabError
from tests.lab.processes import start_time
from tests.netns.conftest import LEASED
from tests.netns.docker_site import (
    QUESTIONS,
    STRANGER,
    Site,
    docker_site,
    failing,
    gets,
    open_to_strangers,
)
from tests.netns.ipv6 import underlay6
from tests.netns.test_agent import until
from tests.netns.test_raw import OURS

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The first host had a docker0 with another address before its engine was started."""

    def other_address(lab: Lab) -> None:
        lab.hosts[0].namespace.ip("link add docker0 type bridge", "addr add 10.99.0.1/24 dev docker0")

    with docker_site(before_engines=other_address) as site:
        yield site


def prerouting(host: Host, iptables: str = "iptables") -> list[str]:
    return host.namespace.run([iptables, "-t", "raw", "-S", "PREROUTING"]).stdout.splitlines()[1:]


def ours_in_force(site: Site, iptables: str = "iptables") -> bool:
    """Whether our jump is there, before what Docker of this version drops."""
    rules = prerouting(site.lab.hosts[1], iptables)
    drops = [at for at, rule in enumerate(rules) if rule.endswith("! -i docker0 -j DROP")]
    assert bool(drops) is site.protected
    return OURS in rules and rules.index(OURS) < min(drops, default=len(rules))


def answers(engine: Docker, name: str, address: IPv4Address) -> bool:
    """Whether a container's own ping gets an answer."""
    return engine.execute(name, "ping", "-c", "3", "-A", "-w", "5", str(address)).returncode == 0


@pytest.mark.parametrize("question", QUESTIONS)
def test_whatever_version_it_is(site: Site, question: str) -> None:
    assert QUESTIONS[question](site)


def test_strangers_are_kept_out_by_versions_that_do_so(site: Site) -> None:
    everywhere = ["by another host"]
    assert open_to_strangers(site) == (everywhere if site.protected else [*STRANGER])
    assert ours_in_force(site)


def test_what_somebody_flushed_is_there_for_the_next_container(site: Site) -> None:
    site.lab.hosts[1].namespace.run(["iptables", "-t", "raw", "-F"])
    later = site.engines[1].run("h2later", command=SERVE)
    assert gets(site.here.namespace, f"http://{later.address}/")
    assert ours_in_force(site)


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
    with pytest.raises(LabError, match=r"user.specified IP address is supported on user.defined networks only"):
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


def test_without_a_tunnel() -> None:
    with docker_site(backend="host-gw") as site:
        assert failing(site) == []
        assert open_to_strangers(site) == (["by another host"] if site.protected else [*STRANGER])


def test_no_way_through_one_host_to_anothers_containers() -> None:
    with docker_site(agent_args=("--forward-own-only",)) as site:
        assert failing(site) == []
        assert open_to_strangers(site) == ([] if site.protected else ["directly, published"])


def test_both_families() -> None:
    def six(host: Host) -> dict[str, object]:
        subnet = IPv6Interface(host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).network
        return {"ipv6": True, "fixed-cidr-v6": str(subnet)}

    both = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
    with docker_site(config=both, prepare=underlay6, daemon=six) as site:
        assert failing(site) == []
        far = site.there.namespace.run(["ip", "-6", "-br", "addr", "show", "eth0", "scope", "global"]).stdout.split()
        address = IPv6Interface(far[2]).ip
        assert site.engines[0].execute("h1c1", "ping", "-c", "3", "-w", "10", str(address)).returncode == 0
        assert gets(site.here.namespace, f"http://[{address}]/")


def test_legacy_iptables(tmp_path: Path) -> None:
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            (tmp_path / f"{name}{suffix}").symlink_to(shutil.which(f"{name}-legacy{suffix}") or "missing")
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with docker_site(env=env, agent_args=("--iptables-resync", "1")) as site:
        if site.protected:
            until(lambda: ours_in_force(site, "iptables-legacy"), "looked at once a second")
        assert failing(site) == []
        assert open_to_strangers(site) == (["by another host"] if site.protected else [*STRANGER])


def test_an_engine_that_does_not_answer_in_time_does_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "dockerd"
    silent.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    silent.chmod(0o755)
    monkeypatch.setenv("DOCKERD", str(silent))
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
