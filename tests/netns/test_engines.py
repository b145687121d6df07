"""`make lab ENGINE=...`: one command starts real engines on two hosts and prints who reaches whom."""

from __future__ import annotations

import pytest

from tests.lab.engine import ENGINES, main

pytestmark = pytest.mark.root


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_the_command_prints_the_table_of_two_hosts(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([engine, "--containers", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [(row[0], row[1], row[4]) for row in rows] == [("h1c1", "h2c1", "0%"), ("h2c1", "h1c1", "0%")]
