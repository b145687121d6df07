"""A host taken over in place, from flannel's daemon to ours and back, under a ping every 10 ms in both directions."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.cluster import Cluster
from tests.interop.conftest import Record
from tests.interop.test_mixed import DUAL
from tests.lab.lab import DEFAULT_FLANNELD
from tests.lab.measure import Passage, ping_through
from tests.netns.conftest import MakeLab

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("backend", "family"),
    [
        ("vxlan", "IPv4"),
        ("vxlan", "dual stack"),
        ("host-gw", "IPv4"),
        ("host-gw", "dual stack"),
        ("udp", "IPv4"),  # flannel's carries no IPv6
    ],
)
def test_a_host_is_taken_over_there_and_back(
    backend: str, family: str, make_lab: MakeLab, flanneld: Path, record: Record
) -> None:
    lab = make_lab(hosts=2, overlay="none", backend=backend, config=DUAL if family == "dual stack" else {})
    cluster = Cluster(lab)
    host, peer = lab.hosts
    cluster.run(host, flanneld)
    cluster.run(peer, DEFAULT_FLANNELD)
    cluster.inhabit(*lab.hosts)
    cluster.all_reach_all()
    subnets = {name: value for name, value in host.agent.subnet_env().items() if "SUBNET" in name}
    for daemon, there in ((DEFAULT_FLANNELD, "flannel to ours"), (flanneld, "ours to flannel")):
        with ExitStack() as pings:
            streams = [
                pings.enter_context(ping_through(one, other))
                for one in cluster.stations
                for other in cluster.stations
                if one is not other and one.address.version == other.address.version
            ]
            for stream in streams:
                stream.wait_replies(20)
            host.agent.terminate()
            if daemon == flanneld and backend == "udp":
                # Its port has to be free (docs/migrate.md).
                host.namespace.run([DEFAULT_FLANNELD, "--datapath-stop", "--subnet-file", host.agent.subnet_file])
            cluster.run(host, daemon)
            for stream in streams:
                stream.wait_replies(50)
            passages = [stream.stop() for stream in streams]
        assert {name: value for name, value in host.agent.subnet_env().items() if "SUBNET" in name} == subnets
        record("taken over", f"{backend}, {family}, {there}", _lost(passages))
        if backend != "udp":  # There the packets are carried by the process that ends.
            assert [passage.sent - passage.received for passage in passages] == [0] * len(passages)
        cluster.all_reach_all()


def _lost(passages: list[Passage]) -> str:
    lost = sum(passage.sent - passage.received for passage in passages)
    longest = max(passage.longest_gap for passage in passages)
    return (
        f"{lost} of {sum(passage.sent for passage in passages)} packets lost, longest gap {longest:.2f} s; subnet kept"
    )
