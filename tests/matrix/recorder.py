"""A pytest plugin (`-p tests.matrix.recorder`): what became of each test, a line of JSON as soon as it is known.

A kernel that hangs takes pytest along, and a report that is written at the end never comes. `FLANNELD_PY_RECORD` is
the file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

VARIABLE = "FLANNELD_PY_RECORD"
NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a test: passed, failed, skipped or not run; `seconds` with what it was set up with."""

    test: str
    outcome: str = NOT_RUN
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


class Recorder:
    """Hears pytest's reports."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds: dict[str, float] = {}
        self._outcomes: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self._write(Outcome(item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        self._seconds[test] = self._seconds.get(test, 0.0) + report.duration
        if report.outcome != "passed" and self._outcomes.get(test) != "failed":
            self._outcomes[test] = report.outcome
        if report.when == "teardown":
            figures = {name: float(str(value)) for name, value in report.user_properties}
            self._write(Outcome(test, self._outcomes.get(test, "passed"), round(self._seconds[test], 3), figures))

    def _write(self, outcome: Outcome) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if VARIABLE in os.environ:
        config.pluginmanager.register(Recorder(Path(os.environ[VARIABLE])))


def read(file: Path) -> dict[str, Outcome]:
    """Read a record: of each test that was chosen, what is known of it; nothing if there is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]
    return {outcome.test: outcome for outcome in outcomes}
