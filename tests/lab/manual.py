"""The VXLAN overlay by hand: what the agents should arrive at, written with `ip` and `bridge`.

It is the yardstick: a lab programmed this way shows what the machine itself can do, without any agent or etcd.
The entries are flannel's: device flannel.1 with <subnet base>/32, and for each peer a neighbour, an FDB entry and
an onlink route. IPv6 is carried over IPv6, by a device flannel-v6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tests.lab.namespace import Namespace
from tests.lab.topology import VXLAN_OVERHEAD

DEVICE = "flannel.1"
DEVICE6 = "flannel-v6.1"
VNI = 1
PORT = 8472
"""UDP; the kernel's and flannel's default, not the registered 4789."""


@dataclass(frozen=True, slots=True)
class Vtep:
    """One host's end of the overlay: its underlay address, the MAC of its device, its subnet."""

    underlay: IPv4Address | IPv6Address
    mac: str
    subnet: IPv4Network | IPv6Network

    @property
    def base(self) -> IPv4Address | IPv6Address:
        """The overlay address of the device, and the gateway to the subnet."""
        return self.subnet.network_address


def program(namespace: Namespace, own: Vtep, peers: Sequence[Vtep], underlay_mtu: int = 1500) -> None:
    """Make the device on one host and the entries for all peers."""
    device, overhead = (DEVICE, VXLAN_OVERHEAD) if own.base.version == 4 else (DEVICE6, VXLAN_OVERHEAD + 20)
    namespace.ip(
        f"link add {device} address {own.mac} mtu {underlay_mtu - overhead} type vxlan id {VNI} dev eth0"
        f" local {own.underlay} dstport {PORT} nolearning",
        f"addr add {own.base}/{own.base.max_prefixlen} dev {device} nodad",
        f"link set {device} up",
        *(f"neigh replace {peer.base} lladdr {peer.mac} dev {device} nud permanent" for peer in peers),
    )
    namespace.bridge(*(f"fdb replace {peer.mac} dev {device} dst {peer.underlay} self permanent" for peer in peers))
    namespace.ip(*(f"route replace {peer.subnet} via {peer.base} dev {device} onlink" for peer in peers))
