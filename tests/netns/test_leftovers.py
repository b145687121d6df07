"""Another network config, and a restart: what the earlier one made and nobody wants goes, others' things stay.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┴── core: etcd      (the picture: tests/lab/__init__.py)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Interface

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping_through
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import underlay6
from tests.netns.test_agent import etcd, show, until
from tests.netns.test_underlay import KINDS, by_default_route, outage, rename, stop_datapath

pytestmark = pytest.mark.root

DUAL = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}


def devices(host: Host) -> set[str]:
    return {link["ifname"] for link in show(host, "ip", "link", "show")} - {"lo", "eth0", "cni0", "c1"}


def routes(host: Host) -> list[str]:
    """Ours, in both families."""
    return [
        route["dst"] for family in ("-4", "-6") for route in show(host, "ip", family, "route", "show", "proto", "76")
    ]


def restart(lab: Lab, **changes: object) -> None:
    """Write another network config, and let all agents begin anew with it."""
    config = json.loads(lab.plan.network_config()) | changes
    etcd(lab).ctl("put", f"{lab.plan.etcd_prefix}/config", stdin=json.dumps(config).encode())
    for host in lab.hosts:
        host.agent.restart()
    for host in lab.hosts:
        host.agent.wait_ready()


@contextmanager
def in_both_families(make_lab: MakeLab, *arguments: str) -> Iterator[Lab]:
    """Two hosts with their agents and containers; no data plane stays at the end."""
    lab = make_lab(hosts=2, overlay="none", config=DUAL, agent_args=arguments)
    underlay6(lab)
    with ExitStack() as stops:
        for host in lab.hosts:
            stops.callback(stop_datapath, host)
        yield lab.with_agents((), ())


@KINDS
def test_a_family_is_turned_off(make_lab: MakeLab, kind: str) -> None:
    with in_both_families(make_lab, "--datapath", kind) as lab:
        one = lab.hosts[0]
        inside = IPv6Interface(one.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]).ip + 7
        one.namespace.ip(
            f"link add flannel.7 type vxlan id 7 dstport 4790 local {one.address}",
            f"addr add {inside}/128 dev flannel.7",
            "link set flannel.7 alias theirs up",
        )
        restart(lab, EnableIPv6=False)
        until(lambda: devices(one) == {"flannel.1", "flannel.7"}, "IPv6's device is gone")
        assert not list(one.directory.glob("datapath-flannel-v6*"))
        assert lab.wait_connected() == []


def test_another_backend_type(make_lab: MakeLab) -> None:
    with in_both_families(make_lab) as lab:
        assert lab.wait_connected() == []
        for backend, there in (
            ({"Type": "host-gw"}, set()),
            ({"Type": "vxlan", "VNI": 9}, {"flannel.9", "flannel-v6.9"}),
            ({"Type": "udp"}, {"flannel0", "flannel0-v6"}),
            ({"Type": "host-gw"}, set()),
            ({"Type": "alloc"}, set()),
        ):
            restart(lab, Backend=backend)
            for host in lab.hosts:
                until(lambda host=host, there=there: devices(host) == there, f"{backend}: {there}")  # type: ignore[misc]
            if backend != {"Type": "alloc"}:
                assert lab.wait_connected() == [], backend
        for host in lab.hosts:
            assert routes(host) == []


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_routes_follow_an_interface_that_is_renamed(make_lab: MakeLab, backend: str) -> None:
    options = {"DirectRouting": True} if backend == "vxlan" else {}
    lab = make_lab(hosts=2, overlay="none", backend=backend, backend_options=options)
    host = lab.hosts[1]
    by_default_route(lab, host)
    for each in lab.hosts:
        each.agent.start()
    for each in lab.hosts:
        each.agent.wait_ready()
        lab.attach(each)
    assert lab.wait_connected() == []
    pid = host.agent.pid
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(3)
        rename(lab, host, "eth0", "uplink")
        until(lambda: "on uplink" in host.agent.log_tail(), "it is followed")
        outage(stream, f"renamed, {backend}")
    assert lab.wait_connected() == []
    assert host.agent.alive
    assert host.agent.pid == pid
