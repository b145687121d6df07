"""Little datagrams that come all at once: how many of a burst arrive, and what one flow's flood does to polite ones.

    for each round, for each path (paths.py):
        bursts, plain and by UDP_SEGMENT -> how many arrived
        16 flows of 50 datagrams a second beside a flood -> the worst one's loss, round trips

The flood is of the same container as the polite flows, so that only the way between the hosts is theirs to share.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.figures import Figure, Goal, Setting
from tests.bench.flows import BURST, BURSTS
from tests.bench.packets import parse_datagrams
from tests.bench.paths import PATHS, OpenPath, opened
from tests.lab.measure import Station
from tests.lab.namespace import LabError

BENCHMARK = "bursts"
FLOWS = Path(__file__).with_name("flows.py")
SECONDS = 5
SETTLED = 0.5
"""Seconds after which a burst has arrived, and a flood runs."""

KINDS = ("plain", "segmented")
NAMES = {
    "plain": ("bursts that arrive", "%", Goal(99, at_most=False)),
    "segmented": ("bursts by UDP_SEGMENT that arrive", "%", Goal(99, at_most=False)),
    "worst": ("lost by the worst of 16 polite flows beside a flood", "%", Goal(1)),
    "trip": ("99th percentile of their round trips", "ms", None),
}


def run(setting: Setting) -> Iterator[Figure]:
    """Measure the paths that were asked for, of our daemon."""
    wanted = [path for path in PATHS if path.ours and (not setting.only or path.name in setting.only)]
    with ExitStack() as labs:
        paths = [labs.enter_context(opened(path, setting.ours.path)) for path in wanted]
        samples: dict[tuple[str, str], list[float]] = {(name, each.path.name): [] for name in NAMES for each in paths}
        for number in range(setting.rounds):
            first = number % len(paths)
            for each in paths[first:] + paths[:first]:
                measured = _measure(each)
                for name, value in measured.items():
                    samples[name, each.path.name].append(value)
                said = ", ".join(f"{name} {value:.1f}" for name, value in measured.items())
                setting.say(f"{BENCHMARK}: {each.path.name}: {said}")
    held = {path.name for path in wanted if path.held}
    for (name, path_name), values in samples.items():
        text, unit, goal = NAMES[name]
        yield Figure(BENCHMARK, text, path_name, unit, tuple(values), goal if path_name in held else None)


def _measure(path: OpenPath) -> dict[str, float]:
    found = {kind: 100 * _arrived(path, kind) for kind in KINDS}
    with _listening(path.target, "reader") as (_, sink), _listening(path.target, "echo") as (_, port):
        flood = path.source.namespace.popen(_command("flood", path.target, sink))
        try:
            time.sleep(SETTLED)
            done = path.source.namespace.run(_command("polite", path.target, port, SECONDS))
        finally:
            flood.kill()
            flood.communicate()
    worst, trip = map(float, done.stdout.split())
    return {**found, "worst": 100 * worst, "trip": trip}


def _arrived(path: OpenPath, kind: str) -> float:
    with _listening(path.target, "reader") as (pid, port):
        counters = Path(f"/proc/{pid}/net/snmp")
        before = parse_datagrams(counters.read_text()).arrived
        path.source.namespace.run(_command("bursts", path.target, port, kind))
        time.sleep(SETTLED)
        return (parse_datagrams(counters.read_text()).arrived - before) / (BURSTS * BURST)


@contextmanager
def _listening(station: Station, what: str) -> Iterator[tuple[int, int]]:
    """Hold a socket at a station; give the pid of its process, and its port."""
    process = station.namespace.popen(_command(what, station), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 5)
        port = process.stdout.readline() if readable else b""
        if not port:
            raise LabError(f"no UDP socket on {station.name}: {FLOWS.name} says nothing")
        yield process.pid, int(port)
    finally:
        process.kill()
        process.communicate()


def _command(what: str, target: Station, *more: object) -> list[str | Path]:
    return [sys.executable, "-I", "-S", FLOWS, what, str(target.address), *map(str, more)]
