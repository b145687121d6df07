"""The plan of a lab: how many hosts, which addresses. Pure; what it describes is built by lab.py.

Addresses follow from the host's number i = 1, 2, …: underlay base + 10 + i, and the MAC of that interface is
02:00 followed by the four bytes of the address, so that a capture can be read without a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Literal

Overlay = Literal["agents", "manual", "none"]
"""Who programs the overlay: an agent on each host, manual.py, or nobody (the test starts the agents itself)."""

DEFAULT_NETWORK = IPv4Network("10.42.0.0/16")
DEFAULT_UNDERLAY = IPv4Network("172.30.0.0/24")
FIRST_HOST = 10
VXLAN_OVERHEAD = 50
"""Bytes: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build. Raises ValueError, in the operator's words, for a plan that cannot be built.

    `backend_options` are further keys of the config's `Backend`, `config` further keys beside it.
    In `agent_args`, `{dir}` stands for the host's own directory and `{host}` for its name (`h1`).
    """

    hosts: int = 3
    containers: int = 1
    network: IPv4Network = DEFAULT_NETWORK
    backend: str = "vxlan"
    backend_options: Mapping[str, object] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    overlay: Overlay = "agents"
    flanneld: Path | None = None
    agent_args: tuple[str, ...] = ()
    etcd_prefix: str = "/coreos.com/network"
    underlay: IPv4Network = DEFAULT_UNDERLAY
    underlay_mtu: int = 1500

    def __post_init__(self) -> None:
        room = self.underlay.num_addresses - FIRST_HOST - 2
        if not 1 <= self.hosts <= room:
            raise ValueError(f"{self.hosts} hosts: the underlay {self.underlay} has room for 1 to {room}")
        if not 0 <= self.containers <= 200:
            raise ValueError(f"{self.containers} containers on a host: expected 0 to 200")
        if self.network.overlaps(self.underlay):
            raise ValueError(f"network {self.network} overlaps the underlay {self.underlay}: choose another network")
        if self.overlay == "manual" and self.backend != "vxlan":
            raise ValueError(f"backend {self.backend} cannot be programmed by hand: only vxlan can")
        if self.network.prefixlen > 28:
            raise ValueError(f"network {self.network} is too small for four subnets: expected /28 or larger")
        subnets = 2 ** (self.subnet_length - self.network.prefixlen) - 1
        if self.hosts > subnets:
            raise ValueError(f"{self.hosts} hosts: the network {self.network} has only {subnets} subnets")

    @property
    def subnet_length(self) -> int:
        """Prefix length of one host's subnet where the config says nothing (flannel: config defaults)."""
        return 24 if self.network.prefixlen <= 22 else self.network.prefixlen + 2

    @property
    def gateway(self) -> IPv4Address:
        """The underlay address of the core namespace."""
        return self.underlay[1]

    def host_address(self, number: int) -> IPv4Address:
        """The underlay address of host `number`, counted from 1."""
        return self.underlay[FIRST_HOST + number]

    def manual_subnet(self, number: int) -> IPv4Interface:
        """What host `number` would find as FLANNEL_SUBNET if subnets were given out in order."""
        base = int(self.network.network_address) + (number << (32 - self.subnet_length))
        return IPv4Interface((base + 1, self.subnet_length))

    def network_config(self) -> str:
        """The JSON for `<prefix>/config`."""
        backend = {"Type": self.backend, **self.backend_options}
        return json.dumps({"Network": str(self.network), "Backend": backend, **self.config})


def mac(address: IPv4Address, first: int = 0x02) -> str:
    """A locally administered MAC that shows the address; `first` tells several interfaces of a host apart."""
    return bytes([first, 0, *address.packed]).hex(":")
