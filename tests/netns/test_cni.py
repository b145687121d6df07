"""The CNI plugin with the real bridge and host-local plugins: 200 containers at once, and across two hosts.

runtime (the test) ── flannel-py ── bridge ── host-local          in h1's namespace, as an engine would call it

container eth0 ── veth ── cni0 .1 ── h1 ── flannel.1 ─ ─ ─ flannel.1 ── h2 ── cni0 .1 ── veth ── eth0 container
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_interface
from itertools import permutations
from pathlib import Path

import pytest

from flanneld_py.agent.cni.command import install
from tests.cni_call import Answer, Runtime
from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.lab.namespace import Namespace, batch
from tests.lab.topology import Plan
from tests.netns.conftest import LEASED, MakeLab

pytestmark = pytest.mark.root

PLUGINS = "/usr/lib/cni:/opt/cni/bin"
CONTAINERS = 200
AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Site:
    """A host of the lab, and what calls the plugin on it; all that plugins keep is in the host's own directory."""

    host: Host
    runtime: Runtime

    def addresses(self) -> list[str]:
        """What host-local has given out."""
        given = self.host.directory / "addresses" / "net"
        return sorted(path.name for path in given.iterdir() if path.name[0].isdigit()) if given.exists() else []

    def kept(self) -> list[Path]:
        """What the plugin has on record."""
        data = self.host.directory / "cni"
        return list(data.iterdir()) if data.exists() else []

    def ports(self) -> list[str]:
        """The bridge's ports."""
        shown = self.host.namespace.run(["ip", "-j", "link", "show", "master", "cni0"]).stdout
        return [link["ifname"] for link in json.loads(shown or "[]")]

    def rules(self) -> list[str]:
        """The rules and chains that the bridge plugin made for masquerade."""
        saved = self.host.namespace.run(["iptables-save", "-t", "nat"]).stdout
        return [line for line in saved.splitlines() if "CNI-" in line]


@pytest.fixture(scope="module")
def one_host() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Lab(Plan(hosts=1, containers=0, config=LEASED)) as lab:
        yield lab


@pytest.fixture
def alone(one_host: Lab) -> Iterator[Lab]:
    """A host whose agent is ready, with neither a bridge nor containers."""
    [host] = one_host.hosts
    clear = ["ip", "link", "del", "cni0"]
    host.namespace.run(clear, check=False)
    yield one_host
    host.namespace.run(clear, check=False)
    for name in one_host.run.namespaces():
        if name.startswith(f"{host.namespace.name}k"):
            Namespace(name).delete()
    # The reference bridge leaves masquerade of an interface that was gone before its DEL.
    for chains in ("--flush", "--delete-chain"):
        host.namespace.run(["iptables", "--table", "nat", chains])
    for kept in ("cni", "addresses"):
        shutil.rmtree(host.directory / kept, ignore_errors=True)


def site(lab: Lab, host: Host, version: str = "1.0.0", **conf: object) -> Site:
    launcher = install(host.directory / "bin")
    whole = {
        "cniVersion": version,
        "name": "net",
        "type": "flannel-py",
        "subnetFile": str(host.agent.subnet_file),
        "dataDir": str(host.directory / "cni"),
        "ipam": {"dataDir": str(host.directory / "addresses")},
        "delegate": {"isDefaultGateway": True, "hairpinMode": True},
        **conf,
    }
    enter = ["nsenter", f"--net={host.namespace.path}", "--"]
    return Site(host, Runtime(whole, PLUGINS, enter, launcher))


def namespaces(lab: Lab, host: Host, count: int) -> list[str]:
    """Make the network namespaces of `count` containers of a host, names of the lab's run; it removes them."""
    names = [lab.run.namespace(f"{host.name}k{number}").name for number in range(1, count + 1)]
    batch("ip", [f"netns add {name}" for name in names])
    return names


def address(answer: Answer) -> IPv4Address:
    assert answer.code == 0, answer
    [ip] = answer.said["ips"]
    got = ip_interface(ip["address"])
    assert isinstance(got, IPv4Interface)
    return got.ip


def at_once(site: Site, command: str, names: Iterable[str]) -> list[Answer]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: site.runtime.call(command, name), names))


def test_200_containers_added_and_removed_at_once_lose_and_leak_no_address(make_lab: MakeLab) -> None:
    # The agent masquerades: iptables for each container takes the bridge plugin longer than all the rest.
    lab = make_lab(hosts=1, containers=0, agent_args=("--ip-masq",))
    [host] = lab.hosts
    # The lab's own bridge is named as the plugin's.
    host.namespace.ip("link del cni0")
    here = site(lab, host)
    names = namespaces(lab, host, CONTAINERS)
    subnet = IPv4Network(host.agent.subnet_env()["FLANNEL_SUBNET"], strict=False)

    given = [address(answer) for answer in at_once(here, "ADD", names)]
    assert len(set(given)) == CONTAINERS
    assert all(each in subnet for each in given)
    assert here.addresses() == sorted(map(str, given))
    assert len(here.ports()) == len(here.kept()) == CONTAINERS
    first = Container("first", lab.run.namespace(f"{host.name}k1"), given[0], host.name)
    last = Container("last", lab.run.namespace(f"{host.name}k{CONTAINERS}"), given[-1], host.name)
    assert ping(first, last).loss == 0

    removed = at_once(here, "DEL", names)
    assert [answer.code for answer in removed] == [0] * CONTAINERS, removed
    assert (here.addresses(), here.ports(), here.kept(), here.rules()) == ([], [], [], [])


def test_containers_of_two_hosts_reach_each_other_whatever_the_version(make_lab: MakeLab) -> None:
    lab = make_lab(containers=0)
    containers, added = [], []
    for host in lab.hosts:
        host.namespace.ip("link del cni0")
        for version, name in zip(("0.3.1", "1.1.0"), namespaces(lab, host, 2), strict=True):
            here = site(lab, host, version)
            answer = here.runtime.call("ADD", name)
            assert answer.said["cniVersion"] == version
            added.append((here, name, answer.said))
            containers.append(Container(name, Namespace(name), address(answer), host.name))
    lost = [
        (source.name, target.name)
        for source, target in permutations(containers, 2)
        if ping(source, target, payload=1450 - 28, count=1, patience=3).received == 0
    ]
    assert lost == []
    for here, name, result in added:
        if result["cniVersion"] != "0.3.1":
            assert here.runtime.call("CHECK", name, prevResult=result).said == {}
        assert here.runtime.call("DEL", name).code == 0
        assert name not in [path.name for path in here.kept()]


def test_a_bridge_of_an_earlier_lease_is_made_anew_once_its_last_container_is_gone(alone: Lab) -> None:
    [host] = alone.hosts
    here = site(alone, host)
    old, new = namespaces(alone, host, 2)
    assert here.runtime.call("ADD", old).code == 0
    lease = host.agent.subnet_file.read_text()
    gateway = host.agent.subnet_env()["FLANNEL_SUBNET"]
    another = host.directory / "another.env"
    another.write_text(lease.replace(gateway, "10.42.200.1/24"))
    changed = site(alone, host, subnetFile=str(another))
    code, message = changed.runtime.call("ADD", new).error
    assert (code, message.split(":")[0]) == (103, f"cni0 still has {gateway} of an earlier lease")
    assert len(here.ports()) == 1
    assert here.runtime.call("DEL", old).code == 0
    assert str(address(changed.runtime.call("ADD", new))) == "10.42.200.2"
    shown = host.namespace.run(["ip", "-4", "addr", "show", "cni0"]).stdout
    assert ("10.42.200.1/24" in shown, gateway in shown) == (True, False)
    assert changed.runtime.call("DEL", new).code == 0
    assert (here.addresses(), here.ports(), here.kept(), here.rules()) == ([], [], [], [])


def test_containers_that_come_at_once_make_a_bridge_anew_once(alone: Lab) -> None:
    [host] = alone.hosts
    host.namespace.ip("link add cni0 type bridge", "addr add 10.42.200.1/24 dev cni0")
    here = site(alone, host)
    names = namespaces(alone, host, AT_ONCE)
    given = [address(answer) for answer in at_once(here, "ADD", names)]
    assert len(set(given)) == len(here.ports()) == AT_ONCE
    assert {answer.code for answer in at_once(here, "DEL", names)} == {0}


def test_an_address_outside_the_subnet_is_refused_and_nothing_is_left(alone: Lab) -> None:
    [host] = alone.hosts
    here = site(alone, host, ipam={"type": "static", "addresses": [{"address": "10.99.0.5/24"}]})
    [name] = namespaces(alone, host, 1)
    code, message = here.runtime.call("ADD", name).error
    assert code == 102
    assert message.startswith("10.99.0.5/24 is not in this host's subnet")
    assert (here.ports(), here.kept(), here.rules()) == ([], [], [])
    assert "eth0" not in alone.run.namespace(f"{host.name}k1").run(["ip", "link"]).stdout


def test_check_finds_an_interface_that_somebody_removed_and_gc_releases_its_address(alone: Lab) -> None:
    [host] = alone.hosts
    here = site(alone, host, "1.1.0")
    stays, goes = namespaces(alone, host, 2)
    result = [here.runtime.call("ADD", name).said for name in (stays, goes)][1]
    alone.run.namespace(f"{host.name}k2").ip("link del eth0")
    assert here.runtime.call("CHECK", goes, prevResult=result).code == 1
    assert len(here.addresses()) == 2
    valid = {"cni.dev/valid-attachments": [{"containerID": stays, "ifname": "eth0"}]}
    collector = replace(here.runtime, conf={**here.runtime.conf, **valid})
    assert collector.call("GC").code == 0
    assert len(here.addresses()) == 1
    assert [path.name for path in here.kept()] == [f"{stays}:eth0"]
    assert here.runtime.call("DEL", stays).code == 0
    assert here.addresses() == []


def test_two_calls_for_one_container_wait_for_each_other(alone: Lab) -> None:
    [host] = alone.hosts
    here = site(alone, host)
    [name] = namespaces(alone, host, 1)
    for _ in range(3):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            calls = [pool.submit(here.runtime.call, command, name) for command in ("ADD", "ADD", "DEL", "ADD") * 2]
        answers = [call.result() for call in calls]
        assert any(answer.code == 0 and answer.said.get("ips") for answer in answers)
        assert here.runtime.call("DEL", name).code == 0
        assert (here.addresses(), here.ports(), here.kept(), here.rules()) == ([], [], [], [])


def test_both_families_have_an_address_and_reach_their_neighbour() -> None:
    with Lab(Plan(hosts=1, overlay="none")) as lab:
        [host] = lab.hosts
        ipv6 = "FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:5::1/64\n"
        ipv4 = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\n"
        host.agent.subnet_file.write_text(f"{ipv4}{ipv6}FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n")
        here = site(lab, host)
        one, other = namespaces(lab, host, 2)
        here.runtime.call("ADD", one)
        ips = [ip["address"] for ip in here.runtime.call("ADD", other).said["ips"]]
        assert ips == ["10.42.5.3/24", "fd00:42:0:5::3/64"]
        for ip in ips:
            ping_once = ["ping", "-c", "1", "-w", "10", str(ip_interface(ip).ip)]
            lab.run.namespace(f"{host.name}k1").run(ping_once)
        for name in (one, other):
            assert here.runtime.call("DEL", name).code == 0
        assert (here.addresses(), here.ports(), here.kept()) == ([], [], [])
