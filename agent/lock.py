"""One agent for a device: who has it is told by the name of an abstract socket.

Such a socket belongs to the network namespace, as the device does, and goes with the process that bound it.
"""

from __future__ import annotations

import socket

from flanneld_py.agent.broken import Broken

PREFIX = "flanneld-py/"


def lock_device(name: str) -> socket.socket:
    """Make sure that no other agent on this host has what is named, until the socket is closed. Raises Broken."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(f"\0{PREFIX}{name}")
    except OSError as error:
        lock.close()
        raise Broken(
            f"another flanneld-py on this host has {name}; stop that one, or give the two networks something of "
            "their own: vxlan another Backend.VNI, host-gw and alloc another Network"
        ) from error
    return lock


def held_devices(table: str) -> list[str]:
    """Find what agents hold, in the text of /proc/net/unix."""
    return sorted(line.partition(f" @{PREFIX}")[2].strip() for line in table.splitlines() if f" @{PREFIX}" in line)
