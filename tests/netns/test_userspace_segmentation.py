"""Segmentation that the kernel refuses: nothing is missing.

An underlay that refuses UDP_SEGMENT gets one datagram a send from then on; for a TUN device that takes no UDP
super-packets, those of another namespace's kernel are cut.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lab.measure import ping
from tests.netns.conftest import MakeLab
from tests.netns.transfer import datagrams, transfer
from tests.netns.userspace import Userspace

pytestmark = pytest.mark.root

REFUSED = (sys.executable, Path(__file__).with_name("refused.py"))


@pytest.mark.parametrize("prefix", [(), (*REFUSED, "sendmsg")], ids=["taken", "refused with EIO"])
def test_a_refusal_is_remembered_and_everything_arrives(make_lab: MakeLab, prefix: tuple[str | Path, ...]) -> None:
    lab = make_lab(2, overlay="manual")
    one = Userspace(lab, 1)
    try:
        one.start(prefix)
        assert one.status().segmentation
        a, b = lab.containers
        assert ping(a, b, payload=1422).loss == 0
        for source, target in ((a, b), (b, a)):
            transfer(source, target, 4 << 20)
            arrivals = datagrams(source, target, 300)
            assert (arrivals.broken, arrivals.repeated) == (0, 0)
            assert arrivals.whole > 150
        assert one.status().segmentation == (not prefix)
        assert not [name for name in one.status().counters if name.startswith("out-wire")]
    finally:
        one.hang_up()


def test_super_packets_are_cut_for_a_device_that_takes_none(make_lab: MakeLab) -> None:
    lab = make_lab(2, overlay="manual")
    for host in lab.hosts:
        features = ["tx-udp_tnl-segmentation", "on", "tx-udp_tnl-csum-segmentation", "on"]
        host.namespace.run(["ethtool", "-K", "eth0", *features])
    one = Userspace(lab, 1)
    try:
        one.start((*REFUSED, "uso"))
        assert "uso4" not in one.status().offloads
        assert "tso4" in one.status().offloads
        a, b = lab.containers
        for source, target in ((a, b), (b, a)):
            transfer(source, target, 4 << 20)
            arrivals = datagrams(source, target, 400)
            assert (arrivals.broken, arrivals.repeated) == (0, 0)
            assert arrivals.whole > 360
        assert not [name for name in one.status().counters if name.startswith(("in-", "out-"))]
    finally:
        one.hang_up()
