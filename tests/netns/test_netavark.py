"""The netavark plugin with the real bridge, host-local and portmap, called as netavark calls it.

netavark (the test) ── flannel-py ── bridge ── host-local, then portmap        in h1's namespace

container eth0 ── veth ── cni0 .1 ── h1
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from flanneld_py.agent.cni.command import install
from tests.cni_call import Answer
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace, batch
from tests.lab.topology import Plan
from tests.patience import patient

pytestmark = pytest.mark.root

IPV4 = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/29\n"
IPV6 = "FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:5::1/64\n"
REST = "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
ADDRESSES = 5
"""Of a /29, the gateway's left out."""
PORT = {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}
KILLED_AFTER = (0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
"""Seconds: from Python's start to portmap's rules."""


@dataclass(frozen=True, slots=True)
class Site:
    """A host with a lease, and who calls the plugin there."""

    lab: Lab
    host: Host
    launcher: Path

    @property
    def state(self) -> Path:
        return self.host.directory / "state"

    def container(self, name: str) -> Namespace:
        """Make a container's network namespace."""
        made = self.lab.run.namespace(f"{self.host.name}{name}")
        batch("ip", [f"netns add {made.name}"])
        return made

    def start(self, command: str, container: str, namespace: Namespace | str, **more: Any) -> subprocess.Popen[str]:
        """Start a call."""
        options = {"subnet_file": str(self.host.agent.subnet_file), "data_dir": str(self.state)}
        asked = {
            "container_id": container,
            "container_name": container,
            "port_mappings": more.pop("ports", None),
            "network": {"name": "overlay", "driver": "flannel-py", "options": options},
            "network_options": {"interface_name": more.pop("interface", "eth0"), **more},
        }
        place = namespace if isinstance(namespace, str) else str(namespace.path)
        argv = ["nsenter", f"--net={self.host.namespace.path}", "--", str(self.launcher), command, place]
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, command: str, container: str, namespace: Namespace | str, **more: Any) -> Answer:
        """Call to the end."""
        with self.start(command, container, namespace, **more) as process:
            out, err = process.communicate(timeout=patient(60))
        return Answer(process.returncode, json.loads(out or "{}"), err)

    def left(self) -> list[str]:
        """What there is of containers: records, addresses, interfaces, rules."""
        kept = [path.name for place in ("attachments", "addresses/*") for path in self.state.glob(f"{place}/*")]
        shown = self.host.namespace.run(["ip", "-j", "link", "show", "type", "veth"]).stdout
        veths = [link["ifname"] for link in json.loads(shown) if link["ifname"] != "eth0"]
        saved = "".join(self.host.namespace.run([f"{tool}-save"]).stdout for tool in ("iptables", "ip6tables"))
        rules = [line for line in saved.splitlines() if "CNI-DN-" in line]
        return [name for name in kept if name != "lock" and not name.startswith("last_")] + veths + rules


@pytest.fixture(scope="module")
def one_host() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Lab(Plan(hosts=1, overlay="none")) as lab:
        yield lab


@pytest.fixture
def site(one_host: Lab) -> Iterator[Site]:
    [host] = one_host.hosts
    host.agent.subnet_file.write_text(IPV4 + IPV6 + REST)
    here = Site(one_host, host, install(host.directory / "bin"))
    yield here
    for name in one_host.run.namespaces():
        if name != host.namespace.name and name.startswith(host.namespace.name):
            Namespace(name).delete()
    host.namespace.run(["ip", "link", "del", "cni0"], check=False)
    for tool in ("iptables", "ip6tables"):
        for what in ("--flush", "--delete-chain"):
            host.namespace.run([tool, "--table", "nat", what])
    shutil.rmtree(here.state, ignore_errors=True)


def addresses(answer: Answer, interface: str = "eth0") -> list[str]:
    assert answer.code == 0, answer
    return [str(ip_interface(each["ipnet"]).ip) for each in answer.said["interfaces"][interface]["subnets"]]


def test_a_container_gets_both_families_a_port_and_the_leases_mtu_and_leaves_nothing(site: Site) -> None:
    one, other = site.container("k1"), site.container("k2")
    assert addresses(site.call("setup", "c1", one)) == ["10.42.5.2", "fd00:42:0:5::2"]
    answer = site.call("setup", "c2", other, ports=[PORT], interface="net7")
    shown = json.loads(other.run(["ip", "-j", "address", "show", "net7"]).stdout)[0]
    assert answer.said["interfaces"]["net7"]["mac_address"] == shown["address"]
    assert shown["mtu"] == 1430
    assert {info["local"] for info in shown["addr_info"]} > set(addresses(answer, "net7"))
    for address in addresses(answer, "net7"):
        assert " 0% packet loss" in one.run(["ping", "-c", "1", "-w", "10", address]).stdout
    assert site.call("teardown", "c2", other, interface="net7") == Answer(0, {}, "")
    assert site.call("teardown", "c1", one) == Answer(0, {}, "")
    assert site.left() == []


def test_an_address_and_a_mac_that_are_asked_for(site: Site) -> None:
    [one, other] = [site.container(name) for name in ("k1", "k2")]
    wanted = ["10.42.5.4", "fd00:42:0:5::44"]
    answer = site.call("setup", "c1", one, static_ips=wanted, static_mac="02:42:00:00:00:44")
    assert addresses(answer) == wanted
    assert answer.said["interfaces"]["eth0"]["mac_address"] == "02:42:00:00:00:44"
    again = site.call("setup", "c2", other, static_ips=["10.42.5.4"])
    assert again.said["error"].startswith(
        "bridge: failed to allocate for range 0: requested IP address 10.42.5.4 is not"
    )
    outside = site.call("setup", "c2", other, static_ips=["10.42.6.4"])
    assert outside.said["error"].startswith("10.42.6.4 is not in this host's subnet 10.42.5.0/29")
    assert site.call("teardown", "c1", one).code == 0
    assert site.left() == []


def test_a_full_pool_says_so_and_takes_back_what_containers_without_a_namespace_had(site: Site) -> None:
    names = [f"k{number}" for number in range(ADDRESSES + 1)]
    namespaces = [site.container(name) for name in names]
    for name, namespace in zip(names[:-1], namespaces, strict=False):
        assert site.call("setup", name, namespace, ports=[{**PORT, "host_port": 8000 + int(name[1:])}]).code == 0
    full = site.call("setup", names[-1], namespaces[-1])
    assert full.code == 1
    assert "no IP addresses available in range set" in full.said["error"]
    # netavark tears down nothing of a container whose namespace is gone.
    namespaces[1].delete()
    assert addresses(site.call("setup", names[-1], namespaces[-1]))[0] == "10.42.5.3"
    for name, namespace in zip(names, namespaces, strict=True):
        assert site.call("teardown", name, namespace).code == 0
    assert site.left() == []


def test_setup_twice_is_refused_and_the_container_keeps_its_network(site: Site) -> None:
    one = site.container("k1")
    [first, *_] = addresses(site.call("setup", "c1", one, ports=[PORT]))
    before = site.left()
    assert "is set up already" in site.call("setup", "c1", one, ports=[PORT]).said["error"]
    assert site.left() == before
    assert " 0% packet loss" in site.host.namespace.run(["ping", "-c", "1", "-w", "10", first]).stdout
    for _ in range(2):
        assert site.call("teardown", "c1", one, ports=[PORT]) == Answer(0, {}, "")
    assert site.left() == []


def test_teardown_of_what_never_was_or_whose_namespace_is_gone(site: Site) -> None:
    assert site.call("teardown", "never", "/run/netns/never", ports=[PORT]) == Answer(0, {}, "")
    one = site.container("k1")
    assert site.call("setup", "c1", one, ports=[PORT]).code == 0
    one.delete()
    assert site.call("teardown", "c1", str(one.path)) == Answer(0, {}, "")
    assert site.left() == []
    gone = site.call("setup", "c1", str(one.path))
    assert gone.said["error"].startswith(f"{one.path} is no network namespace")
    assert site.left() == []


@pytest.mark.parametrize("after", KILLED_AFTER)
def test_a_setup_that_was_killed_is_undone_by_the_next_start_of_the_container(site: Site, after: float) -> None:
    first, second = site.container("k1"), site.container("k2")
    with site.start("setup", "c1", first, ports=[PORT]) as process:
        time.sleep(after)
        process.kill()
    first.delete()
    assert len(addresses(site.call("setup", "c1", second, ports=[PORT]))) == 2
    assert len([name for name in site.left() if name.startswith("veth")]) == 1
    assert site.call("teardown", "c1", second).code == 0
    assert site.left() == []


def test_containers_at_once(site: Site) -> None:
    names = [f"k{number}" for number in range(ADDRESSES)]
    namespaces = [site.container(name) for name in names]
    with ThreadPoolExecutor(ADDRESSES) as pool:
        answers = list(pool.map(lambda name, namespace: site.call("setup", name, namespace), names, namespaces))
        assert len({addresses(answer)[0] for answer in answers}) == ADDRESSES
        ended = list(pool.map(lambda name, namespace: site.call("teardown", name, namespace), names, namespaces))
    assert [answer.code for answer in ended] == [0] * ADDRESSES
    assert site.left() == []


def test_an_internal_network_reaches_the_overlay_alone(site: Site) -> None:
    one = site.container("k1")
    options = {"subnet_file": str(site.host.agent.subnet_file), "data_dir": str(site.state), "no_default_route": "true"}
    asked = {
        "container_id": "c1",
        "network": {"name": "overlay", "options": options},
        "network_options": {"interface_name": "eth0"},
    }
    done = site.host.namespace.run([site.launcher, "setup", one.path], stdin=json.dumps(asked))
    assert json.loads(done.stdout)["interfaces"]
    routes = one.run(["ip", "-4", "route"]).stdout
    assert ("10.42.0.0/16 via 10.42.5.1" in routes, "default" in routes) == (True, False)
    assert site.call("teardown", "c1", one).code == 0
    assert site.left() == []


def test_rootless_podman_is_told_that_it_is(site: Site) -> None:
    one = site.container("k1")
    asked = {
        "container_id": "c1",
        "network": {"name": "overlay", "options": {"subnet_file": "/absent", "data_dir": str(site.state)}},
        "network_options": {"interface_name": "eth0"},
    }
    argv = ["unshare", "--user", "--map-root-user", str(site.launcher), "setup", str(one.path)]
    said = json.loads(site.host.namespace.run(argv, stdin=json.dumps(asked), check=False).stdout)
    assert said["error"].startswith("there is no /absent here: rootless podman has a network of its own")
    assert site.left() == []


def test_a_data_folder_that_cannot_be_made_is_named(site: Site) -> None:
    site.state.write_text("")
    one = site.container("k1")
    answer = site.call("setup", "c1", one)
    site.state.unlink()
    assert (answer.code, str(site.state) in answer.said["error"]) == (1, True)
    assert site.left() == []
