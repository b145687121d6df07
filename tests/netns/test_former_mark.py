"""Our routes and nexthop objects once bore protocol 84, which is OVN's now: an upgrade takes them over.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┴── core: etcd      (the picture: tests/lab/__init__.py)

The state of the earlier version is made by hand, from what the agents made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flanneld_py.encap.state import FORMER_PROTOCOL, ROUTE_PROTOCOL
from tests.lab.host import Host
from tests.lab.measure import ping_through
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import attach6, underlay6
from tests.netns.test_agent import nothing_lost, show, until
from tests.netns.test_cleanup import OVN, clean, made_by_ovn

pytestmark = pytest.mark.root

DUAL = {**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"}


def marked(host: Host, protocol: int) -> list[tuple[str, str, dict[str, Any]]]:
    """All routes and nexthop objects with a protocol, of all tables: (IP version, kind, as `ip` tells it)."""

    def found() -> Iterator[tuple[str, str, dict[str, Any]]]:
        for version in ("-4", "-6"):
            for route in show(host, "ip", version, "route", "show", "table", "all", "proto", str(protocol)):
                yield version, "route", route
            for nexthop in show(host, "ip", version, "nexthop", "show", "protocol", str(protocol)):
                yield version, "nexthop", nexthop

    return list(found())


def mark_as_formerly(host: Host) -> None:
    """Give all that is ours our former mark, in place."""
    for version, kind, each in sorted(marked(host, ROUTE_PROTOCOL), key=lambda found: found[1]):
        way = f"via {each['gateway']} dev {each['dev']}" if "gateway" in each else ""
        onlink = "onlink" if "onlink" in each["flags"] else ""
        mark = f"proto {FORMER_PROTOCOL}"
        if kind == "nexthop":
            change = f"nexthop replace id {each['id']} {way} {onlink} {mark}"
        elif each["type"] == "blackhole":
            change = f"route replace blackhole {each['dst']} metric {each['metric']} {mark}"
        elif "nhid" in each:
            change = f"route replace {each['dst']} nhid {each['nhid']} {mark}"
        else:
            change = f"route replace {each['dst']} {way} {onlink} {mark}"
        host.namespace.run(["ip", version, *change.split()])


@pytest.mark.parametrize(
    "backend", [{"Type": "vxlan"}, {"Type": "vxlan", "DirectRouting": True}, {"Type": "host-gw"}], ids=str
)
def test_an_upgrade_marks_anew_what_it_finds_and_loses_no_packet(make_lab: MakeLab, backend: dict[str, Any]) -> None:
    options = {name: value for name, value in backend.items() if name != "Type"}
    lab = make_lab(hosts=2, overlay="none", config=DUAL, backend=backend["Type"], backend_options=options)
    underlay6(lab)
    for host in lab.hosts:
        host.agent.start("--ip-blackhole-route")
    for host in lab.hosts:
        host.agent.wait_ready()
    source6, target6 = attach6(lab)
    assert lab.wait_connected() == []
    one, two = lab.hosts

    def ours(host: Host) -> int:
        return len(marked(host, ROUTE_PROTOCOL))

    until(lambda: ours(one) == ours(two) == (6 if backend == {"Type": "vxlan"} else 4), "all that is marked")
    many = ours(one)
    for host in lab.hosts:
        host.agent.kill()
        mark_as_formerly(host)
        assert ours(host) == 0
        assert len(marked(host, FORMER_PROTOCOL)) == many
        host.namespace.ip(*made_by_ovn(lab))
    with ping_through(*lab.pairs()[0]) as stream, ping_through(source6, target6) as stream6:
        stream.wait_replies(5)
        for host in lab.hosts:
            host.agent.start("--ip-blackhole-route")
            host.agent.wait_ready()
        until(lambda: ours(one) == ours(two) == many, "all marked anew")
        nothing_lost(stream)
        nothing_lost(stream6)
    assert [len(marked(host, FORMER_PROTOCOL)) for host in lab.hosts] == [OVN, OVN]
    # An upgrade that never was started, and a package that is removed.
    one.agent.terminate()
    mark_as_formerly(one)
    assert clean(one).returncode == 0
    assert (ours(one), len(marked(one, FORMER_PROTOCOL))) == (0, OVN)
