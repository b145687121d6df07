"""Packets from container to container, against the same machine without any daemon.

    by agents      two hosts, a container on each, the overlay programmed by the daemon
    by hand        the same topology, programmed with `ip` and `bridge` (tests/lab/manual.py)
    underlay       host to host in that second lab, no overlay

Per round, underlay (underlay.py) and path: the TCP streams of streams.py, and 100 pings; all paths in each round, in
rotating order. Ratios are made within a round, and of those the median is taken. All hosts share this machine's cores,
so a figure means something only beside the others of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tests.bench import streams
from tests.bench.figures import Figure, Goal, Setting
from tests.lab.lab import Lab
from tests.lab.measure import Station, ping
from tests.lab.topology import Plan

BENCHMARK = "throughput"
PINGS = 100
BY_HAND, UNDERLAY = "by hand", "underlay"
SAME = Goal(1.0, at_most=False)
"""No slower: the daemon is not on the packets' way. iperf3 on shared cores varies by several percent around it."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon and both yardsticks."""
    goals = {
        (daemon.name, yardstick): SAME if daemon is setting.ours and yardstick == BY_HAND else None
        for daemon in setting.daemons
        for yardstick in (BY_HAND, UNDERLAY)
    }
    with ExitStack() as opened:
        paths: dict[str, tuple[Station, Station]] = {}
        labs = [opened.enter_context(Lab(Plan(hosts=2, flanneld=daemon.path))) for daemon in setting.daemons]
        for daemon, lab in zip(setting.daemons, labs, strict=True):
            paths[daemon.name] = lab.containers[0], lab.containers[1]
        labs.append(opened.enter_context(Lab(Plan(hosts=2, overlay="manual"))))
        paths[BY_HAND] = labs[-1].containers[0], labs[-1].containers[1]
        paths[UNDERLAY] = labs[-1].hosts[0], labs[-1].hosts[1]
        for lab in labs:
            lab.wait_connected()
        hosts = [host for lab in labs for host in lab.hosts]
        tcp = {
            underlay: {each: {path: list[float]() for path in paths} for each in streams.ALL}
            for underlay in setting.underlays
        }
        pings = {underlay: {path: list[float]() for path in paths} for underlay in setting.underlays}
        for number in range(setting.rounds):
            order = streams.rotated(list(paths), number)
            for underlay in setting.underlays:
                underlay.apply(hosts)
                for each in streams.ALL:
                    for path in order:
                        tcp[underlay][each][path].append(each.measure(*paths[path]))
                for path in order:
                    average = ping(*paths[path], count=PINGS, interval=0.002).average_ms
                    pings[underlay][path].append(float("inf") if average is None else average)
                one = tcp[underlay][streams.ALL[0]]
                summary = ", ".join(f"{path} {one[path][-1]:.1f} Gbit/s" for path in paths)
                setting.say(f"{underlay.label(BENCHMARK)}: {summary}")
    for underlay in setting.underlays:
        yield from streams.figures(underlay.label(BENCHMARK), tcp[underlay], goals)
        for path, averages in pings[underlay].items():
            yield Figure(underlay.label(BENCHMARK), "ping, average", path, "ms", tuple(averages))
