"""Real hosts whose underlay changes under a running ping: the subnet stays, traffic goes on, foreign things stay.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core: etcd, router      (the picture: tests/lab/__init__.py)
         └───┘ eth1, where a test has one

Outages are printed (pytest -s), not judged: they are the time in which changes settle, and what etcd takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface, ip_address, ip_interface
from typing import Any

import pytest

from tests.lab.agent import Agent
from tests.lab.host import Container, Host
from tests.lab.lab import CLIENT_PORT, DEFAULT_FLANNELD, Lab
from tests.lab.measure import PingStream, ping, ping_through
from tests.lab.topology import mac
from tests.netns.conftest import LEASED, MakeLab
from tests.patience import patient, within

pytestmark = pytest.mark.root

PREFIX = "/coreos.com/network/subnets/"
DUAL = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}
NEW = "172.30.0.112"
NEW6 = "2001:db8:30::112"
KINDS = pytest.mark.parametrize("kind", ["kernel", "userspace"])


def until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Wait for a condition on a deadline."""
    deadline = within(timeout)
    while not condition():
        assert time.monotonic() < deadline, f"not within {patient(timeout):g} s: {what}"
        time.sleep(0.02)


def device(host: Host, name: str = "flannel.1") -> dict[str, Any]:
    found = json.loads(host.namespace.run(["ip", "-d", "-j", "link", "show"]).stdout)
    return next((link for link in found if link["ifname"] == name), {})


def local(host: Host, name: str = "flannel.1") -> str:
    """The outer source address of a host's device."""
    data = device(host, name).get("linkinfo", {}).get("info_data", {})
    return str(data.get("local") or data.get("local6", ""))


def parent(host: Host) -> str:
    return str(device(host)["linkinfo"]["info_data"]["link"])


def leases(lab: Lab) -> dict[str, str]:
    """What is published: PublicIP by subnet."""
    assert lab.etcd is not None
    found = lab.etcd.ctl("get", "--prefix", PREFIX).splitlines()
    values = zip(found[::2], found[1::2], strict=True)
    return {key.removeprefix(PREFIX): json.loads(value)["PublicIP"] for key, value in values}


def public(lab: Lab, host: Host) -> str:
    subnet = IPv4Interface(host.agent.subnet_env()["FLANNEL_SUBNET"]).network
    return next(address for key, address in leases(lab).items() if key.startswith(str(subnet).replace("/", "-")))


def readdress(lab: Lab, host: Host, new: str) -> None:
    """Give a host another address, as a DHCP server does."""
    host.namespace.ip(
        "addr flush dev eth0 scope global", f"addr add {new}/24 dev eth0", f"route add default via {lab.plan.gateway}"
    )


def outage(stream: PingStream, what: str) -> None:
    """Stop a ping that works again and print how long it did not."""
    stream.wait_replies(20)
    passage = stream.stop()
    print(f"\n{what}: {passage.longest_gap:.2f} s without a reply, {passage.sent - passage.received} pings lost")


def by_default_route(lab: Lab, host: Host, *arguments: str) -> None:
    """Let the host's agent choose its interface itself."""
    command = [str(DEFAULT_FLANNELD), "--etcd-endpoints", f"http://{lab.plan.gateway}:{CLIENT_PORT}", *arguments]
    host.agent = Agent(host.name, host.namespace, host.directory, command)


def connected(lab: Lab) -> None:
    assert lab.wait_connected(30) == []


@contextmanager
def carried(make_lab: MakeLab, kind: str) -> Iterator[Lab]:
    """Two hosts that reach each other, their packets carried by `kind`; no data plane stays at the end."""
    lab = make_lab(hosts=2, agent_args=("--datapath", kind))
    with ExitStack() as stops:
        if kind == "userspace":
            for host in lab.hosts:
                stops.callback(stop_datapath, host)
        connected(lab)
        yield lab


@pytest.fixture
def two(make_lab: MakeLab) -> Lab:
    lab = make_lab(hosts=2)
    connected(lab)
    return lab


@KINDS
def test_another_address(make_lab: MakeLab, kind: str) -> None:
    with carried(make_lab, kind) as lab:
        one, two = lab.hosts
        before = two.agent.subnet_env()
        with ping_through(*lab.pairs()[0]) as stream:
            stream.wait_replies(3)
            readdress(lab, two, NEW)
            until(lambda: public(lab, two) == NEW, "the lease has the new address")
            outage(stream, f"another address, {kind}")
        connected(lab)
        assert two.agent.subnet_env() == before
        if kind == "kernel":
            assert local(two) == NEW
            shown = one.namespace.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout
            assert NEW in shown
            assert str(two.address) not in shown
        assert one.agent.alive
        assert two.agent.alive


def stop_datapath(host: Host) -> None:
    host.agent.close()
    host.namespace.run([DEFAULT_FLANNELD, "--datapath-stop", "--subnet-file", host.agent.subnet_file], check=False)


def test_another_address_in_both_families(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none", config=DUAL)
    for number, host in enumerate(lab.hosts, 1):
        host.namespace.write_sysctl("net.ipv6.conf.all.forwarding", "1")
        host.namespace.ip(f"addr add 2001:db8:30::{number}/64 dev eth0 nodad")
        host.agent.start()
    stations = []
    for host in lab.hosts:
        host.agent.wait_ready()
        address = ip_interface(host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).ip
        host.namespace.ip(f"addr add {address} dev lo nodad")
        stations.append(Container(host.name, host.namespace, address, host.name))  # type: ignore[arg-type]
    one, two = stations
    until(lambda: one.namespace.run(["ping", "-c1", "-W0.3", str(two.address)], check=False).returncode == 0, "IPv6")
    with ping_through(one, two) as stream:
        stream.wait_replies(3)
        host = lab.hosts[1]
        host.namespace.ip(f"addr add {NEW6}/64 dev eth0 nodad", "addr del 2001:db8:30::2/64 dev eth0")
        until(lambda: local(host, "flannel-v6.1") == NEW6, "the device has the new address")
        outage(stream, "another IPv6 address, kernel")
    assert local(host) == str(host.address)
    host.namespace.ip("link set eth0 mtu 1400")
    until(lambda: host.agent.subnet_env()["FLANNEL_MTU"] == "1330", "the MTU of the family that has less")
    # The file is written when the change is known, the devices follow.
    until(lambda: [device(host, name)["mtu"] for name in ("flannel.1", "flannel-v6.1")] == [1350, 1330], "the devices")
    assert ping(two, one, count=2, payload=1330 - 48).received == 2


def test_an_interface_that_goes_and_comes_back(two: Lab) -> None:
    host = two.hosts[1]
    vtep = device(host)["address"]
    with ping_through(*two.pairs()[0]) as stream:
        stream.wait_replies(3)
        host.namespace.ip("link del eth0")
        until(lambda: "the underlay is gone" in host.agent.log_tail(), "it says so")
        assert host.agent.subnet_file.exists()
        here, core = host.namespace.name, two.core.name
        host.namespace.ip(
            f"link add name eth0 address {mac(host.address)} mtu 1500 type veth peer name {host.name} netns {core}",
        )
        two.core.ip(f"link set {host.name} master br0 up")
        host.namespace.ip("link set eth0 up")
        readdress(two, host, str(host.address))
        outage(stream, f"interface of {here} gone and back")
    connected(two)
    assert device(host)["address"] == vtep
    assert host.agent.log_tail().count("the underlay is gone") == 1


def test_an_interface_that_is_renamed(two: Lab) -> None:
    """Chosen by name it is gone, and everything goes on; chosen by the default route it is followed."""
    host = two.hosts[1]
    with ping_through(*two.pairs()[0]) as stream:
        stream.wait_replies(3)
        rename(two, host, "eth0", "eth9")
        until(lambda: "the underlay is gone" in host.agent.log_tail(), "it says so")
        stream.wait_replies(20)
        host.agent.terminate()
        by_default_route(two, host)
        host.agent.start()
        host.agent.wait_ready()
        assert parent(host) == "eth9"
        rename(two, host, "eth9", "uplink")
        until(lambda: "on uplink" in host.agent.log_tail(), "it is followed")
        outage(stream, "renamed twice")
    connected(two)
    assert parent(host) == "uplink"


def rename(lab: Lab, host: Host, old: str, new: str) -> None:
    host.namespace.ip(
        f"link set {old} down",
        f"link set {old} name {new}",
        f"link set {new} up",
        f"route add default via {lab.plan.gateway}",
    )


@KINDS
def test_another_mtu(make_lab: MakeLab, kind: str) -> None:
    with carried(make_lab, kind) as lab:
        host = lab.hosts[1]
        before = host.agent.subnet_env()
        with ping_through(*lab.pairs()[0]) as stream:
            stream.wait_replies(3)
            host.namespace.ip("link set eth0 mtu 1400")
            until(lambda: host.agent.subnet_env()["FLANNEL_MTU"] == "1350", "the file is written again")
            outage(stream, f"another MTU, {kind}")
        assert host.agent.subnet_env() == {**before, "FLANNEL_MTU": "1350"}
        until(lambda: device(host)["mtu"] == 1350, "the device has it")
        assert "restart the container engine" in host.agent.log_tail()
        container = next(each for each in lab.containers if each.host == host.name)
        other = next(each for each in lab.containers if each.host != host.name)
        until(lambda: ping(container, other, payload=1350 - 28).loss == 0.0, "the largest packet that fits")
        host.namespace.ip("link set eth0 mtu 100")
        until(lambda: "cannot be carried" in host.agent.log_tail(), "it says that this is too small")
        assert device(host)["mtu"] == 1350
        host.namespace.ip("link set eth0 mtu 1500")
        until(lambda: host.agent.subnet_env() == before, "and back")


def test_the_default_route_moves(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none")
    host = lab.hosts[1]
    here, core = host.namespace, lab.core
    core.write_sysctl("net.ipv4.ip_forward", "1")
    core.ip(
        f"link add name up1 mtu 1500 type veth peer name eth1 netns {here.name}",
        "addr add 10.99.1.1/24 dev up1",
        "link set up1 up",
    )
    here.ip("addr add 10.99.1.2/24 dev eth1", "link set eth1 mtu 1400 up")
    by_default_route(lab, host)
    for each in lab.hosts:
        each.agent.start()
    for each in lab.hosts:
        each.agent.wait_ready()
        lab.attach(each)
    connected(lab)
    before = host.agent.subnet_env()
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(3)
        here.ip("route replace default via 10.99.1.1 dev eth1", "link set eth0 down")
        until(lambda: public(lab, host) == "10.99.1.2", "the lease has the other interface's address")
        outage(stream, "default route moved to another interface")
    connected(lab)
    assert (parent(host), local(host)) == ("eth1", "10.99.1.2")
    assert host.agent.subnet_env() == {**before, "FLANNEL_MTU": "1350"}


def test_behind_nat_the_published_address_stays(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none")
    one, two = lab.hosts
    outside = "203.0.113.12"
    lab.core.write_sysctl("net.ipv4.ip_forward", "1")

    def translate(inside: str) -> None:
        rule = f"ip daddr {outside} notrack ip daddr set {inside}"
        chain = f"chain pre {{\ntype filter hook prerouting priority raw;\n{rule}\n}}"
        fresh = "table ip nat1\ndelete table ip nat1\n"
        lab.core.run(["nft", "-f", "-"], stdin=f"{fresh}table ip nat1 {{\n{chain}\n}}\n")

    translate(str(two.address))
    one.agent.start()
    two.agent.start("--public-ip", outside)
    for host in lab.hosts:
        host.agent.wait_ready()
        lab.attach(host)
    connected(lab)
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(3)
        translate(NEW)
        readdress(lab, two, NEW)
        until(lambda: local(two) == NEW, "the device has the new address")
        outage(stream, "another address behind NAT")
    assert public(lab, two) == outside
    connected(lab)


def test_an_interface_that_is_not_there_yet_is_waited_for(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none")
    host = lab.hosts[0]
    by_default_route(lab, host, "--iface", "eth7")
    host.agent.start()
    until(lambda: "no interface with an IPv4 address matches eth7" in host.agent.log_tail(), "it says so")
    assert not device(host)
    rename(lab, host, "eth0", "eth7")
    host.agent.wait_ready()
    assert (parent(host), ip_address(local(host))) == ("eth7", host.address)


def test_the_broadcast_address_of_the_underlay_is_nobodys(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none")
    broadcast = str(lab.plan.underlay.broadcast_address)
    one, two = lab.hosts
    two.agent.start("--public-ip", broadcast)
    until(lambda: f"--public-ip {broadcast} is the broadcast address of eth0" in two.agent.log_tail(), "it is refused")
    assert lab.etcd is not None
    value = {"PublicIP": broadcast, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "02:99:00:00:00:09"}}
    lab.etcd.ctl("put", f"{PREFIX}10.42.99.0-24", stdin=json.dumps(value).encode())
    one.agent.start()
    one.agent.wait_ready()
    assert f"PublicIP {broadcast} is the broadcast address" in one.agent.log_tail()
    assert broadcast not in one.namespace.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout
