"""Packets from container to container through the userspace data plane, against kernel VXLAN and flannel's udp backend.

    for each round, for each path (paths.py), in rotating order:
        100 pings -> one TCP stream, with pings beside it and CPU before and after -> four streams
        -> small UDP packets, as many as get through and twice as many (packets.py) -> memory

All hosts share this machine's cores with what generates the load, so a figure means something only beside the others
of the same run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from math import inf
from statistics import fmean

from tests.bench import packets
from tests.bench.figures import Figure, Setting
from tests.bench.passes import Load, Pass, figures, per_gigabyte
from tests.bench.paths import PATHS, OpenPath, PacketPath, opened
from tests.bench.process import Cpu
from tests.lab.measure import ping, ping_through, throughput

SECONDS = 2
PINGS = 100
INTERVAL = 0.01
EDGE = 0.3
"""Seconds at both ends of a TCP measurement in which the stream may not run yet, or not any more."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure the paths that were asked for."""
    others = setting.daemons[1:]
    wanted = [path for path in PATHS if not setting.only or path.name in setting.only]
    with ExitStack() as labs:
        paths = [
            labs.enter_context(opened(path, daemon.path))
            for path in wanted
            for daemon in ([setting.ours] if path.ours else others[:1])
        ]
        passes: dict[PacketPath, list[Pass]] = {each.path: [] for each in paths}
        for number in range(setting.rounds):
            first = number % len(paths)
            for each in paths[first:] + paths[:first]:
                measured = _measure(each)
                passes[each.path].append(measured)
                setting.say(_summary(each, measured))
    yield from figures(passes)


def _measure(path: OpenPath) -> Pass:
    between = path.source, path.target
    idle = ping(*between, count=PINGS, interval=INTERVAL).average_ms
    one, busy, cpu = _stream(path)
    four = throughput(*between, SECONDS, streams=4)
    capacity = packets.capacity(*between)
    load = Load(cpu, path.megabytes()) if path.processes else None
    return Pass(one, four, inf if idle is None else idle, busy, capacity, load)


def _stream(path: OpenPath) -> tuple[float, float, Cpu]:
    """One TCP stream: Gbit/s, the mean of the pings beside it in ms, CPU for each 10^9 bytes."""
    with ping_through(path.source, path.target, INTERVAL) as stream:
        stream.wait_replies()
        before, began = path.cpu(), time.time()
        gbits = throughput(path.source, path.target, SECONDS)
        after, ended = path.cpu(), time.time()
        trips = [took for at, took in stream.round_trips() if began + EDGE < at < ended - EDGE]
    return gbits, fmean(trips) if trips else inf, per_gigabyte(before, after, gbits * SECONDS / 8)


def _summary(path: OpenPath, measured: Pass) -> str:
    best = measured.packets.best / 1e3
    return f"{path.path.name}: {measured.one:.2f} Gbit/s, {best:.0f} kpps, ping {measured.idle:.3f} ms"
