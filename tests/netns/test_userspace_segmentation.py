"""An underlay that refuses UDP_SEGMENT: one datagram a send from then on, and nothing is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lab.measure import ping
from tests.netns.conftest import MakeLab
from tests.netns.transfer import datagrams, transfer
from tests.netns.userspace import Userspace

pytestmark = pytest.mark.root

REFUSED = (sys.executable, Path(__file__).with_name("without_sendmsg.py"))


@pytest.mark.parametrize("prefix", [(), REFUSED], ids=["taken", "refused with EIO"])
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
