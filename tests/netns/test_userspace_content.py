"""What goes in comes out: a long transfer and many datagrams, while another stream runs the other way.

h1c1 ── h1 (TUN) ──┐
h2c1 ── h2 (TUN) ──┴── core      (the picture: tests/lab/__init__.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.transfer import datagrams, stream, transfer
from tests.netns.userspace import Userspace

pytestmark = pytest.mark.root

LONG = 200_000_000
DATAGRAMS = 2000


WITHOUT = """
import sys
sys.modules["flanneld_py.encap.packet.accelerator"] = None
"""
"""What Python runs first, in a folder of its path: as on a host where the accelerator could not be built."""


@pytest.fixture(params=[True, False], ids=["in C", "in Python"])
def lab(make_lab: MakeLab, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    lab = make_lab(2, overlay="manual")
    planes = [Userspace(lab, number) for number in (1, 2)]
    (tmp_path / "sitecustomize.py").write_text("" if request.param else WITHOUT)
    try:
        for plane in planes:
            plane.start(["env", f"PYTHONPATH={tmp_path}"])
            assert plane.status().accelerated == request.param
        yield lab
    finally:
        for plane in planes:
            plane.hang_up()


@pytest.mark.parametrize("forth", [True, False], ids=["one to two", "two to one"])
def test_what_arrives_is_what_was_sent(lab: Lab, forth: bool) -> None:
    a, b = lab.containers if forth else reversed(lab.containers)
    with stream(b, a, port=7001) as second:
        transfer(a, b, LONG)
        arrivals = datagrams(a, b, DATAGRAMS)
        assert second.finish() > 0
    assert (arrivals.broken, arrivals.repeated) == (0, 0)
    assert arrivals.whole > 0
