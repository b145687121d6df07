"""What the agent and the data-plane process say to each other, as values; as bytes in protocol.py. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network


class Mode(Enum):
    """The wire format: VXLAN (RFC 7348), or the bare inner packet as flannel's udp backend sends it."""

    VXLAN = "vxlan"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Configure:
    """What the data plane is. `mtu` in bytes is that of the device; `local` the underlay address to bind, packed.

    `vni` and `mac` (our VTEP's) matter in VXLAN only. `workers` is how many processes move packets.
    """

    mode: Mode
    device: str
    local: bytes
    port: int
    mtu: int
    subnets: tuple[IPv4Network | IPv6Network, ...]
    vni: int = 0
    mac: bytes = bytes(6)
    workers: int = 1

    def fixed(self) -> tuple[object, ...]:
        """Return what cannot change while the process runs: device and socket are made of it."""
        return (self.mode, self.device, self.local, self.port, self.workers)


@dataclass(frozen=True, slots=True)
class Peer:
    """A lease of another host: packets to `subnet` go to `address`, both packed; `mac` is its VTEP's."""

    key: str
    subnet: bytes
    prefix_length: int
    address: bytes
    mac: bytes = bytes(6)


@dataclass(frozen=True, slots=True)
class Begin:
    """A full table follows."""


@dataclass(frozen=True, slots=True)
class Put:
    """Peers, new or changed."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class Remove:
    """A peer that is gone."""

    key: str


@dataclass(frozen=True, slots=True)
class End:
    """The table is complete."""


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Totals, please."""


@dataclass(frozen=True, slots=True)
class AskTraffic:
    """Counters of peers, please, beginning with the peer at this position."""

    first: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End for good."""


@dataclass(frozen=True, slots=True)
class Done:
    """Applied; so many peers are in the table."""

    peers: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Not applied, with a reason for the operator; `restart` if a new process could apply it."""

    reason: str
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the process; `accelerated` if the parts in C were built.

    `counters` by reason, in packets as they crossed the TUN device or the wire.
    """

    pid: int
    configured: bool
    peers: int
    device: str = ""
    offloads: tuple[str, ...] = ()
    segmentation: bool = False
    coalescing: bool = False
    receive_buffer: int = 0
    workers: int = 1
    accelerated: bool = False
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """What went to and came from one peer: packets and bytes, super-packets counted as one."""

    key: str
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counters of some peers; `following` is the position of the next, 0 if there is none."""

    following: int
    peers: tuple[PeerTraffic, ...]


Request = Configure | Begin | Put | Remove | End | AskStatus | AskTraffic | Stop
Answer = Done | Refused | Status | Traffic
Message = Request | Answer
