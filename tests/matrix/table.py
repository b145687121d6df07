"""What was seen, as a table: for the terminal, and as markdown for docs/support.md. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.matrix.recorder import NOT_RUN, Outcome


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of a group of tests in one place."""

    passed: int = 0
    failed: int = 0
    not_run: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether all ran and passed."""
        return self.passed > 0 and self.failed == self.not_run == 0

    def __str__(self) -> str:
        counts = ((self.passed, "passed"), (self.failed, "FAILED"), (self.not_run, "not run"))
        said = ", ".join(f"{count} {what}" for count, what in counts if count) or "not run"
        return f"{said}, {self.seconds:.0f} s" if self.seconds else said


def cell(outcomes: Iterable[Outcome]) -> Cell:
    """Count. What was skipped has not been run."""
    seen = list(outcomes)
    passed = sum(each.outcome == "passed" for each in seen)
    failed = sum(each.outcome == "failed" for each in seen)
    return Cell(passed, failed, len(seen) - passed - failed, sum(each.seconds for each in seen))


def groups(outcomes: Mapping[str, Outcome], chosen: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
    """Count by group: a group is named by what pytest is given for it, files or tests."""

    def member(test: str, arguments: Sequence[str]) -> bool:
        return any(test == each or test.startswith((f"{each}::", f"{each}[")) for each in arguments)

    return {
        name: cell(outcome for test, outcome in outcomes.items() if member(test, arguments))
        for name, arguments in chosen.items()
    }


def failures(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Name the tests that failed or were not reached."""
    return [f"{each.outcome}: {each.test}" for each in outcomes.values() if each.outcome in ("failed", NOT_RUN)]


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in columns."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
