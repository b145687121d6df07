from __future__ import annotations

import json
from math import inf
from xml.etree import ElementTree

import pytest

from tests.bench.chart import BAR, chart
from tests.bench.figures import Figure, Goal
from tests.bench.report import document, show, table

LOAD = Figure("load", "exec to 10000 peers", "flanneld-py", "s", (0.9, 1.4, 0.8), Goal(1.0))
LOST = Figure("joins", "1000 joins", "flanneld", "s", (0.2, inf, inf))
TCP = Figure("throughput", "TCP, against by hand", "flanneld-py", "x", (0.5, 0.7), Goal(0.95, at_most=False))


def test_the_table_shows_medians_goals_and_what_never_came() -> None:
    assert table([LOAD, LOST, TCP]).splitlines() == [
        "figure                            of           unit  median      min..max  samples  goal     met",
        "load: exec to 10000 peers         flanneld-py  s      0.900   0.800..1.40        3  <= 1     yes",
        "joins: 1000 joins                 flanneld     s      never  0.200..never        3",
        "throughput: TCP, against by hand  flanneld-py  x      0.600  0.500..0.700        2  >= 0.95  NO",
    ]


def test_json_holds_every_sample_and_null_for_never() -> None:
    read = json.loads(document([LOAD, LOST], {"peers": 10000}))
    assert read["peers"] == 10000
    load, lost = read["figures"]
    assert (load["median"], load["goal"], load["met"], load["samples"]) == (0.9, "<= 1", True, [0.9, 1.4, 0.8])
    assert (lost["median"], lost["goal"], lost["met"], lost["samples"]) == (None, None, None, [0.2, None, None])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.000"), (0.0411, "0.041"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (inf, "never")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert show(value) == shown


def test_the_picture_is_xml_with_a_bar_for_each_figure_and_a_line_for_each_goal() -> None:
    bandwidth = Figure("throughput", "TCP <1>", "by hand", "Gbit/s", (12.0,))
    root = ElementTree.fromstring(chart([LOAD, LOST, TCP, bandwidth], "flanneld-py"))
    svg = "{http://www.w3.org/2000/svg}"
    titles = [text.text for text in root.iter(f"{svg}text") if text.get("font-weight")]
    assert titles == ["load, s", "joins, s", "throughput, Gbit/s"]
    bars = [float(rect.get("width", "")) for rect in root.iter(f"{svg}rect")][1:]
    assert bars == [0.9 * BAR, BAR, BAR]  # the goal of 1.0 sets the first scale; what never came is a full bar
    assert len(list(root.iter(f"{svg}line"))) == 1
    assert "TCP <1> - by hand" in {text.text for text in root.iter(f"{svg}text")}


def test_no_picture_of_nothing() -> None:
    assert chart([TCP], "flanneld-py") == ""
