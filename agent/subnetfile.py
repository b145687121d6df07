"""`subnet.env`: what container engines read to learn this host's subnet. Flannel's keys, order and semantics.

    FLANNEL_NETWORK=10.42.0.0/16             the whole overlay
    FLANNEL_SUBNET=10.42.5.1/24              for the container bridge: subnet base + 1
    FLANNEL_IPV6_NETWORK=fd00:42::/48        the same for IPv6; a family that is off has no lines
    FLANNEL_IPV6_SUBNET=fd00:42:0:5::1/64
    FLANNEL_MTU=1450                         bytes
    FLANNEL_IPMASQ=false                     whether we masquerade, so that the engine need not

It is read back at start, so that a host gets its subnet again even if the registry has forgotten it (what can be read
counts), and by the CNI plugin (all of it has to be right). The plugin's start time is why this imports next to nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface
from pathlib import Path

Network = IPv4Network | IPv6Network

_NAMES = {4: ("FLANNEL_NETWORK", "FLANNEL_SUBNET"), 6: ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")}


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """The file's content: for each family that is on, IPv4 first, (Network, our subnet of it). `mtu` in bytes."""

    families: tuple[tuple[Network, Network], ...]
    mtu: int
    ipmasq: bool

    def text(self) -> str:
        """Return the file's text."""
        lines = []
        for network, subnet in self.families:
            network_name, subnet_name = _NAMES[network.version]
            lines.append(f"{network_name}={network}\n")
            lines.append(f"{subnet_name}={subnet.network_address + 1}/{subnet.prefixlen}\n")
        lines.append(f"FLANNEL_MTU={self.mtu}\n")
        lines.append(f"FLANNEL_IPMASQ={'true' if self.ipmasq else 'false'}\n")
        return "".join(lines)


def write(path: Path, content: SubnetFile) -> None:
    """Replace the file atomically, mode 0644, making its folder (0755). Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    replace(path, content.text(), 0o644)


def replace(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically. Raises OSError.

    What somebody else has put in the temporary file's place, a link perhaps, is removed and not written to: the folder
    may belong to another user.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_one(path: Path) -> bool:
    """Tell whether a file says nothing but what subnet files say. Raises OSError."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return any(lines) and all(line.startswith("FLANNEL_") for line in lines if line)


def previous_subnets(path: Path) -> tuple[Network, ...]:
    """Read the subnets of an earlier run, of either family, masked to their networks.

    A family is left out if there is no such file, or it does not hold exactly one valid subnet (flannel: a comma list
    is none).
    """
    try:
        values = _values(path)
    except OSError:
        return ()
    found: list[Network] = []
    for version, (_, name) in _NAMES.items():
        subnets = [subnet for part in values.get(name, "").split(",") if (subnet := _subnet(part, version))]
        found += subnets if len(subnets) == 1 else []
    return tuple(found)


def previous(path: Path) -> tuple[tuple[Network, Network], ...]:
    """Read network and subnet of each family of an earlier run; nothing if there is no such file, or a broken one."""
    try:
        return read(path).families
    except (OSError, ValueError):
        return ()


def read(path: Path) -> SubnetFile:
    """Read all of it, as flannel's CNI plugin does. Raises OSError; ValueError, in the operator's words."""
    values = _values(path)
    families = tuple(family for version, names in _NAMES.items() if (family := _family(values, version, names)))
    if not families:
        raise ValueError("neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is in it")
    mtu, ipmasq = values.get("FLANNEL_MTU", "").strip(), values.get("FLANNEL_IPMASQ", "").strip()
    if not (mtu.isdecimal() and 0 < int(mtu) <= 65535):
        raise ValueError(f"FLANNEL_MTU={mtu}: expected 1 to 65535 bytes")
    if ipmasq not in ("true", "false"):
        raise ValueError(f"FLANNEL_IPMASQ={ipmasq}: expected true or false")
    return SubnetFile(families, int(mtu), ipmasq == "true")


def _family(values: dict[str, str], version: int, names: tuple[str, str]) -> tuple[Network, Network] | None:
    if not any(name in values for name in names):
        return None
    found = []
    for name in names:
        value = values.get(name, "")
        network = _subnet(value, version)
        if network is None:
            raise ValueError(f"{name}={value}: expected an IPv{version} network with its length")
        found.append(network)
    whole, subnet = found
    if not (subnet.network_address in whole and subnet.broadcast_address in whole):
        raise ValueError(f"{names[1]} {subnet} is not inside {names[0]} {whole}: it is of another network")
    return whole, subnet


def _values(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name.strip(): value for name, _, value in (line.partition("=") for line in lines)}


def _subnet(value: str, version: int) -> Network | None:
    try:
        interface = ip_interface(value.strip().strip("\"'"))
    except ValueError:
        return None
    return interface.network if interface.version == version else None
