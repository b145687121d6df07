"""A host joins a large cluster: all leases are in etcd before the daemon starts.

    exec -> every peer's route, neighbour and forwarding entry is in the kernel

From just before the daemon is started until the kernel counts all routes, which come last of a peer's entries; then
`ip` and `bridge` must find all the others as well, or the sample is `never`. The host has no device before.
Exec -> READY=1 is shown beside it (flannel's daemon says READY before it programs anything). CPU is what the process
has used by then; memory is read a second later. The busy event loop is measured in rounds of its own, see looplag.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path

from tests.bench import looplag
from tests.bench.cluster import Cluster, cluster, since
from tests.bench.figures import Daemon, Figure, Setting
from tests.bench.process import cpu_seconds, megabytes

PATIENCE = 30.0
LAG_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Start:
    """One start among many peers: seconds, CPU seconds, megabytes."""

    programmed: float
    ready: float
    cpu: float
    resident: float
    peak: float


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon, one after another in each round."""
    starts: dict[str, list[Start]] = {daemon.name: [] for daemon in setting.daemons}
    with cluster(setting.peers) as one:
        for _ in range(setting.rounds):
            for daemon in setting.daemons:
                start = _start(one, daemon)
                starts[daemon.name].append(start)
                setting.say(f"{daemon.name}: programmed after {start.programmed:.2f} s, ready {start.ready:.2f} s")
        for daemon in setting.daemons:
            yield from _figures(setting, daemon, starts[daemon.name])
        lags = [_lag(one, setting) for _ in range(min(setting.rounds, LAG_ROUNDS))]
    goal = setting.goal(setting.ours, 20)
    yield Figure("load", "event loop busy at a stretch", setting.ours.name, "ms", tuple(lags), goal)


def _start(one: Cluster, daemon: Daemon) -> Start:
    one.bare()
    agent = one.agent(daemon)
    wanted = len(one.peers)
    with ThreadPoolExecutor(1) as witness:
        began = time.perf_counter()
        agent.start()
        seen = witness.submit(one.wait_programmed, wanted, PATIENCE)
        agent.wait_ready(PATIENCE)
        ready = time.perf_counter()
        programmed = seen.result()
        cpu = cpu_seconds(agent.pid)
    if not one.complete(wanted):
        programmed = inf
    time.sleep(1)
    resident, peak = megabytes(agent.pid, "VmRSS"), megabytes(agent.pid, "VmHWM")
    agent.terminate()
    return Start(since(began, programmed), ready - began, cpu, resident, peak)


def _figures(setting: Setting, daemon: Daemon, starts: list[Start]) -> Iterator[Figure]:
    samples = {field.name: tuple(getattr(start, field.name) for start in starts) for field in fields(Start)}
    seconds, memory = setting.goal(daemon, 1.0), setting.goal(daemon, 100)
    yield Figure("load", f"exec to {setting.peers} peers programmed", daemon.name, "s", samples["programmed"], seconds)
    yield Figure("load", "exec to READY=1", daemon.name, "s", samples["ready"])
    yield Figure("load", "CPU until programmed", daemon.name, "CPU s", samples["cpu"])
    yield Figure("load", "memory afterwards", daemon.name, "MB", samples["resident"], memory)
    yield Figure("load", "memory at its peak", daemon.name, "MB", samples["peak"], memory)


def _lag(one: Cluster, setting: Setting) -> float:
    """Start our daemon under the stop watch; return its loop's longest turn in milliseconds."""
    one.bare()
    agent = one.agent(setting.ours, [sys.executable, Path(looplag.__file__)])
    outcome = agent.log.with_name("looplag.json")
    agent.start(env={"BENCH_LOOPLAG": str(outcome)})
    agent.wait_ready(PATIENCE)
    one.wait_programmed(len(one.peers), PATIENCE)
    agent.terminate()
    turns = json.loads(outcome.read_text())
    shown = ", ".join(f"{length * 1000:.1f} ({cpu * 1000:.1f}) at {at:.2f} s" for at, length, cpu in turns[:5])
    setting.say(f"{setting.ours.name}: event loop busy for ms (of them CPU): {shown}")
    return float(turns[0][1]) * 1000
