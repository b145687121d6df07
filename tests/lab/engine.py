"""`python -m tests.lab.engine docker|lxc|podman`: the lab with an engine's real containers, and who reaches whom.

    hosts, etcd, agents -> an engine on each host -> containers -> table of all pairs -> everything removed

Exit codes: 0 every pair answered without loss; 1 a pair did not, or it could not be built; 2 wrong arguments, not
root, or a tool is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations
from typing import Protocol

from tests.lab.docker import Docker
from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.lxc import Lxc
from tests.lab.measure import Station, ping
from tests.lab.namespace import LabError
from tests.lab.podman import Podman
from tests.lab.programs import program
from tests.lab.report import Pair, table
from tests.lab.topology import Plan

TOOLS = {
    "docker": {
        "dockerd": "docker.io",
        "docker": "docker-cli (Debian 12: docker.io)",
        "iptables": "iptables",
        "busybox": "busybox-static",
    },
    "lxc": {"lxc-create": "lxc", "dnsmasq": "dnsmasq-base", "busybox": "busybox-static"},
    "podman": {"podman": "podman", "runc": "runc", "iptables": "iptables", "busybox": "busybox-static"},
}


class Engine(Protocol):
    """What every engine can do here; see docker.py, lxc.py and podman.py."""

    @property
    def host(self) -> Host: ...
    def start(self) -> None: ...
    def run(self, name: str, *options: str) -> Container: ...
    def close(self) -> None: ...


ENGINES: dict[str, Callable[[Host, str], Engine]] = {"docker": Docker, "lxc": Lxc, "podman": Podman}


@contextmanager
def ready_hosts(
    hosts: int = 2,
    config: Mapping[str, object] | None = None,
    prepare: Callable[[Lab], None] | None = None,
    *,
    backend: str = "vxlan",
    agent_args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Lab]:
    """A lab whose agents are ready and masquerade, and whose hosts have no bridge yet: that is the engine's.

    `prepare` is called before the agents start; `env` is their environment.
    """
    arguments = ("--ip-masq", *agent_args)
    plan = Plan(hosts=hosts, overlay="none", backend=backend, agent_args=arguments, config=config or {})
    with Lab(plan) as lab:
        if prepare:
            prepare(lab)
        for host in lab.hosts:
            host.agent.start(env=env)
        for host in lab.hosts:
            host.agent.wait_ready()
        yield lab


def measure(containers: Sequence[Container]) -> list[Pair]:
    """Ping every ordered pair, each until its first answer or for a few seconds."""
    pairs = []
    for source, target in permutations(containers, 2):
        ping(source, target, count=1, patience=3)  # Addresses are resolved on the way: not the loss that is meant.
        outcome = ping(source, target)
        pairs.append(Pair(source.name, target.name, str(target.address), outcome.average_ms, outcome.loss, None))
    return pairs


def fetch(source: Station, url: str) -> str:
    """Get a page. Raises LabError."""
    return source.namespace.run(["curl", "--silent", "--max-time", "10", "--retry", "3", url]).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.engine", description="Real containers on several hosts.")
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--hosts", type=int, default=2, metavar="N", help="hosts (default 2)")
    parser.add_argument("--containers", type=int, default=2, metavar="M", help="containers on each host (default 2)")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        return _refuse("it makes network namespaces and needs root: run it with sudo")
    for tool, package in TOOLS[options.engine].items():
        if shutil.which(program(tool)) is None:
            return _refuse(f"{tool} is not installed: apt install {package}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _show(ENGINES[options.engine], options.hosts, options.containers)
    except (LabError, TimeoutError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


def _show(make: Callable[[Host, str], Engine], hosts: int, count: int) -> int:
    with ready_hosts(hosts) as lab, ExitStack() as engines:
        containers = []
        for host in lab.hosts:
            engine = make(host, lab.run.name)
            engines.callback(engine.close)
            engine.start()
            containers += [engine.run(f"{host.name}c{number}") for number in range(1, count + 1)]
            print(f"{host.name}: {host.agent.subnet_env()['FLANNEL_SUBNET']}, {count} containers", flush=True)
        pairs = measure(containers)
        print(f"\n{table(pairs)}\n", flush=True)
        return 0 if all(pair.good for pair in pairs) else 1


def _refuse(why: str) -> int:
    print(f"lab: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
