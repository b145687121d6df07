"""Somebody deletes what the daemon has programmed: how soon is it back?

    RTM_DEL... of the deleted object -> RTM_NEW... of the same

Deleted with `ip` and `bridge`; both times are those of the kernel's own events. A nexthop object takes its route along
without an event: both must be back. A device takes everything along: from the event of its deletion until all routes
are back, and then it must have its MAC and all other entries. In a cluster of three peers and in a large one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

from tests.bench.cluster import Cluster, cluster, since
from tests.bench.figures import Figure, Setting
from tests.bench.peers import Peer
from tests.bench.witness import (
    DEL_LINK,
    DEL_NEIGHBOUR,
    DEL_NEXTHOP,
    DEL_ROUTE,
    NEW_NEIGHBOUR,
    NEW_NEXTHOP,
    NEW_ROUTE,
    Event,
)
from tests.lab.manual import DEVICE
from tests.lab.namespace import LabError

SMALL = 3
KINDS = ("route", "neighbour", "forwarding entry", "nexthop", "device")


def run(setting: Setting) -> Iterator[Figure]:
    """Measure our daemon in both clusters."""
    for peers in (SMALL, setting.peers):
        samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
        with cluster(peers) as one:
            agent = one.agent(setting.ours)
            agent.start()
            agent.wait_ready()
            one.wait_programmed(peers)
            for number in range(setting.rounds):
                for kind in KINDS:
                    samples[kind].append(_repair(one, kind, one.peers[number * 7 % peers]) * 1000)
                setting.say(f"{peers} peers: " + ", ".join(f"{kind} {samples[kind][-1]:.1f} ms" for kind in KINDS))
            agent.terminate()
        for kind in KINDS:
            goal = setting.goal(setting.ours, 200)
            name = f"{kind} deleted, {peers} peers"
            yield Figure("repair", name, setting.ours.name, "ms", tuple(samples[kind]), goal)


def _repair(one: Cluster, kind: str, peer: Peer) -> float:
    time.sleep(0.2)  # the daemon is at rest again
    one.monitor.forget()
    base = peer.base.packed
    match kind:
        case "route":
            # Without the device: a route through a nexthop object does not match one.
            argv = ["ip", "route", "del", str(peer.subnet)]
            return _between(one, argv, (DEL_ROUTE, base), [(NEW_ROUTE, base)])
        case "neighbour":
            argv = ["ip", "neigh", "del", str(peer.base), "dev", DEVICE]
            return _between(one, argv, (DEL_NEIGHBOUR, base), [(NEW_NEIGHBOUR, base)])
        case "forwarding entry":
            argv = ["bridge", "fdb", "del", peer.mac.hex(":"), "dev", DEVICE, "self"]
            return _between(one, argv, (DEL_NEIGHBOUR, peer.mac), [(NEW_NEIGHBOUR, peer.mac)])
        case "nexthop":
            argv = ["ip", "nexthop", "del", "id", str(_nexthop(one, peer))]
            return _between(one, argv, (DEL_NEXTHOP, base), [(NEW_NEXTHOP, base), (NEW_ROUTE, base)])
        case _:
            return _device(one)


def _between(one: Cluster, argv: Sequence[str], gone: Event, back: Sequence[Event]) -> float:
    command = one.command(*argv)
    deleted = one.monitor.wait([gone], timeout=2)
    if command.wait() != 0:
        raise LabError(f"`{' '.join(argv)}` failed on the benchmark's host: the daemon has not made what it deletes")
    return since(deleted, one.monitor.wait(back))


def _device(one: Cluster) -> float:
    mac = _mac(one)
    command = one.command("ip", "link", "del", DEVICE)
    deleted = one.monitor.wait([(DEL_LINK, DEVICE.encode())])
    # `ip` returns only when the kernel has let go of the old device's memory; that is later.
    restored = one.wait_programmed(len(one.peers))
    command.wait()
    right = one.complete(len(one.peers)) and _mac(one) == mac
    return since(deleted, restored) if right else float("inf")


def _mac(one: Cluster) -> str:
    (link,) = json.loads(one.host.run(["ip", "-j", "link", "show", "dev", DEVICE]).stdout)
    return str(link["address"])


def _nexthop(one: Cluster, peer: Peer) -> int:
    """The id of the nexthop object of a peer; 0, which nothing has, if it has none."""
    found = json.loads(one.host.run(["ip", "-j", "nexthop", "show", "dev", DEVICE]).stdout)
    return next((int(nexthop["id"]) for nexthop in found if nexthop.get("gateway") == str(peer.base)), 0)
