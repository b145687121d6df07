"""Many hosts join a running cluster within a second.

    last put sent -> the last route is there        and how many of them were programmed at all

The daemon has been ready in a cluster of three peers; then JOINS leases are written, (a) one put after the other,
evenly over a second, or (b) in transactions of 100, one after the other as fast as etcd takes them. Timed from just
before the last request is sent until the kernel counts all routes; a daemon that does not get there in 10 s has lost
some for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from tests.bench.cluster import Cluster, cluster, since
from tests.bench.figures import Figure, Setting
from tests.bench.gateway import TRANSACTION
from tests.bench.peers import Peer
from tests.lab.agent import Agent

JOINS = 1000
SMALL = 3
SECONDS = 1.0
PATIENCE = 10.0

Write = Callable[[Cluster, Sequence[Peer]], float]


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon, one after another in each round."""
    ways: dict[str, Write] = {"one by one in 1 s": _one_by_one, f"{TRANSACTION} in a transaction": _in_transactions}
    samples: dict[tuple[str, str], list[tuple[float, int]]] = {
        (way, daemon.name): [] for way in ways for daemon in setting.daemons
    }
    with cluster(SMALL) as one:
        for _ in range(setting.rounds):
            for daemon in setting.daemons:
                one.bare()
                agent = one.agent(daemon)
                agent.start()
                agent.wait_ready()
                for way, write in ways.items():
                    samples[way, daemon.name].append(_join(one, agent, write))
                    seconds, programmed = samples[way, daemon.name][-1]
                    setting.say(f"{daemon.name}: {way}: {programmed} of {JOINS} programmed after {seconds:.3f} s")
                agent.terminate()
    for way in ways:
        for daemon in setting.daemons:
            seconds_of, programmed_of = zip(*samples[way, daemon.name], strict=True)
            name = f"{JOINS} joins, {way}"
            goals = (setting.goal(daemon, 0.5), setting.goal(daemon, JOINS, at_most=False))
            yield Figure("joins", f"{name}: last put to last route", daemon.name, "s", seconds_of, goals[0])
            yield Figure("joins", f"{name}: programmed", daemon.name, "hosts", programmed_of, goals[1])


def _join(one: Cluster, agent: Agent, write: Write) -> tuple[float, int]:
    one.wait_programmed(SMALL, PATIENCE)
    last_sent = write(one, [Peer(number) for number in range(SMALL, SMALL + JOINS)])
    seconds = since(last_sent, one.wait_programmed(SMALL + JOINS, PATIENCE))
    programmed = one.programmed() - SMALL
    for peer in range(SMALL, SMALL + JOINS, TRANSACTION):
        one.gateway.delete_many([Peer(number) for number in range(peer, peer + TRANSACTION)])
    if one.wait_programmed(SMALL, PATIENCE) == float("inf"):
        # It lost deletions as well: start it again, so that the next sample begins right.
        agent.kill()
        one.bare()
        agent.start()
        agent.wait_ready()
    return seconds, programmed


def _one_by_one(one: Cluster, peers: Sequence[Peer]) -> float:
    began = sent = time.perf_counter()
    for number, peer in enumerate(peers):
        wait = began + SECONDS * number / len(peers) - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        sent = time.perf_counter()
        one.gateway.put(peer)
    return sent


def _in_transactions(one: Cluster, peers: Sequence[Peer]) -> float:
    sent = time.perf_counter()
    for start in range(0, len(peers), TRANSACTION):
        sent = time.perf_counter()
        one.gateway.put_all(peers[start : start + TRANSACTION])
    return sent
