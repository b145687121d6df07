"""The daemon starts.

    exec -> READY=1

In an empty cluster without device and lease; again over the device, lease and entries that it left; and over the
entries of a large cluster. READY=1 is said after the first clean pass over the kernel. Includes Python's own start and
all imports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.bench.cluster import Cluster, cluster
from tests.bench.figures import Figure, Setting
from tests.lab.agent import Agent


def run(setting: Setting) -> Iterator[Figure]:
    """Measure our daemon."""
    cold, warm, many = [], [], []
    with cluster(0) as one:
        agent = one.agent(setting.ours)
        for _ in range(setting.rounds):
            _forget_host(one)
            agent.subnet_file.unlink(missing_ok=True)
            cold.append(_start(agent))
            warm.append(_start(agent))
            setting.say(f"empty cluster {cold[-1]:.3f} s, again {warm[-1]:.3f} s")
    with cluster(setting.peers) as one:
        agent = one.agent(setting.ours)
        _start(agent)
        for _ in range(setting.rounds):
            many.append(_start(agent))
            setting.say(f"over {setting.peers} peers' entries {many[-1]:.3f} s")
    name = setting.ours.name
    yield Figure("start", "empty cluster, nothing there", name, "s", tuple(cold), setting.goal(setting.ours, 0.5))
    yield Figure("start", "empty cluster, device and lease there", name, "s", tuple(warm))
    yield Figure("start", f"{setting.peers} peers, all entries there", name, "s", tuple(many))


def _start(agent: Agent) -> float:
    began = time.perf_counter()
    agent.start()
    agent.wait_ready()
    took = time.perf_counter() - began
    agent.terminate()
    return took


def _forget_host(one: Cluster) -> None:
    one.bare()
    one.gateway.delete_all("subnets/")
    one.gateway.delete_all("ext/")
