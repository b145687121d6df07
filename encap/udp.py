"""The `udp` backend as a pure function: leases and configuration in, kernel objects and orders out.

It matches flannel's (device `flannel0` with `<subnet base>/32` and one route for all of Network; the bare inner packet
in UDP; a lease that names no backend), so that hosts with flannel's daemon are peers like any other. The packets are
carried by the data-plane process, which knows the peers: in the kernel a peer needs nothing.

Two deliberate differences from flannel, both of the process: it takes packets from known peers only, and it outlives
the agent.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from flanneld_py.encap.backend import Found, Underlay, container_mtu, is_direct, number
from flanneld_py.encap.family import IPV4
from flanneld_py.encap.peers import Own, Peer
from flanneld_py.encap.state import ROUTE_PROTOCOL, Address, Entry, Route, TunLink
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs

if TYPE_CHECKING:
    from flanneld_py.encap import orders

BACKEND_TYPE = "udp"
DEVICE = "flannel0"
DEFAULT_PORT = 8285

OVERHEAD = 28
"""Bytes per packet over IPv4: UDP 8, IP 20."""


class Udp:
    """Bare packets in UDP for one network on one host. Raises ConfigInvalid for a Backend section that cannot be."""

    def __init__(self, config: NetworkConfig, underlay: Underlay) -> None:
        assert config.ipv4 is not None
        self.family = IPV4
        self._network: IPv4Network = config.ipv4.network
        self._address, public_ip = underlay.addresses(IPV4)
        self._public_ip = IPv4Address(public_ip)
        self._port = number(config.backend.get("port"), "Port", DEFAULT_PORT, 1, 65535)
        self.mtu = container_mtu(config, underlay, IPV4, OVERHEAD)
        self.device = DEVICE
        self.parent = underlay.interface
        self.asks_on_link = False
        self.userspace = True
        self.why = "the udp backend always is"

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease: as flannel's, no type and no data."""
        return LeaseAttrs(self._public_ip)

    def link(self, lease: Lease) -> TunLink:
        """Return the device as it should be."""
        return TunLink(self.device, self.mtu)

    def datapath(self, lease: Lease) -> orders.Configure:
        """Return what the data-plane process is to be, given our lease."""
        from flanneld_py.encap import orders  # A host on another backend need not load it.

        local = self._address.packed
        return orders.Configure(orders.Mode.RAW, self.device, local, self._port, self.mtu, (lease.subnets.v4,))

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """Return our base address and the route to everybody: what no peer has, the data plane answers with ICMP."""
        base, network = own.subnets.v4.network_address.packed, self._network.network_address.packed
        return Address(self.device, base, 32), Route(self.device, network, self._network.prefixlen, None)

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found is ours. An operator's own address or route stays his."""
        if entry.device == self.parent:
            return is_direct(entry, self.parent, self._network)  # Left by host-gw: it would win over our route.
        match entry:
            case Route():
                return entry.protocol == ROUTE_PROTOCOL
            case Address(_, address, _):
                return len(address) == 4 and IPv4Address(address) in self._network
            case _:
                return False

    def peer(self, lease: Lease) -> Peer:
        """Take any lease: a type in it, which flannel does not look at either, says nothing about the port."""
        return Peer(lease, None, ())
