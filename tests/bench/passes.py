"""What one round gave on one path, and the figures and goals that come of all rounds. Pure.

Ratios are made within a round, and of those the median is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

from tests.bench.figures import Figure, Goal
from tests.bench.packets import Capacity
from tests.bench.paths import FLANNEL_UDP, KERNEL, PacketPath
from tests.bench.process import Cpu

BENCHMARK = "userspace"
IDLE_MS = 0.12
"""What a ping may take if no other daemon is measured beside ours."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the processes on a path took: CPU seconds for each 10^9 bytes of one TCP stream, and memory in MB."""

    cpu: Cpu
    megabytes: float


@dataclass(frozen=True, slots=True)
class Pass:
    """One round on one path: Gbit/s with one TCP stream and with four, pings in ms alone and beside one stream."""

    one: float
    four: float
    idle: float
    busy: float
    packets: Capacity
    load: Load | None
    """None where the kernel carries the packets."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A kind of figure. `of` gives None on a path that has none; with a yardstick it is the ratio to that path's."""

    name: str
    unit: str
    of: Callable[[Pass], float | None]
    goal: Goal | None = None
    yardstick: PacketPath | None = None


def at_least(limit: float) -> Goal:
    """Make a goal that is a lower limit."""
    return Goal(limit, at_most=False)


def per_gigabyte(before: Cpu, after: Cpu, gigabytes: float) -> Cpu:
    """CPU seconds between two readings for each 10^9 bytes; infinite if nothing got through."""
    return Cpu(ratio(after.user - before.user, gigabytes), ratio(after.system - before.system, gigabytes))


def ratio(value: float, base: float) -> float:
    """Divide; infinite by nothing."""
    return value / base if base else inf


def quantities(idle_ms: float) -> Sequence[Quantity]:
    """All kinds of figures; `idle_ms` is the goal of a ping without other traffic."""
    return (
        Quantity("TCP, 1 stream", "Gbit/s", lambda each: each.one),
        Quantity("TCP, 1 stream, against kernel", "x", lambda each: each.one, at_least(0.6), KERNEL),
        Quantity("TCP, 4 streams", "Gbit/s", lambda each: each.four),
        Quantity("TCP, 4 streams, against 1", "x", lambda each: ratio(each.four, each.one), at_least(1)),
        Quantity("UDP 64 B, best", "kpps", lambda each: each.packets.best / 1e3),
        Quantity("UDP 64 B, best, against flannel", "x", lambda each: each.packets.best, at_least(2), FLANNEL_UDP),
        Quantity(
            "UDP overload, offered against best",
            "x",
            lambda each: ratio(each.packets.overload.offered, each.packets.best),
        ),
        Quantity(
            "UDP overload, delivered against best",
            "x",
            lambda each: ratio(each.packets.overload.delivered, each.packets.best),
            at_least(0.9),
        ),
        Quantity("ping", "ms", lambda each: each.idle, Goal(idle_ms)),
        Quantity("ping beside 1 TCP stream", "ms", lambda each: each.busy, Goal(2)),
        Quantity("CPU, user, of a GB", "s", lambda each: each.load.cpu.user if each.load else None),
        Quantity("CPU, system, of a GB", "s", lambda each: each.load.cpu.system if each.load else None),
        Quantity("memory after load", "MB", lambda each: each.load.megabytes if each.load else None, Goal(60)),
    )


def figures(passes: Mapping[PacketPath, Sequence[Pass]]) -> Iterator[Figure]:
    """Make the figures of all paths; goals are those of the paths that are held to them."""
    flannel = passes.get(FLANNEL_UDP)
    # As ping prints it: three decimals.
    idle_ms = round(median(each.idle for each in flannel), 3) if flannel else IDLE_MS
    for quantity in quantities(idle_ms):
        for path in passes:
            if samples := _samples(quantity, passes, path):
                yield Figure(
                    BENCHMARK, quantity.name, path.name, quantity.unit, samples, quantity.goal if path.held else None
                )


def _samples(
    quantity: Quantity, passes: Mapping[PacketPath, Sequence[Pass]], path: PacketPath
) -> tuple[float, ...] | None:
    values = [value for each in passes[path] if (value := quantity.of(each)) is not None]
    if quantity.yardstick is None:
        return tuple(values)
    if quantity.yardstick is path or quantity.yardstick not in passes:
        return None
    bases = [base for each in passes[quantity.yardstick] if (base := quantity.of(each)) is not None]
    return tuple(ratio(value, base) for value, base in zip(values, bases, strict=True))
