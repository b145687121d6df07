"""A host and the containers on it.

    container eth0 ── veth ── cni0 (FLANNEL_SUBNET's address) ── host ── flannel.1 ── eth0 ── underlay

This is what a container engine does with subnet.env; the overlay itself is the agent's or manual.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from tests.lab.agent import Agent
from tests.lab.namespace import Namespace, batch
from tests.lab.run import Run


@dataclass(frozen=True, slots=True)
class Container:
    """A network namespace on a host's bridge; `address` is in the overlay."""

    name: str
    namespace: Namespace
    address: IPv4Address
    host: str


@dataclass(slots=True)
class Host:
    """A network namespace on the underlay; `address` is its underlay address, `directory` its own state."""

    name: str
    namespace: Namespace
    address: IPv4Address
    directory: Path
    agent: Agent
    containers: list[Container] = field(default_factory=list)

    def inside(self, name: str, pid: int, address: str | None) -> Container:
        """A container that an engine made, by one of its processes; the address is 0.0.0.0 if it has none."""
        namespace = Namespace(f"{self.namespace.name}/{name}")
        namespace.path = Path(f"/proc/{pid}/ns/net")
        return Container(name, namespace, IPv4Address(address or "0.0.0.0"), self.name)

    def attach(self, run: Run, count: int, subnet: IPv4Interface, mtu: int) -> None:
        """Make the bridge cni0 with `subnet`'s address and `count` containers behind it, at .2, .3, …"""
        base = int(subnet.network.network_address)
        self.containers = [
            Container(role, run.namespace(role), IPv4Address(base + 1 + i), self.name)
            for i in range(1, count + 1)
            for role in [f"{self.name}c{i}"]
        ]
        here = self.namespace.name
        for i, container in enumerate(self.containers, 1):
            there = container.namespace.name
            veth = f"link add name eth0 netns {there} mtu {mtu} type veth peer name c{i} netns {here}"
            batch("ip", [f"netns add {there}", veth])
        self.namespace.ip(
            f"link add cni0 mtu {mtu} type bridge",
            *(f"link set c{i} mtu {mtu} master cni0 up" for i in range(1, count + 1)),
            f"addr add {subnet} dev cni0",
            f"link set cni0 mtu {mtu} up",
        )
        for container in self.containers:
            container.namespace.ip(
                "link set lo up",
                f"addr add {container.address}/{subnet.network.prefixlen} dev eth0",
                "link set eth0 up",
                f"route add default via {subnet.ip}",
            )
