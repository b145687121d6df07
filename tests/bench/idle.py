"""Nothing happens: what does the daemon cost?

CPU time of the process over WINDOW seconds in percent of one core, in a cluster of three peers and in a large one, both
at the same time. The window begins a second after everything is programmed. /proc counts in 10 ms: 0.05 percent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.bench.cluster import Cluster, cluster
from tests.bench.figures import Figure, Setting
from tests.bench.process import cpu_seconds
from tests.lab.agent import Agent

SMALL = 3
WINDOW = 20.0


def run(setting: Setting) -> Iterator[Figure]:
    """Measure our daemon in both clusters at once."""
    with cluster(SMALL) as small, cluster(setting.peers) as large:
        agents = [_settled(one, setting) for one in (small, large)]
        time.sleep(1)
        setting.say(f"watching for {WINDOW:g} s")
        before, began = [cpu_seconds(agent.pid) for agent in agents], time.perf_counter()
        time.sleep(WINDOW)
        after, took = [cpu_seconds(agent.pid) for agent in agents], time.perf_counter() - began
        for agent in agents:
            agent.terminate()
    for peers, first, last in zip((SMALL, setting.peers), before, after, strict=True):
        percent = (last - first) / took * 100
        yield Figure("idle", f"CPU, {peers} peers", setting.ours.name, "%", (percent,), setting.goal(setting.ours, 0.2))


def _settled(one: Cluster, setting: Setting) -> Agent:
    agent = one.agent(setting.ours)
    agent.start()
    agent.wait_ready()
    one.wait_programmed(len(one.peers))
    return agent
