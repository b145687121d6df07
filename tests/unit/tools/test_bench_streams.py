from __future__ import annotations

import pytest

from tests.bench.figures import Goal
from tests.bench.streams import ALL, figures, rotated
from tests.bench.underlay import Underlay, underlays


def test_every_row_says_congestion_control_and_count() -> None:
    assert [str(each) for each in ALL] == [
        "TCP BBR, 1 stream",
        "TCP CUBIC, 1 stream",
        "TCP BBR, 4 streams",
        "TCP CUBIC, 4 streams",
    ]


def test_ratios_are_made_within_a_round_and_only_those_that_are_asked_for() -> None:
    goal = Goal(1.0, at_most=False)
    samples = {ALL[0]: {"ours": [5.0, 1.0], "bare": [10.0, 2.0]}}
    found = list(figures("throughput", samples, {("ours", "bare"): goal}))
    assert [(figure.subject, figure.name, figure.samples, figure.goal) for figure in found] == [
        ("ours", "TCP BBR, 1 stream", (5.0, 1.0), None),
        ("bare", "TCP BBR, 1 stream", (10.0, 2.0), None),
        ("ours", "TCP BBR, 1 stream, against bare", (0.5, 0.5), goal),
    ]


def test_every_path_is_first_in_turn() -> None:
    assert [rotated(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_an_underlay_is_named_in_the_benchmarks_name() -> None:
    assert [each.label("userspace") for each in underlays("lab,nic")] == ["userspace", "userspace, NIC-like"]
    assert underlays("nic") == (Underlay.NIC,)


def test_an_unknown_underlay_is_refused() -> None:
    with pytest.raises(ValueError, match="wire"):
        underlays("nic,wire")
