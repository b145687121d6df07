"""Figures as a table for people and as JSON for machines. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite

from tests.bench.figures import Figure

HEADER = ("figure", "of", "unit", "median", "min..max", "samples", "goal", "met")
NUMBERS = range(3, 6)
"""The columns that are aligned to the right."""


def table(figures: Sequence[Figure]) -> str:
    """Lay the figures out in columns."""
    rows = [HEADER, *map(_cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(_line(row, widths) for row in rows)


def document(figures: Sequence[Figure], about: Mapping[str, object]) -> str:
    """Write JSON: `about`, then every figure with its raw samples."""
    return json.dumps({**about, "figures": [_entry(figure) for figure in figures]}, indent=2) + "\n"


def show(value: float) -> str:
    """Show a number with three significant digits, or whole if it is larger."""
    if not isfinite(value):
        return "never"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _cells(figure: Figure) -> tuple[str, ...]:
    span = f"{show(min(figure.samples))}..{show(max(figure.samples))}"
    goal = "" if figure.goal is None else str(figure.goal)
    met = "" if figure.goal is None else "yes" if figure.goal.met(figure.median) else "NO"
    name = f"{figure.benchmark}: {figure.name}"
    return name, figure.subject, figure.unit, show(figure.median), span, str(len(figure.samples)), goal, met


def _entry(figure: Figure) -> dict[str, object]:
    return {
        "benchmark": figure.benchmark,
        "name": figure.name,
        "subject": figure.subject,
        "unit": figure.unit,
        "median": _finite(figure.median),
        "goal": None if figure.goal is None else str(figure.goal),
        "met": None if figure.goal is None else figure.goal.met(figure.median),
        "samples": [_finite(sample) for sample in figure.samples],
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if isfinite(value) else None


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column in NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
