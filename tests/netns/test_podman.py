"""Real podman with our plugin on two hosts, both families: podman 4 by CNI, podman 5 by netavark.

podman ── flannel-py ── bridge ── host-local, portmap        on each host
h1c1 ── cni0 ── h1 ── flannel.1, flannel-v6.1 ─ ─ ─ flannel.1, flannel-v6.1 ── h2 ── cni0 ── h2c1
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_interface
from pathlib import Path

import pytest

from tests.lab.engine import fetch, measure, ready_hosts
from tests.lab.host import Container
from tests.lab.image import PAGE, SERVE
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping
from tests.lab.namespace import LabError
from tests.lab.podman import NETWORK, Podman, backend
from tests.netns.conftest import LEASED
from tests.netns.ipv6 import Container6, underlay6
from tests.netns.userspace import ends6
from tests.patience import within

pytestmark = pytest.mark.root

BOTH = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd00:42::/48"}
MTU = 1430
GUIDE = Path(__file__).parents[2] / "docs/podman.md"


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts with podman, a container on each, which serves a page; the second's also at port 8080 of its host."""

    lab: Lab
    engines: tuple[Podman, Podman]
    containers: tuple[Container, Container]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ready_hosts(2, BOTH, prepare=underlay6) as lab, ExitStack() as running:
        one, other = (started(lab, number, running) for number in (0, 1))
        containers = one.run("h1c1", command=SERVE), other.run("h2c1", "--publish", "8080:80", command=SERVE)
        yield Site(lab, (one, other), containers)


def started(lab: Lab, number: int, running: ExitStack) -> Podman:
    engine = Podman(lab.hosts[number], lab.run.name)
    running.callback(engine.close)
    engine.start()
    return engine


def by_ipv6(engine: Podman, container: Container) -> Container6:
    """A container by the IPv6 address that podman knows."""
    state = json.loads(engine.podman("inspect", container.name).stdout)[0]
    address = state["NetworkSettings"]["Networks"][NETWORK]["GlobalIPv6Address"]
    return Container6(container.name, container.namespace, IPv6Address(address))


def seen_by(engine: Podman, name: str) -> str:
    """Who asked the container last, as its server prints it."""
    done = engine.podman("logs", name)
    return [line for line in (done.stdout + done.stderr).splitlines() if "response" in line][-1]


def left(engine: Podman) -> list[str]:
    """What our plugin, host-local, the bridge and portmap keep of containers."""
    records = [path.name for place in ("attachments", "addresses/*") for path in engine.state.glob(f"{place}/*")]
    shown = engine.host.namespace.run(["ip", "-j", "link", "show", "type", "veth"]).stdout
    veths = [link["ifname"] for link in json.loads(shown) if link["ifname"] != "eth0"]
    rules = [
        line
        for tool in ("iptables-save", "ip6tables-save")
        for line in engine.host.namespace.run([tool]).stdout.splitlines()
        if "CNI-DN-" in line
    ]
    return veths + rules + [name for name in records if name != "lock" and not name.startswith("last_reserved_ip.")]


def test_containers_reach_each_other_both_ways_at_the_overlays_mtu(site: Site) -> None:
    pairs = measure(site.containers)
    assert [(pair.source, pair.target, pair.loss) for pair in pairs] == [("h1c1", "h2c1", 0), ("h2c1", "h1c1", 0)]
    one, other = site.containers
    assert ping(one, other, payload=MTU - 28).loss == 0
    assert ping(one, other, payload=MTU - 27).received == 0
    one6, other6 = (by_ipv6(*each) for each in zip(site.engines, site.containers, strict=True))
    ping(one6, other6, count=1, patience=3)
    assert ping(one6, other6, payload=MTU - 48).loss == 0


def test_a_container_is_seen_by_its_own_address_in_both_families(site: Site) -> None:
    one, other = site.containers
    assert fetch(one, f"http://{other.address}/") == PAGE
    assert f"[::ffff:{one.address}]" in seen_by(site.engines[1], "h2c1")
    one6, other6 = (by_ipv6(*each) for each in zip(site.engines, site.containers, strict=True))
    assert fetch(one6, f"http://[{other6.address}]/") == PAGE
    assert f"[{one6.address}]" in seen_by(site.engines[1], "h2c1")


def test_a_published_port_answers_hosts_containers_and_its_own_container(site: Site) -> None:
    host = site.lab.hosts[1]
    askers: tuple[Station, ...] = (site.lab.hosts[0], *site.containers)
    for bridged in ("1", "0"):
        # Whether iptables sees packets inside the bridge, or only those that are routed.
        host.namespace.write_sysctl("net.bridge.bridge-nf-call-iptables", bridged)
        assert [fetch(asker, f"http://{host.address}:8080/") for asker in askers] == [PAGE] * len(askers)
    assert fetch(host, "http://127.0.0.1:8080/") == PAGE
    assert fetch(site.containers[1], f"http://{host.address}:8080/") == PAGE
    bridge = host.agent.subnet_env()["FLANNEL_SUBNET"].split("/")[0]
    assert f"[::ffff:{bridge}]" in seen_by(site.engines[1], "h2c1"), "of its own host it sees the bridge"
    address = ends6(site.lab)[1].underlay
    assert [fetch(asker, f"http://[{address}]:8080/") for asker in askers] == [PAGE] * len(askers)


def test_an_address_that_is_asked_for_is_given_or_refused(site: Site) -> None:
    engine = site.engines[0]
    subnet = ip_interface(engine.host.agent.subnet_env()["FLANNEL_SUBNET"]).network
    wanted = subnet.network_address + 77
    container = engine.run("fixed", "--ip", str(wanted), "--mac-address", "02:42:00:00:00:77")
    assert container.address == wanted
    assert "02:42:00:00:00:77" in container.namespace.run(["ip", "link", "show", "eth0"]).stdout
    assert ping(site.containers[1], container).loss == 0
    with pytest.raises(LabError, match=f"{wanted} is not available"):
        engine.run("second", "--ip", str(wanted))
    # By CNI podman 4 tells only the delegate.
    why = {"cni": "failed to allocate all requested IPs", "netavark": "10.99.0.9 is not in this host's subnet"}[
        backend()
    ]
    with pytest.raises(LabError, match=why):
        engine.run("third", "--ip", "10.99.0.9")
    for name in ("fixed", "second", "third"):
        engine.remove(name)


def test_a_container_in_another_network_as_well_has_both(site: Site) -> None:
    engine, host = site.engines[0], site.lab.hosts[0]
    # Without names: the server for them is a package of its own, which podman only recommends.
    engine.podman("network", "create", "--disable-dns", "--subnet", "172.31.9.0/24", "beside")
    container = engine.run("both", "--network", "beside", "--publish", "8092:80", command=SERVE)
    assert fetch(site.lab.hosts[1], f"http://{host.address}:8092/") == PAGE
    assert ping(site.containers[1], container).loss == 0
    shown = json.loads(container.namespace.run(["ip", "-j", "-4", "address"]).stdout)
    addresses = [info["local"] for link in shown for info in link["addr_info"]]
    assert str(container.address) in addresses
    [beside] = [address for address in addresses if address.startswith("172.31.9.")]
    assert "0% packet loss" in host.namespace.run(["ping", "-c", "2", "-A", beside]).stdout
    engine.remove("both")
    engine.podman("network", "rm", "beside")


def test_a_container_that_is_started_again_has_its_network_again(site: Site) -> None:
    engine = site.engines[0]
    engine.run("again", "--publish", "8090:80", command=SERVE)
    for _ in range(2):
        engine.podman("restart", "--time", "0", "again")
        assert fetch(site.lab.hosts[1], f"http://{site.lab.hosts[0].address}:8090/") == PAGE
    site.lab.hosts[0].namespace.run(["iptables", "--table", "nat", "--flush"])
    engine.podman("network", "reload", "again")
    assert fetch(site.lab.hosts[1], f"http://{site.lab.hosts[0].address}:8090/") == PAGE
    engine.podman("network", "disconnect", NETWORK, "again")
    engine.podman("network", "connect", NETWORK, "again")
    assert fetch(site.lab.hosts[1], f"http://{site.lab.hosts[0].address}:8090/") == PAGE
    engine.remove("again")


def test_a_container_that_ends_by_itself_gives_its_address_back(site: Site) -> None:
    engine = site.engines[0]
    before = sorted(left(engine))
    engine.run("short", "--publish", "8091:80", command=("sleep", "0"))
    deadline = within(20)
    while sorted(left(engine)) != before:
        assert time.monotonic() < deadline, left(engine)
        time.sleep(0.2)
    engine.remove("short")


def test_a_stranger_who_routes_through_the_host_is_kept_out_by_the_guides_rule(site: Site) -> None:
    [rule] = re.findall(r"```nft\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    container, host, stranger = site.containers[1], site.lab.hosts[1], site.lab.core
    stranger.run(["ip", "route", "replace", f"{container.address}/32", "via", str(host.address)])
    ask = ["curl", "--silent", "--max-time", "2"]
    direct, published = f"http://{container.address}/", f"http://{host.address}:8080/"
    assert stranger.run([*ask, direct]).stdout == PAGE
    host.namespace.run(["nft", "-f", "-"], stdin=rule)
    try:
        assert stranger.run([*ask, direct], check=False).stdout == ""
        assert stranger.run([*ask, published]).stdout == PAGE
        assert fetch(site.containers[0], direct) == fetch(site.lab.hosts[0], direct) == PAGE
    finally:
        host.namespace.run(["nft", "delete", "table", "ip", "overlay-guard"])
        stranger.run(["ip", "route", "del", f"{container.address}/32"])


def test_a_lease_that_changes_needs_nothing_but_new_containers() -> None:
    with ready_hosts(1, LEASED) as lab, ExitStack() as running:
        engine = started(lab, 0, running)
        [host] = lab.hosts
        engine.run("old")
        text, gateway = host.agent.subnet_file.read_text(), host.agent.subnet_env()["FLANNEL_SUBNET"]
        host.agent.subnet_file.write_text(text.replace(gateway, "10.42.200.1/24"))
        with pytest.raises(LabError, match=f"cni0 still has {gateway} of an earlier lease: remove the containers"):
            engine.run("early")
        engine.remove("early")
        engine.podman("stop", "--time", "0", "old")
        assert str(engine.run("new").address) == "10.42.200.2"
        engine.podman("start", "old")
        state = json.loads(engine.podman("inspect", "old").stdout)[0]
        assert state["NetworkSettings"]["Networks"][NETWORK]["IPAddress"] == "10.42.200.3"
        for name in ("old", "new"):
            engine.remove(name)
        assert left(engine) == []


def test_a_container_is_refused_until_there_is_what_it_needs() -> None:
    with ready_hosts(1, LEASED) as lab, ExitStack() as running:
        engine = started(lab, 0, running)
        [host] = lab.hosts
        aside = host.agent.subnet_file.rename(host.directory / "aside")
        with pytest.raises(LabError, match="this host has no subnet yet"):
            engine.run("h1c1", "--rm")
        host.agent.subnet_file.write_text("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\n")
        with pytest.raises(LabError, match="it is of another network"):
            engine.run("h1c2", "--rm")
        aside.rename(host.agent.subnet_file)
        right = engine.network.read_text()
        if backend() == "cni":
            engine.network.write_text(right.replace('"hairpinMode"', '"type": "absent", "hairpinMode"'))
            refusal = "there is no plugin absent in CNI_PATH"
        else:
            engine.network.write_text(right.replace('"data_dir"', '"cni_path": "/absent", "data_dir"'))
            refusal = "there is no plugin bridge in CNI_PATH=/absent"
        with pytest.raises(LabError, match=refusal):
            engine.run("h1c3", "--rm")
        assert left(engine) == []
        engine.network.write_text(right)
        engine.run("h1c4")
        assert len(left(engine)) == 3, "a record, an address, an interface"


def test_nothing_is_left_of_the_containers(site: Site) -> None:
    for engine, container in zip(site.engines, site.containers, strict=True):
        engine.remove(container.name)
        assert left(engine) == []
