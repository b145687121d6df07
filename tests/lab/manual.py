"""The VXLAN overlay by hand: what the agents should arrive at, written with `ip` and `bridge`.

It is the yardstick: a lab programmed this way shows what the machine itself can do, without any agent or etcd.
The entries are flannel's: device flannel.1 with <subnet base>/32, and for each peer a neighbour, an FDB entry and
an onlink route.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from tests.lab.namespace import Namespace
from tests.lab.topology import VXLAN_OVERHEAD

DEVICE = "flannel.1"
VNI = 1
PORT = 8472
"""UDP; the kernel's and flannel's default, not the registered 4789."""


@dataclass(frozen=True, slots=True)
class Vtep:
    """One host's end of the overlay: its underlay address, the MAC of its device, its subnet."""

    underlay: IPv4Address
    mac: str
    subnet: IPv4Network

    @property
    def base(self) -> IPv4Address:
        """The overlay address of the device, and the gateway to the subnet."""
        return self.subnet.network_address


def program(namespace: Namespace, own: Vtep, peers: Sequence[Vtep], underlay_mtu: int = 1500) -> None:
    """Make the device on one host and the entries for all peers."""
    namespace.ip(
        f"link add {DEVICE} address {own.mac} mtu {underlay_mtu - VXLAN_OVERHEAD} type vxlan id {VNI} dev eth0"
        f" local {own.underlay} dstport {PORT} nolearning",
        f"addr add {own.base}/32 dev {DEVICE}",
        f"link set {DEVICE} up",
        *(f"neigh replace {peer.base} lladdr {peer.mac} dev {DEVICE} nud permanent" for peer in peers),
    )
    namespace.bridge(*(f"fdb replace {peer.mac} dev {DEVICE} dst {peer.underlay} self permanent" for peer in peers))
    namespace.ip(*(f"route replace {peer.subnet} via {peer.base} dev {DEVICE} onlink" for peer in peers))
