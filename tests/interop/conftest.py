"""flannel's daemon by $FLANNELD, its sources by $FLANNEL_SOURCE: what wants the one that is not given is not collected.

And the results: a table at the end, and results/interop.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.lab.programs import program
from tests.netns.conftest import make_lab, pytest_runtest_makereport

__all__ = ["make_lab", "pytest_runtest_makereport"]

RESULTS = Path(__file__).parent / "results"
Row = tuple[str, str, str]
Record = Callable[[str, str, str], None]
"""`record(of, what, outcome)`: a line of the table."""

_WANTS = {
    "FLANNELD": ("test_mixed.py", "test_questions.py", "test_takeover.py"),
    "FLANNEL_SOURCE": ("test_functional.py",),
}
collect_ignore = [file for variable, files in _WANTS.items() if not os.environ.get(variable) for file in files]

_ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    if not any(map(os.environ.get, _WANTS)):
        raise pytest.UsageError("make interop FLANNELD=/path/to/flanneld, or FLANNEL_SOURCE=/path/to/checkout, or both")
    config.stash[_ROWS] = []


@pytest.fixture(scope="session")
def flanneld() -> Path:
    """flannel's daemon."""
    given = os.environ.get("FLANNELD", "")
    found = shutil.which(given) if given else None
    if found is None:
        pytest.exit(f"FLANNELD={given} is no executable: make interop FLANNELD=/path/to/flanneld", returncode=2)
    return Path(found)


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Record:
    rows = pytestconfig.stash[_ROWS]

    def add(of: str, what: str, outcome: str) -> None:
        rows.append((of, what, outcome))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if not rows:
        return
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "flannel": _said(os.environ["FLANNELD"], "--version") if os.environ.get("FLANNELD") else _described(),
        "etcd": _said(program("etcd"), "--version"),
        "kernel": platform.release(),
    }
    terminalreporter.section("interop")
    terminalreporter.write_line(", ".join(f"{name} {value}" for name, value in about.items()))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for of, what, outcome in rows:
        terminalreporter.write_line(f"{of:{widths[0]}}  {what:{widths[1]}}  {outcome}")
    RESULTS.mkdir(exist_ok=True)
    named = [dict(zip(("of", "what", "outcome"), row, strict=True)) for row in rows]
    (RESULTS / "interop.json").write_text(json.dumps({**about, "results": named}, indent=2) + "\n")


def _described() -> str:
    return _said("git", "-C", os.environ["FLANNEL_SOURCE"], "describe", "--tags", "--always")


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]
