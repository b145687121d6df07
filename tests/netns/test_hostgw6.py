"""Routes without a tunnel over IPv6, beside IPv4 and alone: host-gw, alloc, DirectRouting of vxlan, with real etcd.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core: etcd      (the picture: tests/lab/__init__.py; IPv6: ipv6.py)
h3c1 ── h3 ──┘

A host is put into "another layer-2 network" for its peer by a route to it by way of core, which forwards: in each
family apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import IPv6Interface
from itertools import permutations

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping, ping_through
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import Container6, attach6, underlay6
from tests.netns.test_agent import etcd, nothing_lost, show, subnet, until
from tests.netns.test_hostgw import DIRECT, gateways, leave_the_link, wanted
from tests.netns.test_userspace import shown
from tests.netns.userspace import UNDERLAY6, ends6

pytestmark = pytest.mark.root

IPV6 = {"EnableIPv6": True, "IPv6Network": "fd42::/48"}
DUAL = {**LEASED, **IPV6}
ALONE = {"EnableIPv4": False, **IPV6}
CORE6 = UNDERLAY6[1]

Start = Callable[..., tuple[Lab, list[Container6]]]


@pytest.fixture
def start(make_lab: MakeLab) -> Start:
    """Make a lab with its agents, and containers with IPv6 addresses."""

    def make(backend: str, config: object, hosts: int = 3, **plan: object) -> tuple[Lab, list[Container6]]:
        lab = make_lab(hosts=hosts, overlay="none", backend=backend, config=config, **plan)
        underlay6(lab)
        lab.core.ip(f"addr add {CORE6}/{UNDERLAY6.prefixlen} dev br0 nodad")
        lab.core.write_sysctl("net.ipv4.ip_forward", "1")
        lab.core.write_sysctl("net.ipv6.conf.all.forwarding", "1")
        for host in lab.hosts:
            host.agent.start()
        for host in lab.hosts:
            host.agent.wait_ready()
        return lab, attach6(lab)

    return make


def subnet6(host: Host) -> str:
    return str(IPv6Interface(host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).network)


def address6(lab: Lab, host: Host) -> str:
    return str(ends6(lab)[lab.hosts.index(host)].underlay)


def gateways6(host: Host) -> dict[str, str]:
    """Our IPv6 routes on the underlay interface."""
    return {
        route["dst"]: route["gateway"]
        for route in show(host, "ip", "-6", "route", "show", "dev", "eth0", "proto", "76")
    }


def wanted6(lab: Lab, host: Host) -> dict[str, str]:
    return {subnet6(other): address6(lab, other) for other in lab.hosts if other is not host}


def in_tunnel6(host: Host) -> list[str]:
    """The subnets of peers behind the tunnel, if all that is on the device belongs together."""
    routes = [route["dst"] for route in show(host, "ip", "-6", "route", "show", "dev", "flannel-v6.1", "proto", "76")]
    neighbours = show(host, "ip", "-6", "neigh", "show", "dev", "flannel-v6.1", "nud", "permanent")
    unicast = [each for each in neighbours if not each["dst"].startswith("ff")]
    forwarding = [each for each in show(host, "bridge", "fdb", "show", "dev", "flannel-v6.1") if "dst" in each]
    return sorted(routes) if len(routes) == len(unicast) == len(forwarding) else ["incomplete"]


def leave_the_link6(lab: Lab, host: Host, other: Host) -> None:
    """Let a host reach another over IPv6 by way of core only."""
    host.namespace.ip(f"route add {address6(lab, other)}/128 via {CORE6}")


def join_the_link6(lab: Lab, host: Host, other: Host) -> None:
    host.namespace.ip(f"route del {address6(lab, other)}/128 via {CORE6}")


def all_reach_all(stations: list[Station], mtu: int = 1500) -> None:
    for a, b in permutations(stations, 2):
        until(lambda a=a, b=b: ping(a, b, count=1).received, f"{a.name} reaches {b.name} at {b.address}", 20)  # type: ignore[misc]
        payload = mtu - (28 if b.address.version == 4 else 48)
        assert ping(a, b, payload=payload, interval=0.1).loss == 0


def all_routes(lab: Lab) -> None:
    for host in lab.hosts:
        until(lambda host=host: gateways6(host) == wanted6(lab, host), f"{host.name} has all routes")  # type: ignore[misc]


def test_dual_stack_every_pair_answers_in_both_families(start: Start) -> None:
    lab, containers6 = start("host-gw", DUAL)
    all_routes(lab)
    all_reach_all([*containers6])
    all_reach_all([*lab.containers])
    for host in lab.hosts:
        assert gateways(host) == wanted(lab, host)
        assert host.agent.subnet_env()["FLANNEL_MTU"] == "1500"
        document = shown(host)
        assert (document["backend"], document["device"], document["peers"]) == ("host-gw", None, 2)
        assert document["rejected_leases"] == document["failing_entries"] == []
    values = etcd(lab).ctl("get", "--prefix", "--print-value-only", f"{lab.plan.etcd_prefix}/subnets/").split()
    form = '{"PublicIP":"%s","PublicIPv6":"%s","BackendType":"host-gw"}'
    assert sorted(values) == sorted(form % (host.address, address6(lab, host)) for host in lab.hosts)


def test_ipv6_alone(start: Start) -> None:
    lab, containers6 = start("host-gw", ALONE)
    all_routes(lab)
    all_reach_all([*containers6])
    for host in lab.hosts:
        assert "FLANNEL_SUBNET" not in host.agent.subnet_env()
        assert gateways(host) == {}
        assert not [link for link in show(host, "ip", "link", "show") if "flannel" in link["ifname"]]


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_an_agent_that_is_killed_and_restarted_loses_no_packet(start: Start, backend: str) -> None:
    lab, containers6 = start(backend, DUAL, 2, backend_options=DIRECT if backend == "vxlan" else {})
    all_routes(lab)
    all_reach_all([*containers6], 1430)
    host = lab.hosts[0]
    with ping_through(containers6[0], containers6[1]) as stream:
        stream.wait_replies(5)
        host.agent.kill()
        stream.wait_replies(20)
        host.agent.start()
        host.agent.wait_ready()
        nothing_lost(stream)
    assert gateways6(host) == wanted6(lab, host)


def test_a_peer_off_the_link_in_one_family_is_left_out_there_by_name(start: Start) -> None:
    lab, containers6 = start("host-gw", DUAL)
    host, far, near = lab.hosts
    all_routes(lab)
    all_reach_all([*containers6])
    all_reach_all([*lab.containers])
    with ping_through(containers6[0], containers6[2]) as stream6, ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(5)
        leave_the_link6(lab, host, far)
        until(lambda: gateways6(host) == {subnet6(near): address6(lab, near)}, "only the near one has an IPv6 route")
        (rejected,) = shown(host)["rejected_leases"]
        assert subnet6(far).replace("/", "-") in rejected["key"]
        assert f"PublicIPv6 {address6(lab, far)} is not on the link of eth0" in rejected["reason"]
        assert gateways(host) == wanted(lab, host)
        join_the_link6(lab, host, far)
        until(lambda: gateways6(host) == wanted6(lab, host), "the far one is back over IPv6")
        nothing_lost(stream)
        leave_the_link(lab, host, far)
        until(lambda: gateways(host) == {subnet(near): str(near.address)}, "only the near one has an IPv4 route")
        (rejected,) = shown(host)["rejected_leases"]
        assert f"PublicIP {far.address} is not on the link of eth0" in rejected["reason"]
        assert gateways6(host) == wanted6(lab, host)
        host.namespace.ip(f"route del {far.address}")
        until(lambda: gateways(host) == wanted(lab, host), "the far one is back over IPv4")
        nothing_lost(stream6)
    all_reach_all([*containers6])


def test_a_peer_without_ipv4_is_left_out_there_by_name(start: Start) -> None:
    lab, containers6 = start("host-gw", DUAL, 2)
    host, other = lab.hosts
    all_routes(lab)
    other.agent.kill()
    (key,) = [key for key in keys(lab) if subnet6(other).replace("/", "-") in key]
    value = etcd(lab).ctl("get", "--print-value-only", key).strip().replace(str(other.address), "240.1.2.3")
    etcd(lab).ctl("del", key)
    alone = f"{lab.plan.etcd_prefix}/subnets/0.0.0.0-31&{subnet6(other).replace('/', '-')}"
    etcd(lab).ctl("put", alone, stdin=value.encode())
    until(lambda: gateways(host) == {}, "the IPv4 route is gone")
    until(lambda: shown(host)["rejected_leases"], "the lease is named")
    (rejected,) = shown(host)["rejected_leases"]
    assert rejected["key"] == alone
    assert rejected["reason"].startswith("it has no IPv4 subnet")
    until(lambda: gateways6(host) == wanted6(lab, host), "the IPv6 route is there")
    # The lease went and came: the route that was seen may have been that of before.
    until(lambda: ping(containers6[0], containers6[1], count=1, patience=0.3).received, "an answer over IPv6")


def keys(lab: Lab) -> list[str]:
    found = etcd(lab).ctl("get", "--prefix", "--keys-only", f"{lab.plan.etcd_prefix}/subnets/")
    return [key for key in found.splitlines() if key]


def test_foreign_routes_stay_and_ours_come_back(start: Start) -> None:
    lab, _ = start("host-gw", DUAL, 2)
    host, other = lab.hosts
    all_routes(lab)
    before = gateways6(host)
    host.namespace.ip(f"route add fd42:0:0:ff00::/64 via {address6(lab, other)} dev eth0")
    host.namespace.run(["ip", "-6", "route", "flush", "proto", "76"])
    until(lambda: gateways6(host) == before, "the routes are back")
    host.namespace.ip("link set eth0 down")  # IPv6 loses its addresses as well.
    host.namespace.ip(
        "link set eth0 up",
        f"addr replace {address6(lab, host)}/{UNDERLAY6.prefixlen} dev eth0 nodad",
        f"route replace default via {lab.plan.gateway}",
    )
    until(lambda: gateways6(host) == before, "the routes are back after the interface was down")
    host.namespace.ip(
        f"route add fd42:0:0:ff00::/64 via {address6(lab, other)} dev eth0",
        f"route replace {subnet6(other)} via {CORE6} dev eth0 proto static",
    )
    until(lambda: shown(host)["failing_entries"], "the route that cannot be made")
    (failing,) = shown(host)["failing_entries"]
    assert subnet6(other) in failing["entry"]
    assert "left alone" in failing["reason"]
    host.agent.restart()
    host.agent.wait_ready()
    (route,) = show(host, "ip", "-6", "route", "show", subnet6(other))
    assert (route["gateway"], route["protocol"]) == (str(CORE6), "static")
    host.namespace.ip(f"route del {subnet6(other)}")
    until(lambda: gateways6(host) == before, "ours takes its place")
    assert "fd42:0:0:ff00::/64" in {route["dst"] for route in show(host, "ip", "-6", "route", "show")}
    assert gateways(host) == wanted(lab, host)


def test_the_routes_of_flannels_daemon_are_taken_over(start: Start) -> None:
    lab, containers6 = start("host-gw", DUAL, 2)
    all_routes(lab)
    all_reach_all([*containers6])
    host = lab.hosts[0]
    host.agent.kill()
    ours = gateways6(host)
    with ping_through(containers6[0], containers6[1]) as stream:
        host.namespace.ip(*(f"route replace {net} via {gateway} dev eth0" for net, gateway in ours.items()))
        assert gateways6(host) == {}
        host.agent.start()
        host.agent.wait_ready()
        until(lambda: gateways6(host) == ours, "the routes are ours")
        nothing_lost(stream)


@pytest.mark.parametrize("config", [DUAL, ALONE], ids=["dual stack", "alone"])
def test_direct_routing_is_decided_again_and_loses_no_packet(start: Start, config: object) -> None:
    lab, containers6 = start("vxlan", config, 2, backend_options=DIRECT)
    host, other = lab.hosts
    all_routes(lab)
    all_reach_all([*containers6], 1430)
    assert in_tunnel6(host) == []
    with ping_through(containers6[0], containers6[1]) as stream:
        stream.wait_replies(5)
        for _ in range(2):
            leave_the_link6(lab, host, other)
            until(lambda: in_tunnel6(host) == [subnet6(other)] and not gateways6(host), "the peer is tunneled to")
            stream.wait_replies(20)
            if config is DUAL:
                assert gateways(host) == wanted(lab, host), "IPv4 stays direct"
            join_the_link6(lab, host, other)
            until(lambda: in_tunnel6(host) == [] and gateways6(host) == wanted6(lab, host), "the peer is direct again")
            stream.wait_replies(20)
        nothing_lost(stream)


def test_without_direct_routing_a_restart_goes_back_to_the_tunnel(start: Start) -> None:
    lab, containers6 = start("vxlan", DUAL, 2, backend_options=DIRECT)
    all_routes(lab)
    all_reach_all([*containers6], 1430)
    config = json.loads(lab.plan.network_config())
    config["Backend"] = {"Type": "vxlan"}
    etcd(lab).ctl("put", f"{lab.plan.etcd_prefix}/config", stdin=json.dumps(config).encode())
    with ping_through(containers6[0], containers6[1]) as stream:
        for host in lab.hosts:
            host.agent.restart()
            host.agent.wait_ready()
            until(lambda host=host: len(in_tunnel6(host)) == 1 and not gateways6(host), "the tunnel is in use")  # type: ignore[misc]
        nothing_lost(stream)


def test_alloc_leases_and_programs_nothing(start: Start) -> None:
    lab, containers6 = start("alloc", DUAL, 2)
    host, other = lab.hosts
    for here, there in ((host, other), (other, host)):
        assert here.agent.subnet_env()["FLANNEL_MTU"] == "1500"
        until(lambda here=here: shown(here)["peers"] == 1, "the peer")  # type: ignore[misc]
        assert (gateways(here), gateways6(here)) == ({}, {})
        here.namespace.ip(f"route add {subnet6(there)} via {address6(lab, there)}")  # As the operator does.
    all_reach_all([*containers6])
