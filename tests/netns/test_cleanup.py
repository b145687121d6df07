"""`flanneld-py --cleanup` on real hosts: nothing of ours is left, and everything else is.

h1 ── core: etcd      no containers: what counts are tables and files
"""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.test_underlay import device, until

pytestmark = pytest.mark.root

OVN = 4
"""How many objects `made_by_ovn` makes."""

SHOWN = ("addr show", "-d link show", "route show table all", "-6 route show table all", "nexthop show", "rule show")


def state(host: Host) -> list[str]:
    """The host's tables, without what the kernel adds in its own time."""
    lines = [line for show in SHOWN for line in host.namespace.run(["ip", *show.split()]).stdout.splitlines()]
    lines += host.namespace.run(["nft", "list", "ruleset"]).stdout.splitlines()
    return sorted(line for line in lines if "fe80:" not in line and "ff00:" not in line and "valid_lft" not in line)


def made_by_ovn(lab: Lab) -> list[str]:
    """What OVN has on its hosts, with the protocol that was ours once; a table of its own may be about any subnet."""
    return [
        f"route add 198.51.100.0/24 via {lab.plan.gateway} proto 84 table 100",
        f"route add 10.42.251.0/24 via {lab.plan.gateway} proto 84 table 100",
        f"route add 203.0.113.0/24 via {lab.plan.gateway} proto 84",
        f"nexthop add id 7 via {lab.plan.gateway} dev eth0 proto 84",
    ]


def clean(host: Host) -> CompletedProcess[str]:
    return host.namespace.run(
        [DEFAULT_FLANNELD, "--cleanup", "--subnet-file", host.agent.subnet_file], check=False, timeout=30
    )


@pytest.mark.parametrize("kind", ["kernel", "userspace"])
def test_nothing_of_ours_is_left_and_all_else_is(make_lab: MakeLab, kind: str) -> None:
    both = {"EnableIPv6": True, "IPv6Network": "fd42::/48"} if kind == "kernel" else {}
    lab = make_lab(hosts=2, containers=0, overlay="none", config={**LEASED, **both})
    for number, host in enumerate(lab.hosts, 1):
        host.namespace.ip(
            f"addr add 2001:db8:30::{number}/64 dev eth0 nodad",
            # What an operator, or flannel's own daemon, has there.
            f"link add flannel.7 type vxlan id 7 dstport 4790 local {host.address} dev eth0",
            "link set flannel.7 up",
            "addr add 10.77.0.0/32 dev flannel.7",
            "route add 10.77.5.0/24 via 10.77.5.0 dev flannel.7 onlink",
            f"route add 10.78.0.0/16 via {lab.plan.gateway} proto static",
            f"nexthop add id 99 via {lab.plan.gateway} dev eth0 proto static",
            *made_by_ovn(lab),
        )
    before = [state(host) for host in lab.hosts]
    for host in lab.hosts:
        host.agent.start("--datapath", kind, "--ip-masq", "--firewall", "nftables")
    for host in lab.hosts:
        host.agent.wait_ready()
    one, two = lab.hosts
    until(lambda: one.namespace.run(["ip", "route", "show", "proto", "76"]).stdout, "the other is a peer")
    refused = clean(one)
    assert refused.returncode == 1
    assert "an agent runs on this host and has device flannel" in refused.stderr
    assert device(one)
    for host in lab.hosts:
        host.agent.terminate()
    # Ours by mark and destination, on a device that is not: DirectRouting's.
    one.namespace.ip(
        f"route add 10.42.250.0/24 via {two.address} dev eth0 proto 76",
        f"route add 10.42.251.0/24 via {two.address} dev eth0 proto 84",
    )
    done = clean(one)
    assert done.returncode == 0, done.stderr
    assert "removed route 10.42.250.0/24 on eth0" in done.stdout
    assert "removed route 10.42.251.0/24 on eth0" in done.stdout
    assert f"removed {one.agent.subnet_file}" in done.stdout
    assert "removed firewall rules" in done.stdout
    assert state(one) == before[0]
    assert not one.agent.subnet_file.exists()
    assert not list(one.directory.glob("datapath*"))
    again = clean(one)
    assert (again.returncode, again.stdout) == (0, "")
    assert clean(two).returncode == 0
    assert state(two) == before[1]


def test_without_a_known_network_only_our_devices_go_and_the_rest_is_named(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="none")
    one, two = lab.hosts
    one.namespace.ip(*made_by_ovn(lab))
    before = state(one)
    for host in lab.hosts:
        host.agent.start()
    for host in lab.hosts:
        host.agent.wait_ready()
    one.agent.terminate()
    one.agent.subnet_file.unlink()
    rest = [
        f"route add 10.42.250.0/24 via {two.address} dev eth0 proto 76",
        f"route add 10.42.250.0/24 via {two.address} dev eth0 proto 76 table 100",
        f"nexthop add id 1409286145 via {two.address} dev eth0 proto 76",
    ]
    one.namespace.ip(*rest)
    done = clean(one)
    assert done.returncode == 1
    assert "removed device flannel.1 and all on it" in done.stdout
    for named in ("nexthop 1409286145,", "route 10.42.250.0/24 on eth0,", "route 10.42.250.0/24 on eth0 in table 100,"):
        assert f"{named} which has our number 76 and is in no network known to be ours" in done.stderr
    assert "198.51.100" not in done.stderr
    one.namespace.ip("nexthop del id 1409286145", *(line.replace(" add ", " del ") for line in rest[:2]))
    assert clean(one).returncode == 0
    assert state(one) == before
