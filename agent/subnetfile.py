"""`subnet.env`: what container engines read to learn this host's subnet. Flannel's keys, order and semantics.

    FLANNEL_NETWORK=10.42.0.0/16       the whole overlay
    FLANNEL_SUBNET=10.42.5.1/24        for the container bridge: subnet base + 1
    FLANNEL_MTU=1450                   bytes
    FLANNEL_IPMASQ=false               whether we masquerade, so that the engine need not

It is read back at start, so that a host gets its subnet again even if the registry has forgotten it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """The file's content. `mtu` in bytes."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ipmasq: bool

    def text(self) -> str:
        """Return the file's text."""
        return (
            f"FLANNEL_NETWORK={self.network}\n"
            f"FLANNEL_SUBNET={self.subnet.network_address + 1}/{self.subnet.prefixlen}\n"
            f"FLANNEL_MTU={self.mtu}\n"
            f"FLANNEL_IPMASQ={'true' if self.ipmasq else 'false'}\n"
        )


def write(path: Path, content: SubnetFile) -> None:
    """Replace the file atomically, mode 0644, making its folder (0755). Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content.text(), encoding="ascii")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def previous_subnet(path: Path) -> IPv4Network | None:
    """Read FLANNEL_SUBNET of an earlier run, masked to its network.

    None if there is no such file, or it does not hold exactly one valid subnet (flannel: a comma list is none).
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == "FLANNEL_SUBNET"]
    subnets = [subnet for value in values[-1:] for part in value.split(",") if (subnet := _subnet(part))]
    return subnets[0] if len(subnets) == 1 else None


def _subnet(value: str) -> IPv4Network | None:
    try:
        return IPv4Interface(value.strip().strip("\"'")).network
    except ValueError:
        return None
