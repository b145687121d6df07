"""Dual stack and IPv6 alone on real kernels, with a real etcd: two hosts reach each other's subnets in each family.

h1 (flannel.1, flannel-v6.1) ── core: etcd ── h2      no containers: loopback has the subnet's first address
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ipaddress import IPv6Interface, ip_interface

import pytest

from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.netns.conftest import MakeLab
from tests.patience import patient, within

pytestmark = pytest.mark.root

IPV6 = {"EnableIPv6": True, "IPv6Network": "fd42::/48"}
PREFIX = "/coreos.com/network/subnets/"


def until(condition: Callable[[], object], what: str, timeout: float = 15) -> None:
    deadline = within(timeout)
    while not condition():
        assert time.monotonic() < deadline, f"not within {patient(timeout):g} s: {what}"
        time.sleep(0.02)


def prepare(lab: Lab) -> None:
    """Give the hosts IPv6 addresses on the underlay."""
    for number, host in enumerate(lab.hosts, 1):
        host.namespace.ip(f"addr add 2001:db8:30::{number}/64 dev eth0 nodad")


def start(lab: Lab, *arguments: str) -> None:
    for host in lab.hosts:
        host.agent.start(*arguments)
    for host in lab.hosts:
        host.agent.wait_ready()


def inhabit(host: Host) -> None:
    """Let somebody live in the host's subnets, at their first addresses."""
    env = host.agent.subnet_env()
    for name in {"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"} & env.keys():
        dad = " nodad" if ":" in env[name] else ""
        host.namespace.ip(f"addr add {ip_interface(env[name]).ip} dev lo{dad}")


def reaches(here: Host, there: Host, name: str) -> bool:
    """Ping from subnet to subnet with the largest packet that fits."""
    source, target = (ip_interface(host.agent.subnet_env()[name]).ip for host in (here, there))
    header = 28 if target.version == 4 else 48
    size = int(here.agent.subnet_env()["FLANNEL_MTU"]) - header
    command = ["ping", "-n", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", str(size), "-I", str(source), str(target)]
    return here.namespace.run(command, check=False).returncode == 0


def both_ways(lab: Lab, name: str) -> None:
    one, two = lab.hosts
    until(lambda: reaches(one, two, name), f"h1 reaches h2 by {name}")
    until(lambda: reaches(two, one, name), f"h2 reaches h1 by {name}")


def keys(lab: Lab) -> list[str]:
    assert lab.etcd is not None
    found = lab.etcd.ctl("get", "--prefix", "--keys-only", PREFIX).splitlines()
    return [key.removeprefix(PREFIX) for key in found if key]


def configure(lab: Lab, **config: object) -> None:
    assert lab.etcd is not None
    document = {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}, **config}
    lab.etcd.ctl("put", "/coreos.com/network/config", stdin=json.dumps(document).encode())


def test_dual_stack(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none", config=IPV6)
    prepare(lab)
    start(lab)
    for host in lab.hosts:
        inhabit(host)
        env = host.agent.subnet_env()
        assert env["FLANNEL_IPV6_NETWORK"] == "fd42::/48"
        assert env["FLANNEL_MTU"] == "1430", "what fits in both families"
    both_ways(lab, "FLANNEL_SUBNET")
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    for host in lab.hosts:
        shown = json.loads(host.namespace.run(["ip", "-j", "-d", "link", "show", "dev", "flannel-v6.1"]).stdout)[0]
        assert shown["mtu"] == 1430
        assert "local6" in shown["linkinfo"]["info_data"]


@pytest.mark.parametrize(
    ("vni", "devices"),
    [(0, {"flannel.0", "flannel-v6.0"}), (2**24 - 1, {"flannel4xffffff", "flannel6xffffff"})],
)
def test_every_vni_there_is(make_lab: MakeLab, vni: int, devices: set[str]) -> None:
    """The first by the kernel on one host and in userspace on the other; and nothing is left of it afterwards."""
    lab = make_lab(hosts=2, containers=0, overlay="none", config=IPV6, backend_options={"VNI": vni})
    prepare(lab)
    for host, datapath in zip(lab.hosts, ("kernel", "userspace"), strict=True):
        host.agent.start("--datapath", datapath, "--ip-masq", "--firewall", "iptables")
    for host in lab.hosts:
        host.agent.wait_ready()
        inhabit(host)
        assert ours(host) == devices
    both_ways(lab, "FLANNEL_SUBNET")
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    for host in lab.hosts:
        until(lambda host=host: "FLANNEL-POSTRTG-" in rules(host), "masquerade rules are there")  # type: ignore[misc]
        host.agent.terminate()
        host.namespace.run([DEFAULT_FLANNELD, "--cleanup", "--subnet-file", host.agent.subnet_file])
        assert ours(host) == set()
        assert "FLANNEL" not in rules(host)


def rules(host: Host) -> str:
    return host.namespace.run(["iptables-save"]).stdout


def ours(host: Host) -> set[str]:
    links = json.loads(host.namespace.run(["ip", "-j", "link", "show"]).stdout)
    return {link["ifname"] for link in links if link["ifname"].startswith("flannel")}


def test_ipv6_alone(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none", config={**IPV6, "EnableIPv4": False})
    prepare(lab)
    start(lab)
    for host in lab.hosts:
        inhabit(host)
        assert "FLANNEL_SUBNET" not in host.agent.subnet_env()
        assert host.namespace.run(["ip", "link", "show", "dev", "flannel.1"], check=False).returncode != 0
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    assert all(key.startswith("0.0.0.0-31&fd42:") for key in keys(lab))
    before = [host.agent.subnet_env() for host in lab.hosts]
    for host in lab.hosts:
        host.agent.restart()
    for host in lab.hosts:
        host.agent.wait_ready()
    assert [host.agent.subnet_env() for host in lab.hosts] == before


def test_ipv6_is_turned_on_and_off_without_touching_ipv4(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none")
    prepare(lab)
    start(lab)
    before = [host.agent.subnet_env()["FLANNEL_SUBNET"] for host in lab.hosts]
    for host in lab.hosts:
        inhabit(host)
    both_ways(lab, "FLANNEL_SUBNET")
    configure(lab, **IPV6)
    for host in lab.hosts:
        host.agent.restart()
        host.agent.wait_ready()
        address = IPv6Interface(host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).ip
        host.namespace.ip(f"addr add {address} dev lo nodad")
        until(lambda: reaches(lab.hosts[0], lab.hosts[1], "FLANNEL_SUBNET"), "IPv4 still works")
    assert [host.agent.subnet_env()["FLANNEL_SUBNET"] for host in lab.hosts] == before
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    assert len(keys(lab)) == 2
    configure(lab)
    for host in lab.hosts:
        host.agent.restart()
        host.agent.wait_ready()
    assert [host.agent.subnet_env()["FLANNEL_SUBNET"] for host in lab.hosts] == before
    both_ways(lab, "FLANNEL_SUBNET")


def test_what_others_do_to_the_ipv6_device_is_repaired(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none", config=IPV6)
    prepare(lab)
    start(lab)
    for host in lab.hosts:
        inhabit(host)
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    one, two = lab.hosts
    one.namespace.ip(f"route del {IPv6Interface(two.agent.subnet_env()['FLANNEL_IPV6_SUBNET']).network}")
    one.namespace.run(["ip", "-6", "neigh", "flush", "dev", "flannel-v6.1", "nud", "permanent"])
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    one.namespace.ip("link del flannel-v6.1")
    both_ways(lab, "FLANNEL_IPV6_SUBNET")
    both_ways(lab, "FLANNEL_SUBNET")
