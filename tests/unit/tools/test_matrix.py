"""The matrix: what pytest's tests became is recorded as it happens, and counted into a table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.matrix import table
from tests.matrix.debian import ROOT
from tests.matrix.kernels import IDLE, Column, idle_rows
from tests.matrix.recorder import VARIABLE, Outcome, read
from tests.matrix.table import Cell

TESTS = """
import pytest

@pytest.fixture
def left():
    yield
    raise RuntimeError("something is left")

def test_right(record_property): record_property("CPU share", 0.25)
def test_wrong(): assert False
@pytest.mark.parametrize("kind", ["a", "b"])
def test_left(left, kind): pass
@pytest.mark.skip
def test_nothing(): pass
def test_killed():
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
def test_never(): pass
"""


def test_each_test_is_recorded_also_when_the_rest_is_lost(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    record = tmp_path / "record"
    argv = [sys.executable, "-m", "pytest", "-p", "tests.matrix.recorder", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(record)}
    subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    outcomes = read(record)
    assert {test.rpartition("::")[2]: each.outcome for test, each in outcomes.items()} == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_left[a]": "failed",
        "test_left[b]": "failed",
        "test_nothing": "skipped",
        "test_killed": "not run",
        "test_never": "not run",
    }
    assert outcomes["test_some.py::test_right"].figures == {"CPU share": 0.25}
    assert table.groups(outcomes, {"all": ["test_some.py"], "left": ["test_some.py::test_left"], "none": []}) == {
        "all": Cell(1, 3, 3, sum(each.seconds for each in outcomes.values())),
        "left": Cell(0, 2, 0, sum(each.seconds for test, each in outcomes.items() if "left" in test)),
        "none": Cell(),
    }
    assert len(table.failures(outcomes)) == 5


def test_no_record_is_nothing_run(tmp_path: Path) -> None:
    assert read(tmp_path / "record") == {}


def test_a_cell_is_good_if_all_ran_and_passed() -> None:
    assert [Cell(2).good, Cell().good, Cell(2, 1).good, Cell(2, 0, 1).good] == [True, False, False, False]
    assert [str(each) for each in (Cell(2, seconds=3.4), Cell(), Cell(2, 1, 1, 9))] == [
        "2 passed, 3 s",
        "not run",
        "2 passed, 1 FAILED, 1 not run, 9 s",
    ]


def test_the_idle_agent_is_measured_by_that_on_the_newest_kernel() -> None:
    def column(release: str, **figures: float) -> Column:
        return Column(release, release, {f"{IDLE}::test_idle": Outcome(f"{IDLE}::test_idle", "passed", 31, figures)})

    seen = [
        column("bookworm", notifications=1668, **{"CPU share": 0.03}),
        column("trixie"),
        column("sid", notifications=0, **{"CPU share": 0.02}),
    ]
    assert idle_rows(seen) == [
        ["idle: forwarding entries told of in 30 s", "1668", "not measured", "0"],
        ["idle: CPU, as a multiple of that on sid", "1.50", "not measured", "1.00"],
    ]


def test_tables() -> None:
    head, rows = ["", "6.1", "7.2"], [["netlink", "10 passed, 3 s", "not run"]]
    assert table.text(head, rows).splitlines() == [
        "         6.1             7.2",
        "-------  --------------  -------",
        "netlink  10 passed, 3 s  not run",
    ]
    assert table.markdown(head, rows).splitlines()[1:] == [
        "| --- | --- | --- |",
        "| netlink | 10 passed, 3 s | not run |",
    ]
