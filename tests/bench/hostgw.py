"""The host-gw backend, against the same bridges and routes without any daemon.

    by agents      two hosts, a container on each, routes by the daemon
    by hand        the same topology, a route on each host by `ip route`: the bare underlay through the same bridges

Per round and path: the TCP streams of streams.py, in rotating order. Ratios are made within a round. The underlay is
the lab's alone: without a tunnel a plain network card lacks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Interface

from tests.bench import streams
from tests.bench.figures import Figure, Goal, Setting
from tests.bench.throughput import BY_HAND
from tests.lab.lab import Lab
from tests.lab.measure import Station
from tests.lab.topology import Plan

ENOUGH = Goal(0.97, at_most=False)
"""The kernel routes in both: what is left is how iperf3 varies on shared cores."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure every daemon and the yardstick."""
    with ExitStack() as labs:
        paths: dict[str, tuple[Station, Station]] = {}
        for daemon in setting.daemons:
            lab = labs.enter_context(Lab(Plan(hosts=2, backend="host-gw", flanneld=daemon.path)))
            lab.wait_connected()
            paths[daemon.name] = lab.containers[0], lab.containers[1]
        lab = labs.enter_context(Lab(Plan(hosts=2, overlay="none")))
        route_by_hand(lab)
        lab.wait_connected()
        paths[BY_HAND] = lab.containers[0], lab.containers[1]
        samples = {each: {path: list[float]() for path in paths} for each in streams.ALL}
        for number in range(setting.rounds):
            for each in streams.ALL:
                for path in streams.rotated(list(paths), number):
                    samples[each][path].append(each.measure(*paths[path]))
            one = samples[streams.ALL[0]]
            setting.say(", ".join(f"{path} {one[path][-1]:.1f} Gbit/s" for path in paths))
    goals = {(daemon.name, BY_HAND): ENOUGH if daemon is setting.ours else None for daemon in setting.daemons}
    yield from streams.figures("hostgw", samples, goals)


def route_by_hand(lab: Lab) -> None:
    """Give each host a subnet, containers, and a route to the other's subnet."""
    subnets: list[IPv4Interface] = [lab.plan.manual_subnet(number) for number in (1, 2)]
    for host, subnet in zip(lab.hosts, subnets, strict=True):
        host.attach(lab.run, lab.plan.containers, subnet, lab.plan.underlay_mtu)
    for host, other, subnet in zip(lab.hosts, lab.hosts[::-1], subnets[::-1], strict=True):
        host.namespace.ip(f"route add {subnet.network} via {other.address} dev eth0")
