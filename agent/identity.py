"""Who this host is: an identity that survives restarts, reboots and a change of address, and that clones do not share.

It is derived, not stored: a file would be copied with the disk. From the machine id (one per installation) and the MAC
of the underlay interface (one per machine, also after cloning), hashed, because a machine id should not be published
(machine-id(5)).
"""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """`name` identifies the host; `boot_id` one boot of it and the network namespace; `hostname` is for people.

    With the boot alone two hosts in network namespaces of one machine would be one.
    """

    name: str
    boot_id: str
    hostname: str


def read_identity(underlay_mac: bytes, root: Path = Path("/")) -> Identity:
    """Work out this host's identity. A host without machine id is told apart by its MAC alone."""
    machine_id = _first_line(root / "etc/machine-id") or _first_line(root / "var/lib/dbus/machine-id")
    digest = hashlib.sha256(f"flanneld-py host {machine_id} {underlay_mac.hex()}".encode()).hexdigest()
    boot_id = _first_line(root / "proc/sys/kernel/random/boot_id")
    return Identity(digest[:32], f"{boot_id}/{_network_namespace(root)}" if boot_id else "", socket.gethostname())


def _network_namespace(root: Path) -> int:
    """Return the number of our network namespace, which no other one has meanwhile (namespaces(7)); 0: unknown."""
    try:
        return (root / "proc/self/ns/net").stat().st_ino
    except OSError:
        return 0


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
