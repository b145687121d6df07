"""`flanneld-py --cleanup` on real hosts: nothing of ours is left, and everything else is.

h1 ── core: etcd      no containers: what counts are tables and files
"""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest

from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.test_underlay import device, until

pytestmark = pytest.mark.root

SHOWN = ("addr show", "-d link show", "route show table all", "-6 route show table all", "nexthop show", "rule show")


def state(host: Host) -> list[str]:
    """The host's tables, without what the kernel adds in its own time."""
    lines = [line for show in SHOWN for line in host.namespace.run(["ip", *show.split()]).stdout.splitlines()]
    lines += host.namespace.run(["nft", "list", "ruleset"]).stdout.splitlines()
    return sorted(line for line in lines if "fe80:" not in line and "ff00:" not in line and "valid_lft" not in line)


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
        )
    before = [state(host) for host in lab.hosts]
    for host in lab.hosts:
        host.agent.start("--datapath", kind, "--ip-masq", "--firewall", "nftables")
    for host in lab.hosts:
        host.agent.wait_ready()
    one, two = lab.hosts
    until(lambda: "proto 84" in one.namespace.run(["ip", "route", "show"]).stdout, "the other is a peer")
    refused = clean(one)
    assert refused.returncode == 1
    assert "an agent runs on this host and has device flannel" in refused.stderr
    assert device(one)
    for host in lab.hosts:
        host.agent.terminate()
    # Ours by its mark, on a device that is not: DirectRouting's, and another table's.
    one.namespace.ip(
        f"route add 10.42.250.0/24 via {two.address} dev eth0 proto 84",
        f"route add 10.42.251.0/24 via {two.address} dev eth0 proto 84 table 84",
        "route add fd00:99::/64 via 2001:db8:30::2 dev eth0 proto 84",
    )
    done = clean(one)
    assert done.returncode == 0, done.stderr
    assert "removed route 10.42.250.0/24 on eth0" in done.stdout
    assert f"removed {one.agent.subnet_file}" in done.stdout
    assert "removed firewall rules" in done.stdout
    assert state(one) == before[0]
    assert not one.agent.subnet_file.exists()
    assert not list(one.directory.glob("datapath*"))
    again = clean(one)
    assert (again.returncode, again.stdout) == (0, "")
    assert clean(two).returncode == 0
    assert state(two) == before[1]
