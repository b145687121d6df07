"""The outcome of a lab: one row for each ordered pair of containers, as text and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

HEADER = ("from", "to", "address", "ping ms", "loss", "Gbit/s")


@dataclass(frozen=True, slots=True)
class Pair:
    """What one container saw of another. `loss` is 0.0 to 1.0; None is what was not or could not be measured."""

    source: str
    target: str
    address: str
    ping_ms: float | None
    loss: float
    gbit_per_second: float | None

    @property
    def good(self) -> bool:
        """Whether everything was answered."""
        return self.loss == 0


def table(pairs: Sequence[Pair]) -> str:
    """Lay the pairs out in columns."""
    rows = [HEADER, *(_cells(pair) for pair in pairs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(_line(row, widths) for row in rows)


def document(pairs: Sequence[Pair], about: Mapping[str, object]) -> str:
    """Write the outcome as JSON, `about` in front of the pairs."""
    good = all(pair.good for pair in pairs)
    return json.dumps({**about, "good": good, "pairs": [asdict(pair) for pair in pairs]}, indent=2) + "\n"


def _cells(pair: Pair) -> tuple[str, ...]:
    ping = "-" if pair.ping_ms is None else f"{pair.ping_ms:.3f}"
    gbit = "-" if pair.gbit_per_second is None else f"{pair.gbit_per_second:.2f}"
    return pair.source, pair.target, pair.address, ping, f"{pair.loss:.0%}", gbit


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if i < 3 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
