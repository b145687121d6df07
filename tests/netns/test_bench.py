"""The benchmark of packet paths measures what it says: on one host a process carries the packets, on one the kernel.

h1c1 ── h1 (userspace) ──┬── core: etcd      (the picture: tests/lab/__init__.py)
h2c1 ── h2 (kernel)    ──┘
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

import pytest

from tests.bench import bursts, packets, userspace
from tests.bench.figures import OURS, Daemon, Setting
from tests.bench.paths import KERNEL, Carrier, PacketPath, opened
from tests.bench.underlay import Underlay
from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD
from tests.lab.measure import throughput

pytestmark = pytest.mark.root

ETHERNET = 14
MIXED = PacketPath("mixed", Carrier.USERSPACE, Carrier.KERNEL)


def test_a_round_gives_every_figure() -> None:
    said: list[str] = []
    daemons = (Daemon(OURS, DEFAULT_FLANNELD),)
    setting = Setting(1, 0, daemons, said.append, only=("mixed",), underlays=(Underlay.NIC,))
    found = list(userspace.run(setting))
    assert len(said) == 1
    assert {figure.subject for figure in found} == {"mixed"}
    assert {figure.benchmark for figure in found} == {"userspace, NIC-like"}
    assert [figure.name for figure in found if not all(map(isfinite, figure.samples))] == []
    for figure in found:
        assert figure.median > 0, figure.name


def test_a_round_of_bursts_gives_every_figure() -> None:
    setting = Setting(1, 0, (Daemon(OURS, DEFAULT_FLANNELD),), lambda _: None, only=("mixed",))
    found = list(bursts.run(setting))
    assert {figure.name for figure in found} == {name for name, _, _ in bursts.NAMES.values()}
    assert all(map(isfinite, (figure.median for figure in found)))


def test_on_a_plain_network_card_no_tunneled_packet_is_larger_than_the_mtu() -> None:
    with opened(KERNEL, DEFAULT_FLANNELD) as path:

        def mean() -> float:
            """Bytes in a packet that the second host receives, under a TCP stream."""
            packets_before, bytes_before = received(path.hosts[1])
            throughput(path.source, path.target)
            packets_now, bytes_now = received(path.hosts[1])
            return (bytes_now - bytes_before) / (packets_now - packets_before)

        Underlay.NIC.apply(path.hosts)
        assert mean() <= 1500 + ETHERNET
        Underlay.LAB.apply(path.hosts)
        assert mean() > 2 * 1500


def received(host: Host) -> tuple[int, int]:
    """Packets and bytes that came in on the underlay."""
    (link,) = json.loads(host.namespace.run(["ip", "-json", "-statistics", "link", "show", "eth0"]).stdout)
    counters = link["stats64"]["rx"]
    return counters["packets"], counters["bytes"]


def test_packets_are_counted_by_the_kernel_at_both_ends() -> None:
    with opened(MIXED, DEFAULT_FLANNELD) as path:
        (pid,) = path.processes
        assert b"flanneld_py.encap.datapath" in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert path.megabytes() > 1
        capacity = packets.capacity(path.source, path.target)
    assert capacity.best > 0
    assert capacity.overload.offered > 0
    assert capacity.overload.delivered > 0
