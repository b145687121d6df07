"""One host joins: how soon do the others have a route to it?

    put sent -> RTM_NEWROUTE

From just before the request to etcd is sent until the kernel's event of the new route is received, so etcd's own
commit and its HTTP gateway are part of it. The lease is deleted again after each sample, and a moment of random length
goes by. In a cluster of three peers and in a large one; the daemons take turns.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.bench.cluster import Cluster, cluster, since
from tests.bench.figures import Daemon, Figure, Setting
from tests.bench.peers import Peer
from tests.bench.witness import DEL_ROUTE, NEW_ROUTE

SMALL = 3
SAMPLES = 50
TURNS = 2
"""How often each daemon comes."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon in both clusters."""
    for peers in (SMALL, setting.peers):
        samples: dict[str, list[float]] = {daemon.name: [] for daemon in setting.daemons}
        with cluster(peers) as one:
            for _ in range(TURNS):
                for daemon in setting.daemons:
                    samples[daemon.name] += _samples(one, daemon, SAMPLES // TURNS)
                    setting.say(f"{daemon.name}: {len(samples[daemon.name])} joins among {peers} peers")
        for daemon in setting.daemons:
            name = f"put to route, among {peers} peers"
            yield Figure("latency", name, daemon.name, "ms", tuple(samples[daemon.name]), setting.goal(daemon, 10))


def _samples(one: Cluster, daemon: Daemon, count: int) -> list[float]:
    one.bare()
    agent = one.agent(daemon)
    agent.start()
    agent.wait_ready()
    one.wait_programmed(len(one.peers))
    taken = [_sample(one, Peer(len(one.peers) + number)) for number in range(count)]
    agent.terminate()
    return taken


def _sample(one: Cluster, peer: Peer) -> float:
    time.sleep(random.uniform(0.01, 0.03))
    one.monitor.forget()
    sent = time.perf_counter()
    one.gateway.send_put(peer)
    there = one.monitor.wait([(NEW_ROUTE, peer.base.packed)])
    one.gateway.receive()
    one.gateway.delete(peer)
    one.monitor.wait([(DEL_ROUTE, peer.base.packed)], timeout=2)
    return since(sent, there) * 1000
