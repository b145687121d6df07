"""A lab in which each host runs flannel's daemon or ours, and what is asked of all its containers.

h1 ours ──┐
h2 theirs─┼── core: etcd
h3 ours ──┘      a container on each, with an IPv6 address as well where the config has IPv6
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_interface
from itertools import permutations
from pathlib import Path

from tests.lab.agent import Agent
from tests.lab.host import Host
from tests.lab.lab import CLIENT_PORT, Lab
from tests.lab.measure import Station, ping
from tests.netns.ipv6 import attach6, underlay6
from tests.patience import within


def until(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    """Wait until something holds."""
    deadline = within(timeout)
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def _answers(one: Station, other: Station) -> bool:
    return ping(one, other, count=1).received == 1


class Cluster:
    """The lab's hosts, and on each what `run` has started last."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.dual = bool(lab.plan.config.get("EnableIPv6"))
        self.stations: list[Station] = []
        if self.dual:
            underlay6(lab)

    def run(self, host: Host, daemon: Path, *flags: str) -> None:
        """Start a daemon on a host, where none may run, and return when it is ready."""
        etcd = f"http://{self.lab.plan.gateway}:{CLIENT_PORT}"
        argv = [str(daemon), "--etcd-endpoints", etcd, "--etcd-prefix", self.lab.plan.etcd_prefix, "--iface", "eth0"]
        host.agent.close()
        host.agent = Agent(host.name, host.namespace, host.directory, argv)
        host.agent.start(*flags)
        host.agent.wait_ready()

    def inhabit(self, *hosts: Host) -> None:
        """Make a container on each of these hosts, whose daemon is ready."""
        for host in hosts:
            if self.dual:
                self.stations += attach6(self.lab, [host])
            else:
                self.lab.attach(host)
            self.stations += host.containers

    def all_reach_all(self) -> int:
        """Ping between all containers, also with the largest packets; return how many pairs there are."""
        pairs = [
            (one, other)
            for one, other in permutations(self.stations, 2)
            if one.address.version == other.address.version
        ]
        mtu = min(int(host.agent.subnet_env()["FLANNEL_MTU"]) for host in self.lab.hosts if host.containers)
        for one, other in pairs:
            until(partial(_answers, one, other), f"{one.name} reaches {other.name} at {other.address}")
            full = mtu - (28 if one.address.version == 4 else 48)
            assert ping(one, other, payload=full, interval=0.05).loss == 0, f"{full} bytes to {other.address}"
        return len(pairs)

    def revoke(self, host: Host) -> None:
        """End the etcd lease of a host's key, which goes with it."""
        etcd = self.lab.etcd
        assert etcd is not None
        found = json.loads(etcd.ctl("get", "--prefix", "-w", "json", f"{self.lab.plan.etcd_prefix}/subnets/"))["kvs"]
        values = etcd.ctl("get", "--prefix", "--print-value-only", f"{self.lab.plan.etcd_prefix}/subnets/").splitlines()
        own = [
            kv for kv, value in zip(found, values, strict=True) if json.loads(value)["PublicIP"] == str(host.address)
        ]
        assert len(own) == 1, f"leases of {host.name}: {own}"
        etcd.ctl("lease", "revoke", f"{own[0]['lease']:x}")

    def forgotten(self, host: Host, by: Host) -> bool:
        """Say whether a host has no route any more to another's subnets."""
        for family, name in (("-4", "FLANNEL_SUBNET"), ("-6", "FLANNEL_IPV6_SUBNET")):
            subnet = host.agent.subnet_env().get(name)
            if (
                subnet
                and by.namespace.run(
                    ["ip", family, "route", "show", "root", str(ip_interface(subnet).network)]
                ).stdout.strip()
            ):
                return False
        return True
