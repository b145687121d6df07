"""Forwarding decisions of the userspace data plane, both directions. (First version: signatures only.)"""

from __future__ import annotations

from dataclasses import dataclass

from flanneld_py.encap.frame import Refused

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Remote:
    """A peer: its subnet (packed base, prefix length), its underlay address (packed), its VTEP's MAC (b"" for RAW)."""

    base: bytes
    length: int
    address: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Encapsulate the packet and send it to this peer."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Reply:
    """Write this ICMP packet back to the TUN device and count `reason`."""

    packet: bytes
    reason: Refused


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the packet and count `reason`."""

    reason: Refused


@dataclass(frozen=True, slots=True)
class Deliver:
    """Write the packet to the TUN device; `remote` is who sent it."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Own:
    """Ourselves: subnets as (packed base, prefix length), and the TUN addresses that ICMP replies come from."""

    subnets: tuple[tuple[bytes, int], ...]
    address4: bytes | None = None
    address6: bytes | None = None


class Table:
    """Who is behind which subnet. Addresses are packed bytes, 4 or 16 long."""

    def set(self, key: str, remote: Remote) -> None:
        """Add a peer or replace the one under this key."""

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""

    def lookup(self, destination: bytes) -> Remote | None:
        """Return the peer with the longest subnet that holds the address."""
        return None

    def from_address(self, address: bytes) -> tuple[Remote, ...]:
        """Return the peers behind an underlay address."""
        return ()


def outbound(table: Table, packet: Buffer, mtu: int, own: Own, gso_size: int = 0) -> Send | Reply | Drop:
    """Decide on a packet read from the TUN device. `gso_size` of its virtio header: a super-packet is not too big."""
    return Drop(Refused.NO_ROUTE)


def inbound(table: Table, source: bytes, packet: Buffer, own: Own) -> Deliver | Drop:
    """Decide on an inner packet that came from an underlay address."""
    return Drop(Refused.UNKNOWN_PEER)
