"""One agent for a device, and one for a subnet file: who has which is told by the names of abstract sockets.

Such a socket belongs to the network namespace, as the device does, and goes with the process that bound it.

    device flannel.1, Network 10.42.0.0/16   from when the network is known
    subnet file /run/flannel/subnet.env      from the agent's start: one that waits for etcd runs, too
    10.42.0.0/16 of process 4711             which networks an agent serves; keeps nobody from anything
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Protocol

from flanneld_py.agent.errors import FatalError
from flanneld_py.encap.family import Network
from flanneld_py.encap.firewall.policy import name_suffix

PREFIX = "flanneld-py/"

_FILE = "subnet file "
_OF = " of process "
_DEVICE = "device "

_LONGEST = 107 - len(PREFIX)
"""What sun_path leaves after the zero byte that makes a name abstract (unix(7))."""


class HostLocks(Protocol):
    """What an agent needs of Locks."""

    def take(self, name: str) -> None:
        """See Locks."""
        ...

    def serve(self, networks: Iterable[Network]) -> None:
        """See Locks."""
        ...

    def others(self) -> Held:
        """See Locks."""
        ...


class Locks:
    """What this process has. `table` is the kernel's list of the sockets in our network namespace."""

    def __init__(self, table: Path = Path("/proc/net/unix")) -> None:
        self._table = table
        self._sockets: dict[str, socket.socket] = {}

    def take(self, name: str) -> None:
        """Make sure that no other agent on this host has what is named. Raises FatalError."""
        own = "vxlan another Backend.VNI, host-gw and alloc another Network"
        self._bind(name, f"give the two networks something of their own: {own}")

    def take_file(self, path: Path) -> None:
        """Make sure that no other agent writes this subnet file. Raises FatalError."""
        name = f"{_FILE}{path.resolve()}"
        if len(os.fsencode(name)) > _LONGEST:
            name = f"{_FILE}{sha256(os.fsencode(name)).hexdigest()[:32]}"
        self._bind(name, "give each network a file of its own (--subnet-file)")

    def serve(self, networks: Iterable[Network]) -> None:
        """Let other agents know which networks are ours, that they leave alone what leads there."""
        for network in networks:
            self._bind(f"{network}{_OF}{os.getpid()}", "")

    def others(self) -> Held:
        """Find what other agents have. Raises OSError."""
        return held(self._table, self._sockets)

    def close(self) -> None:
        """Give it all back."""
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()

    def _bind(self, name: str, remedy: str) -> None:
        if name in self._sockets:
            return
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            lock.bind(f"\0{PREFIX}{name}")
        except OSError as error:
            lock.close()
            raise FatalError(f"another flanneld-py on this host has {name}; stop that one, or {remedy}") from error
        self._sockets[name] = lock


class Held:
    """What agents have, by the names of their locks."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = sorted(names)
        self.names = [name for name in names if _OF not in name]
        """What only one agent can have, in an operator's words."""
        self.devices = {name.removeprefix(_DEVICE) for name in self.names if name.startswith(_DEVICE)}
        deviceless = any(name.startswith("Network ") for name in self.names)
        self.suffixes = {name_suffix(device) for device in [*self.devices, *([None] if deviceless else [])]}
        """Of the names that their firewall rules have."""
        self.networks = [network for name in names if _OF in name and (network := _network(name.partition(_OF)[0]))]


def _network(name: str) -> Network | None:
    try:
        return ip_network(name)
    except ValueError:  # Anybody may bind any name.
        return None


def held(table: Path, but: Iterable[str] = ()) -> Held:
    """Find what agents have in this network namespace, without the names given. Raises OSError."""
    return Held(held_names(table.read_text(encoding="utf-8", errors="replace")) - set(but))


def held_names(table: str) -> set[str]:
    """Find the names of locks in the text of /proc/net/unix."""
    return {line.partition(f" @{PREFIX}")[2].strip() for line in table.splitlines() if f" @{PREFIX}" in line}
