"""One real host of tests/lab in a cluster whose other hosts are only leases.

namespace core   etcd  <-- gateway: the peers' leases
namespace h1     one daemon at a time  -->  flannel.1 and its entries  <-- routes, monitor: the witnesses
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from math import inf
from pathlib import Path

from tests.bench.figures import Daemon
from tests.bench.gateway import Gateway
from tests.bench.peers import NETWORK, SUBNET_MAX, Peer
from tests.bench.witness import Monitor, RouteCount
from tests.lab.agent import Agent
from tests.lab.lab import CLIENT_PORT, Lab
from tests.lab.manual import DEVICE
from tests.lab.namespace import Namespace
from tests.lab.topology import Plan

REST = 0.2
"""Seconds in which the daemon comes to rest and a tool is started."""

OWN_ROUTES = 1
"""The device's own address is a route in the local table, which RouteCount counts as well."""


class Cluster:
    """The host, the witnesses and the registry. `peers` are the leases that are there all the time."""

    def __init__(
        self, lab: Lab, gateway: Gateway, routes: RouteCount, monitor: Monitor, peers: Sequence[Peer], undo: ExitStack
    ) -> None:
        self.gateway = gateway
        self.routes = routes
        self.monitor = monitor
        self.peers = peers
        self._lab = lab
        self._undo = undo
        self._before = routes.read()

    @property
    def host(self) -> Namespace:
        """The namespace of the real host."""
        return self._lab.hosts[0].namespace

    def agent(self, daemon: Daemon, command: Sequence[str | Path] = ()) -> Agent:
        """Prepare a daemon on the host, started through `command` if given."""
        directory = self._lab.run.directory / f"{daemon.name}{len(list(self._lab.run.directory.iterdir()))}"
        directory.mkdir()
        endpoint = f"http://{self._lab.plan.gateway}:{CLIENT_PORT}"
        flags = ["--etcd-endpoints", endpoint, "--etcd-prefix", self._lab.plan.etcd_prefix, "--iface", "eth0"]
        agent = Agent(daemon.name, self.host, directory, [*map(str, command or [daemon.path]), *flags])
        self._undo.callback(agent.close)
        return agent

    def bare(self) -> None:
        """Take the device away, and with it every entry."""
        self.host.run(["ip", "link", "del", DEVICE], check=False)

    def wait_programmed(self, peers: int, timeout: float = 30) -> float:
        """Wait until the routes of so many peers are there; return when. Routes come last of a peer's entries."""
        return self.routes.wait(self._before + OWN_ROUTES + peers, timeout)

    def programmed(self) -> int:
        """How many peers have a route now."""
        return self.routes.read() - self._before - OWN_ROUTES

    def complete(self, peers: int, *, neighbours: bool = True) -> bool:
        """Whether exactly so many routes are on the device, by `ip` and `bridge`, and as many `neighbours`, or none."""
        routes = self._lines("ip", "-o", "-4", "route", "show", "dev", DEVICE)
        there = self._lines("ip", "-o", "-4", "neigh", "show", "dev", DEVICE, "nud", "permanent")
        forwarding = [line for line in self._lines("bridge", "fdb", "show", "dev", DEVICE) if " dst " in line]
        return len(routes) == peers and len(there) == len(forwarding) == (peers if neighbours else 0)

    @contextmanager
    def deletion(self, tool: str) -> Iterator[Callable[[str], float]]:
        """Start `ip` or `bridge` on the host, let everything come to rest, and give a function.

        Called with one line for the tool, it forgets all events, hands the line over and returns when it began to.
        """
        # Anew each time: `ip` remembers the number of a device that was made anew since.
        argv = [tool, "-n", self.host.name, "-batch", "-"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)

        def delete(line: str) -> float:
            self.monitor.forget()
            began = time.perf_counter()
            assert process.stdin is not None
            process.stdin.write(f"{line}\n".encode())
            process.stdin.close()
            return began

        try:
            time.sleep(REST)
            yield delete
            process.wait(10)
        finally:
            process.kill()
            process.communicate()

    def _lines(self, *argv: str) -> list[str]:
        return self.host.run(argv).stdout.splitlines()


@contextmanager
def cluster(peers: int) -> Iterator[Cluster]:
    """Build a cluster with the leases of so many peers; take everything down at the end."""
    config = {"SubnetMax": SUBNET_MAX}
    plan = Plan(hosts=1, containers=0, network=NETWORK, overlay="none", config=config)
    with ExitStack() as undo:
        lab = undo.enter_context(Lab(plan))
        gateway = Gateway(lab.core, str(plan.gateway), CLIENT_PORT, plan.etcd_prefix)
        undo.enter_context(closing(gateway))
        routes = undo.enter_context(closing(RouteCount(lab.hosts[0].namespace)))
        monitor = undo.enter_context(closing(Monitor(lab.hosts[0].namespace)))
        members = [Peer(number) for number in range(peers)]
        gateway.put_all(members)
        yield Cluster(lab, gateway, routes, monitor, members, undo)


def since(began: float, ended: float) -> float:
    """Seconds between two times; infinite if the second never came."""
    return inf if ended == inf else max(0.0, ended - began)
