"""Packets from container to container, against the same machine without any daemon.

    by agents      two hosts, a container on each, the overlay programmed by the daemon
    by hand        the same topology, programmed with `ip` and `bridge` (tests/lab/manual.py)
    underlay       host to host in that second lab, no overlay

Per round and path: iperf3 with one TCP stream and with four, and 100 pings; all paths in each round, in rotating order.
Ratios are made within a round, and of those the median is taken. All hosts share this machine's cores, so a figure
means something only beside the others of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from tests.bench.figures import Figure, Goal, Setting
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping, throughput
from tests.lab.topology import Plan

SECONDS = 3
COUNTS = (1, 4)
PINGS = 100
BY_HAND, UNDERLAY = "by hand", "underlay"
SAME = Goal(1.0, at_most=False)
"""No slower: the daemon is not on the packets' way. iperf3 on shared cores varies by several percent around it."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon and both yardsticks."""
    with ExitStack() as labs:
        paths: dict[str, tuple[Station, Station]] = {}
        for daemon in setting.daemons:
            lab = labs.enter_context(Lab(Plan(hosts=2, flanneld=daemon.path)))
            lab.wait_connected()
            paths[daemon.name] = lab.containers[0], lab.containers[1]
        lab = labs.enter_context(Lab(Plan(hosts=2, overlay="manual")))
        lab.wait_connected()
        paths[BY_HAND] = lab.containers[0], lab.containers[1]
        paths[UNDERLAY] = lab.hosts[0], lab.hosts[1]
        samples = _rounds(setting, paths)
    for count in COUNTS:
        what = f"TCP, {count} stream{'s' * (count > 1)}"
        for path in paths:
            yield Figure("throughput", what, path, "Gbit/s", tuple(samples[f"{count}", path]))
        for daemon in setting.daemons:
            for yardstick in (BY_HAND, UNDERLAY):
                ratio = _ratios(samples[f"{count}", daemon.name], samples[f"{count}", yardstick])
                goal = SAME if daemon is setting.ours and yardstick == BY_HAND else None
                yield Figure("throughput", f"{what}, against {yardstick}", daemon.name, "x", ratio, goal)
    for path in paths:
        yield Figure("throughput", "ping, average", path, "ms", tuple(samples["ping", path]))


def _rounds(setting: Setting, paths: Mapping[str, tuple[Station, Station]]) -> dict[tuple[str, str], list[float]]:
    names = list(paths)
    samples: dict[tuple[str, str], list[float]] = {
        (what, path): [] for what in (*map(str, COUNTS), "ping") for path in names
    }
    for number in range(setting.rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        for count in COUNTS:
            for path in order:
                samples[f"{count}", path].append(throughput(*paths[path], SECONDS, streams=count))
        for path in order:
            average = ping(*paths[path], count=PINGS, interval=0.002).average_ms
            samples["ping", path].append(float("inf") if average is None else average)
        setting.say(", ".join(f"{path} {samples['1', path][-1]:.1f} Gbit/s" for path in names))
    return samples


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(ours, theirs, strict=True))
