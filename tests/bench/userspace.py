"""Packets from container to container through the userspace data plane, against kernel VXLAN and flannel's udp backend.

    for each round, for each underlay (underlay.py), for each path (paths.py), in rotating order:
        100 pings
        -> with BBR, then with CUBIC: one TCP stream, with pings beside it and CPU before and after; four streams
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
from tests.bench.passes import Pass, Tcp, figures, per_gigabyte
from tests.bench.paths import PATHS, OpenPath, opened
from tests.bench.streams import CONGESTION_CONTROLS, SECONDS, Streams
from tests.lab.measure import ping, ping_through

BENCHMARK = "userspace"
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
        passes = {underlay: {each.path: list[Pass]() for each in paths} for underlay in setting.underlays}
        for number in range(setting.rounds):
            first = number % len(paths)
            for underlay in setting.underlays:
                underlay.apply(host for each in paths for host in each.hosts)
                for each in paths[first:] + paths[:first]:
                    measured = _measure(each)
                    passes[underlay][each.path].append(measured)
                    setting.say(f"{underlay.label(BENCHMARK)}: {_summary(each, measured)}")
    for underlay in setting.underlays:
        yield from figures(underlay.label(BENCHMARK), passes[underlay])


def _measure(path: OpenPath) -> Pass:
    between = path.source, path.target
    idle = ping(*between, count=PINGS, interval=INTERVAL).average_ms
    tcp = {congestion: _tcp(path, congestion) for congestion in CONGESTION_CONTROLS}
    capacity = packets.capacity(*between)
    return Pass(tcp, inf if idle is None else idle, capacity, path.megabytes() if path.processes else None)


def _tcp(path: OpenPath, congestion: str) -> Tcp:
    between = path.source, path.target
    with ping_through(*between, INTERVAL) as stream:
        stream.wait_replies()
        before, began = path.cpu(), time.time()
        one = Streams(congestion, 1).measure(*between)
        after, ended = path.cpu(), time.time()
        trips = [took for at, took in stream.round_trips() if began + EDGE < at < ended - EDGE]
    four = Streams(congestion, 4).measure(*between)
    used = per_gigabyte(before, after, one * SECONDS / 8) if path.processes else None
    return Tcp(one, four, fmean(trips) if trips else inf, used)


def _summary(path: OpenPath, measured: Pass) -> str:
    best = measured.packets.best / 1e3
    tcp = ", ".join(f"{name.upper()} {each.one:.2f}" for name, each in measured.tcp.items())
    return f"{path.path.name}: {tcp} Gbit/s, {best:.0f} kpps, ping {measured.ping:.3f} ms"
