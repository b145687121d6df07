"""Clusters of flannel's daemon and ours on every backend that both have: joined in turn, left and returned to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.interop.cluster import Cluster, until
from tests.interop.conftest import Record
from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD
from tests.netns.conftest import MakeLab

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

DUAL = {"EnableIPv6": True, "IPv6Network": "fd42::/48"}


@dataclass(frozen=True, slots=True)
class Case:
    """A network config, and the flags of either daemon."""

    backend: str
    options: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()


CASES = {
    "vxlan": Case("vxlan"),
    "vxlan, ours in userspace": Case("vxlan", ours=("--datapath", "userspace")),
    "vxlan, DirectRouting": Case("vxlan", {"DirectRouting": True}),
    "vxlan, VNI 0": Case("vxlan", {"VNI": 0}),
    "vxlan, VNI 42 on port 4789": Case("vxlan", {"VNI": 42, "Port": 4789}),
    "vxlan, SubnetLen 26": Case(
        "vxlan", config={"SubnetLen": 26, "SubnetMin": "10.42.10.0", "SubnetMax": "10.42.20.0"}
    ),
    "vxlan, masquerade by iptables": Case("vxlan", theirs=("--ip-masq",), ours=("--ip-masq", "--firewall", "iptables")),
    "vxlan, masquerade by nftables": Case(
        "vxlan", config={"EnableNFTables": True}, theirs=("--ip-masq",), ours=("--ip-masq",)
    ),
    "host-gw": Case("host-gw"),
    "udp": Case("udp"),
    "vxlan, dual stack": Case("vxlan", config=DUAL),
    "vxlan, dual stack, ours in userspace": Case("vxlan", config=DUAL, ours=("--datapath", "userspace")),
    "vxlan, dual stack, DirectRouting": Case("vxlan", {"DirectRouting": True}, DUAL),
    "host-gw, dual stack": Case("host-gw", config=DUAL),
}


@pytest.mark.parametrize("name", CASES)
def test_both_kinds_are_peers(name: str, make_lab: MakeLab, flanneld: Path, record: Record) -> None:
    case = CASES[name]
    lab = make_lab(hosts=3, overlay="none", backend=case.backend, backend_options=case.options, config={**case.config})
    cluster = Cluster(lab)
    _, theirs, two = lab.hosts

    def start(host: Host) -> None:
        if host is theirs:
            cluster.run(host, flanneld, *case.theirs)
        else:
            cluster.run(host, DEFAULT_FLANNELD, *case.ours)

    for host in lab.hosts:
        start(host)
        cluster.inhabit(host)
        pairs = cluster.all_reach_all()
    for leaver in (theirs, two):
        subnets = leaver.agent.subnet_env()
        leaver.agent.terminate()
        cluster.revoke(leaver)
        for other in lab.hosts:
            if other is not leaver:
                until(partial(cluster.forgotten, leaver, other), f"{other.name} forgets {leaver.name}")
        start(leaver)
        assert leaver.agent.subnet_env() == subnets
        cluster.all_reach_all()
    record("mixed", name, f"{pairs} of {pairs} pairs, small and full-sized; left and returned on either side")
