"""Hosts that exist only as leases: as many as wanted, all different, all valid. Pure.

Number i = 0, 1, … has the subnet 10.64.0.0/24 + i, the address 198.18.1.0 + i (RFC 2544's range for benchmarks, routed
nowhere) and the MAC 06:fb followed by i. The real host leases below 10.64.0.0, see SUBNET_MAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flanneld_py.registry import codec
from flanneld_py.registry.model import Json, LeaseAttrs, Subnets

NETWORK = IPv4Network("10.0.0.0/8")
SUBNET_MAX = "10.63.255.0"
FIRST_SUBNET = IPv4Address("10.64.0.0")
FIRST_ADDRESS = IPv4Address("198.18.1.0")
MOST = 45_000
"""How many there may be, with room for those that a benchmark adds."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One host that nobody has."""

    number: int

    @property
    def subnet(self) -> IPv4Network:
        """Its subnet."""
        return IPv4Network((int(FIRST_SUBNET) + 256 * self.number, 24))

    @property
    def base(self) -> IPv4Address:
        """The overlay address of its VTEP."""
        return self.subnet.network_address

    @property
    def mac(self) -> bytes:
        """The MAC of its VTEP."""
        return bytes([0x06, 0xFB, *self.number.to_bytes(4, "big")])

    def key(self, prefix: str) -> str:
        """Return the key of its lease."""
        return codec.lease_key(prefix, Subnets(self.subnet))

    @property
    def value(self) -> bytes:
        """The value of its lease, as flannel's daemon would write it."""
        data: Json = {"VNI": 1, "VtepMAC": self.mac.hex(":")}
        return codec.encode_attrs(LeaseAttrs(FIRST_ADDRESS + self.number, None, "vxlan", data))
