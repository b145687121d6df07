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
from tests.bench.streams import CONGESTION_CONTROLS

IDLE_MS = 0.12
"""What a ping may take if no other daemon is measured beside ours."""


@dataclass(frozen=True, slots=True)
class Tcp:
    """One congestion control: Gbit/s with one stream and with four, and what goes with the one stream.

    `ping` is the mean of the pings beside it in ms; `cpu` what the processes on the path took for each 10^9 bytes, None
    where the kernel carries the packets.
    """

    one: float
    four: float
    ping: float
    cpu: Cpu | None


@dataclass(frozen=True, slots=True)
class Pass:
    """One round on one path: TCP by congestion control, pings in ms without other traffic, small packets, memory."""

    tcp: Mapping[str, Tcp]
    ping: float
    packets: Capacity
    megabytes: float | None
    """10^6 bytes after load, of the process on the path; None where the kernel carries the packets."""


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


def quantities(idle_ms: float) -> Iterator[Quantity]:
    """All kinds of figures; `idle_ms` is the goal of a ping without other traffic."""
    for congestion in CONGESTION_CONTROLS:
        yield from _tcp(congestion)
    yield Quantity("UDP 64 B, best", "kpps", lambda each: each.packets.best / 1e3)
    yield Quantity("UDP 64 B, best, against kernel", "x", lambda each: each.packets.best, None, KERNEL)
    yield Quantity("UDP 64 B, best, against flannel", "x", lambda each: each.packets.best, at_least(2), FLANNEL_UDP)
    yield Quantity(
        "UDP overload, offered against best",
        "x",
        lambda each: ratio(each.packets.overload.offered, each.packets.best),
    )
    yield Quantity(
        "UDP overload, delivered against best",
        "x",
        lambda each: ratio(each.packets.overload.delivered, each.packets.best),
        at_least(0.9),
    )
    yield Quantity("ping", "ms", lambda each: each.ping, Goal(idle_ms))
    yield Quantity("memory after load", "MB", lambda each: each.megabytes, Goal(60))


def _tcp(congestion: str) -> Iterator[Quantity]:
    name = f"TCP {congestion.upper()}"

    def cpu(each: Pass) -> Cpu | None:
        return each.tcp[congestion].cpu

    yield Quantity(f"{name}, 1 stream", "Gbit/s", lambda each: each.tcp[congestion].one)
    yield Quantity(
        f"{name}, 1 stream, against kernel", "x", lambda each: each.tcp[congestion].one, at_least(0.6), KERNEL
    )
    yield Quantity(f"{name}, 4 streams", "Gbit/s", lambda each: each.tcp[congestion].four)
    yield Quantity(f"{name}, 4 streams, against kernel", "x", lambda each: each.tcp[congestion].four, None, KERNEL)
    yield Quantity(
        f"{name}, 4 streams, against 1",
        "x",
        lambda each: ratio(each.tcp[congestion].four, each.tcp[congestion].one),
        at_least(1),
    )
    yield Quantity(f"{name}, ping beside 1 stream", "ms", lambda each: each.tcp[congestion].ping, Goal(2))
    yield Quantity(f"{name}, CPU, user, of a GB", "s", lambda each: used.user if (used := cpu(each)) else None)
    yield Quantity(f"{name}, CPU, system, of a GB", "s", lambda each: used.system if (used := cpu(each)) else None)


def figures(benchmark: str, passes: Mapping[PacketPath, Sequence[Pass]]) -> Iterator[Figure]:
    """Make the figures of all paths; goals are those of the paths that are held to them."""
    flannel = passes.get(FLANNEL_UDP)
    # As ping prints it: three decimals.
    idle_ms = round(median(each.ping for each in flannel), 3) if flannel else IDLE_MS
    for quantity in quantities(idle_ms):
        for path in passes:
            if samples := _samples(quantity, passes, path):
                yield Figure(
                    benchmark, quantity.name, path.name, quantity.unit, samples, quantity.goal if path.held else None
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
