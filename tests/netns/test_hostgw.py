"""Routes without a tunnel: flannel's host-gw and alloc backends, and DirectRouting of vxlan, with real etcd.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core: etcd      (the picture: tests/lab/__init__.py)
h3c1 ── h3 ──┘

A host is put into "another layer-2 network" for its peer by a route to it by way of core, which forwards.
"""

from __future__ import annotations

import json

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import complete, etcd, lease_key, nothing_lost, show, subnet, until
from tests.netns.test_userspace import shown

pytestmark = pytest.mark.root

DIRECT = {"DirectRouting": True}


def gateways(host: Host) -> dict[str, str]:
    """Our routes on the underlay interface."""
    found = show(host, "ip", "route", "show", "dev", "eth0", "proto", "76")
    return {route["dst"]: route["gateway"] for route in found}


def wanted(lab: Lab, host: Host) -> dict[str, str]:
    return {subnet(other): str(other.address) for other in lab.hosts if other is not host}


def leave_the_link(lab: Lab, host: Host, other: Host) -> None:
    """Let a host reach another by way of core only."""
    host.namespace.ip(f"route add {other.address} via {lab.plan.gateway}")


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    lab = make_lab(hosts=3, backend="host-gw")
    assert lab.wait_connected() == []
    return lab


@pytest.fixture
def direct(make_lab: MakeLab) -> Lab:
    lab = make_lab(hosts=2, backend_options=DIRECT)
    lab.core.write_sysctl("net.ipv4.ip_forward", "1")
    assert lab.wait_connected() == []
    return lab


def test_every_pair_answers_with_the_whole_mtu_and_without_a_device(lab: Lab) -> None:
    assert [ping(*pair, payload=1500 - 28).loss for pair in lab.pairs()] == [0.0] * 6
    for host in lab.hosts:
        assert gateways(host) == wanted(lab, host)
        assert not [link for link in show(host, "ip", "link", "show") if "flannel" in link["ifname"]]
        document = shown(host)
        assert (document["backend"], document["device"], document["peers"]) == ("host-gw", None, 2)
        assert document["datapath"]["kind"] == "kernel"
    values = etcd(lab).ctl("get", "--prefix", "--print-value-only", f"{lab.plan.etcd_prefix}/subnets/").split()
    form = '{"PublicIP":"%s","PublicIPv6":null,"BackendType":"host-gw"}'
    assert sorted(values) == sorted(form % host.address for host in lab.hosts)


def test_a_lease_that_is_gone_takes_its_route_and_no_other(lab: Lab) -> None:
    host, gone = lab.hosts[0], lab.hosts[2]
    foreign = "10.42.250.0/24"
    host.namespace.ip(f"route add {foreign} via {lab.hosts[1].address}")
    gone.agent.kill()
    etcd(lab).ctl("del", lease_key(subnet(gone)))
    until(lambda: gateways(host) == {subnet(lab.hosts[1]): str(lab.hosts[1].address)}, "the route is gone")
    host.agent.restart()
    host.agent.wait_ready()
    assert foreign in {route["dst"] for route in show(host, "ip", "route", "show")}


def test_a_route_that_is_deleted_or_lost_with_the_interface_is_back(lab: Lab) -> None:
    host = lab.hosts[0]
    before = gateways(host)
    host.namespace.ip("route flush proto 76")
    until(lambda: gateways(host) == before, "the routes are back")
    host.namespace.ip("link set eth0 down")
    host.namespace.ip("link set eth0 up", f"route replace default via {lab.plan.gateway}")
    until(lambda: gateways(host) == before, "the routes are back after the interface was down")
    assert lab.wait_connected() == []


def test_a_foreign_route_in_the_way_stays_and_is_named(lab: Lab) -> None:
    host, other = lab.hosts[0], lab.hosts[1]
    host.namespace.ip(f"route replace {subnet(other)} via {lab.plan.gateway} dev eth0 proto static")
    until(lambda: shown(host)["failing_entries"], "the route that cannot be made")
    (failing,) = shown(host)["failing_entries"]
    assert subnet(other) in failing["entry"]
    assert "left alone" in failing["reason"]
    etcd(lab).ctl("del", lease_key(subnet(lab.hosts[2])))  # It comes back by itself; meanwhile all goes on.
    (route,) = show(host, "ip", "route", "show", subnet(other))
    assert route["gateway"] == str(lab.plan.gateway)
    host.namespace.ip(f"route del {subnet(other)}")
    until(lambda: gateways(host) == wanted(lab, host), "ours takes its place")


def test_a_peer_that_is_not_on_the_link_is_left_out_by_name(lab: Lab) -> None:
    host, far, near = lab.hosts
    leave_the_link(lab, host, far)
    until(lambda: gateways(host) == {subnet(near): str(near.address)}, "only the near one has a route")
    (rejected,) = shown(host)["rejected_leases"]
    assert rejected["key"] == lease_key(subnet(far))
    assert f"PublicIP {far.address} is not on the link of eth0" in rejected["reason"]
    assert ping(host.containers[0], near.containers[0]).loss == 0
    host.namespace.ip(f"route del {far.address}")
    until(lambda: gateways(host) == wanted(lab, host), "the far one is back on the link")


def test_an_agent_that_is_killed_and_restarted_loses_no_packet(lab: Lab) -> None:
    host = lab.hosts[0]
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(5)
        host.agent.kill()
        stream.wait_replies(20)
        host.agent.start()
        host.agent.wait_ready()
        nothing_lost(stream)


def test_the_routes_of_flannels_daemon_are_taken_over(lab: Lab) -> None:
    host = lab.hosts[0]
    host.agent.kill()
    ours = gateways(host)
    with ping_through(*lab.pairs()[0]) as stream:
        host.namespace.ip(*(f"route replace {net} via {gateway} dev eth0" for net, gateway in ours.items()))
        assert gateways(host) == {}
        host.agent.start()
        host.agent.wait_ready()
        assert gateways(host) == ours
        nothing_lost(stream)


def test_two_hosts_on_one_link_need_no_tunnel(direct: Lab) -> None:
    for host in direct.hosts:
        assert gateways(host) == wanted(direct, host)
        assert complete(host, 0)


def test_a_change_of_the_underlay_decides_again_and_loses_no_packet(direct: Lab) -> None:
    host, other = direct.hosts
    with ping_through(*direct.pairs()[0]) as stream:
        stream.wait_replies(5)
        leave_the_link(direct, host, other)
        until(lambda: complete(host, 1) and not gateways(host), "the peer is tunneled to")
        stream.wait_replies(20)
        host.namespace.ip(f"route del {other.address}")
        until(lambda: complete(host, 0) and gateways(host) == wanted(direct, host), "the peer is direct again")
        nothing_lost(stream)


def test_without_direct_routing_a_restart_goes_back_to_the_tunnel(direct: Lab) -> None:
    config = json.loads(direct.plan.network_config())
    config["Backend"] = {"Type": "vxlan"}
    etcd(direct).ctl("put", f"{direct.plan.etcd_prefix}/config", stdin=json.dumps(config).encode())
    with ping_through(*direct.pairs()[0]) as stream:
        for host in direct.hosts:
            host.agent.restart()
            host.agent.wait_ready()
            assert complete(host, 1)
            assert gateways(host) == {}
        nothing_lost(stream)


def test_alloc_leases_and_programs_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, backend="alloc")
    for host in lab.hosts:
        assert host.agent.subnet_env()["FLANNEL_MTU"] == "1500"
        assert gateways(host) == {}
        until(lambda host=host: shown(host)["peers"] == 1, "the peer")  # type: ignore[misc]
    host, other = lab.hosts
    for here, there in ((host, other), (other, host)):
        here.namespace.ip(f"route add {subnet(there)} via {there.address}")  # As the operator does.
    assert lab.wait_connected() == []
