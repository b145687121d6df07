"""What benchmarks return: figures with all their samples, and the goal each is held against. Pure.

A sample that never came is infinite; it is written `never`, and null in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.underlay import Underlay

OURS = "flanneld-py"
GOAL_PEERS = 10_000
"""The goals for a large cluster are set for this many peers; with another number they are not shown."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit, in the figure's unit, that the median should keep."""

    limit: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Whether a value keeps the limit."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured several times. `subject` is what was measured: a daemon, or a path for packets."""

    benchmark: str
    name: str
    subject: str
    unit: str
    samples: tuple[float, ...]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """The middle sample; infinite if half of them or more never came."""
        return median(self.samples)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon with flannel's command line."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked for. `daemons` begins with ours; `say` prints one line of progress; `only` names paths.

    `underlays` are those on which throughput is measured.
    """

    rounds: int
    peers: int
    daemons: Sequence[Daemon]
    say: Callable[[str], None]
    only: Sequence[str] = ()
    underlays: Sequence[Underlay] = tuple(Underlay)

    @property
    def ours(self) -> Daemon:
        """The daemon of this repository."""
        return self.daemons[0]

    def goal(self, daemon: Daemon, limit: float, *, at_most: bool = True) -> Goal | None:
        """A goal for our daemon, if the cluster is as large as goals are set for."""
        return Goal(limit, at_most) if daemon is self.ours and self.peers == GOAL_PEERS else None
