"""TCP streams as every benchmark of throughput measures them: one and four, with BBR and with CUBIC.

Which one the machine has as its default changes a figure more than most of what is measured: BBR paces its packets by
timers, which costs the faster path most. So each row says which it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.figures import Figure, Goal
from tests.lab.measure import Station, throughput

CONGESTION_CONTROLS = ("bbr", "cubic")
COUNTS = (1, 4)
SECONDS = 2


@dataclass(frozen=True, slots=True)
class Streams:
    """So many streams at once, with a congestion control by the kernel's name."""

    congestion: str
    count: int

    def __str__(self) -> str:
        return f"TCP {self.congestion.upper()}, {self.count} stream{'s' * (self.count > 1)}"

    def measure(self, source: Station, target: Station) -> float:
        """Send them for SECONDS; return Gbit/s of all together. Raises LabError."""
        return throughput(source, target, SECONDS, streams=self.count, congestion=self.congestion)


ALL = tuple(Streams(congestion, count) for count in COUNTS for congestion in CONGESTION_CONTROLS)
Samples = Mapping[Streams, Mapping[str, Sequence[float]]]
"""Gbit/s by streams and path, a sample for each round."""


def rotated(names: Sequence[str], round_number: int) -> list[str]:
    """The paths in the order of a round: each is first, and last, in turn."""
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


def figures(benchmark: str, samples: Samples, goals: Mapping[tuple[str, str], Goal | None]) -> Iterator[Figure]:
    """Every path's figures, then the ratio of each pair (path, yardstick) in `goals`, made within each round. Pure."""
    for streams, by_path in samples.items():
        for path, values in by_path.items():
            yield Figure(benchmark, f"{streams}", path, "Gbit/s", tuple(values))
        for (path, yardstick), goal in goals.items():
            ratios = tuple(a / b for a, b in zip(by_path[path], by_path[yardstick], strict=True))
            yield Figure(benchmark, f"{streams}, against {yardstick}", path, "x", ratios, goal)
