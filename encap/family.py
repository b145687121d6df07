"""The address family that a backend serves, and where its things stand in config, lease and attributes.

In dual stack there are two backend objects and two devices, each as though it were alone: IPv4 travels over IPv4, and
IPv6 over IPv6.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanneld_py.registry.config import FamilyConfig, NetworkConfig
from flanneld_py.registry.model import NO_IPV4, Json, LeaseAttrs, Subnets

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6; `bits` is the length of an address, `least_mtu` in bytes.

    `field` is a lease's for the underlay address.
    """

    name: str
    bits: int
    least_mtu: int
    field: str

    def config(self, config: NetworkConfig) -> FamilyConfig | None:
        """Return what the network config says on this family; None if it is off."""
        return config.ipv4 if self.bits == 32 else config.ipv6

    def network(self, config: NetworkConfig) -> Network:
        """Return the Network of this family, which is on."""
        found = self.config(config)
        assert found is not None
        return found.network

    def subnet(self, subnets: Subnets) -> Network | None:
        """Return the subnet of this family; None if the lease has none."""
        if self.bits == 128:
            return subnets.v6
        return subnets.v4 if subnets.v4 != NO_IPV4 else None

    def public(self, attrs: LeaseAttrs) -> IPAddress | None:
        """Return the underlay address that a host publishes."""
        return attrs.public_ip if self.bits == 32 else attrs.public_ip6

    def data(self, attrs: LeaseAttrs) -> Json:
        """Return what a host publishes of its backend."""
        return attrs.backend_data if self.bits == 32 else attrs.backend_v6_data


IPV4 = Family("IPv4", 32, 68, "PublicIP")  # RFC 791
IPV6 = Family("IPv6", 128, 1280, "PublicIPv6")  # RFC 8200 section 5
