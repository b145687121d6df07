"""Somebody deletes what the daemon has programmed: how soon is it back?

    the deletion handed to `ip` or `bridge` -> RTM_NEW... of what was deleted, after its RTM_DEL...

In the kernel's data plane everything that there is, in the userspace one the TUN device.

From just before the line is written to an `ip -batch` that waits for it, so the tool's and the kernel's own work is
part of it. Not from the event of the deletion: a witness that is woken late would stamp both events at once, and show
less than it took. A nexthop object takes its route along without an event: both must be back. A device takes everything
along: until all routes are back, and then it must have its MAC and all other entries. With ten thousand peers the
kernel takes 0.4 s to delete a device: hence a cluster of a thousand as well, beside one of three and a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

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

SIZES = (3, 1000)
KINDS = ("route", "neighbour", "forwarding entry", "nexthop", "device")
TUN = "TUN device"


def run(setting: Setting) -> Iterator[Figure]:
    """Measure our daemon in both clusters."""
    for peers in sorted({*(size for size in SIZES if size < setting.peers), setting.peers}):
        samples: dict[str, list[float]] = {kind: [] for kind in (*KINDS, TUN)}
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
            with _userspace(one, setting):
                for _ in range(setting.rounds):
                    samples[TUN].append(_device(one, neighbours=False) * 1000)
                    setting.say(f"{peers} peers: {TUN} {samples[TUN][-1]:.1f} ms")
        for kind in (*KINDS, TUN):
            goal = setting.goal(setting.ours, 200)
            name = f"{kind} deleted, {peers} peers"
            yield Figure("repair", name, setting.ours.name, "ms", tuple(samples[kind]), goal)


def _repair(one: Cluster, kind: str, peer: Peer) -> float:
    base = peer.base.packed
    match kind:
        case "route":
            # Without the device: a route through a nexthop object does not match one.
            return _entry(one, "ip", f"route del {peer.subnet}", (DEL_ROUTE, base), [(NEW_ROUTE, base)])
        case "neighbour":
            line = f"neigh del {peer.base} dev {DEVICE}"
            return _entry(one, "ip", line, (DEL_NEIGHBOUR, base), [(NEW_NEIGHBOUR, base)])
        case "forwarding entry":
            line = f"fdb del {peer.mac.hex(':')} dev {DEVICE} self"
            return _entry(one, "bridge", line, (DEL_NEIGHBOUR, peer.mac), [(NEW_NEIGHBOUR, peer.mac)])
        case "nexthop":
            line = f"nexthop del id {_nexthop(one, peer)}"
            return _entry(one, "ip", line, (DEL_NEXTHOP, base), [(NEW_NEXTHOP, base), (NEW_ROUTE, base)])
        case _:
            return _device(one, neighbours=True)


def _entry(one: Cluster, tool: str, line: str, gone: Event, back: Sequence[Event]) -> float:
    with one.deletion(tool) as delete:
        began = delete(line)
        if one.monitor.wait([gone], timeout=2) == inf:
            raise LabError(f"`{tool} {line}` deleted nothing on the benchmark's host: the daemon has not made it")
        return since(began, one.monitor.wait(back))


def _device(one: Cluster, *, neighbours: bool) -> float:
    mac = _mac(one)
    with one.deletion("ip") as delete:
        began = delete(f"link del {DEVICE}")
        if one.monitor.wait([(DEL_LINK, DEVICE.encode())]) == inf:
            raise LabError(f"`ip link del {DEVICE}` deleted nothing on the benchmark's host: there is no device")
        restored = one.wait_programmed(len(one.peers))
    complete = one.complete(len(one.peers), neighbours=neighbours)
    return since(began, restored) if complete and _mac(one) == mac else inf


@contextmanager
def _userspace(one: Cluster, setting: Setting) -> Iterator[None]:
    """Have the packets carried in userspace, from no device on to none."""
    one.bare()
    agent = one.agent(setting.ours)
    agent.start("--datapath", "userspace")
    try:
        agent.wait_ready()
        one.wait_programmed(len(one.peers))
        yield
    finally:
        agent.terminate()
        one.host.run([setting.ours.path, "--datapath-stop", "--subnet-file", agent.subnet_file])


def _mac(one: Cluster) -> str:
    (link,) = json.loads(one.host.run(["ip", "-j", "link", "show", "dev", DEVICE]).stdout)
    return str(link.get("address", ""))  # A TUN device has none.


def _nexthop(one: Cluster, peer: Peer) -> int:
    """The id of the nexthop object of a peer; 0, which nothing has, if it has none."""
    found = json.loads(one.host.run(["ip", "-j", "nexthop", "show", "dev", DEVICE]).stdout)
    return next((int(nexthop["id"]) for nexthop in found if nexthop.get("gateway") == str(peer.base)), 0)
