"""The `udp` backend as a pure function: leases and configuration in, kernel objects and orders out.

It matches flannel's (device `flannel0` with `<subnet base>/32` and one route for all of Network; the bare inner packet
in UDP; a lease that names no backend), so that hosts with flannel's daemon are peers like any other. The packets are
carried by the data-plane process, which knows the peers: in the kernel a peer needs nothing.

Deliberate differences from flannel: the process takes packets from known peers only, it outlives the agent, a host
inside Network is a peer only if it is on our link (the route for all of Network would lead its packets back), and there
is IPv6, which flannel's has not: the same over IPv6, by a device and a process of its own. A host with flannel's daemon
publishes no IPv6 address, so it is a peer in IPv4 alone.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from flanneld_py.encap.backends.base import Found, OnLink, Underlay, container_mtu, is_direct, number, plain_attrs
from flanneld_py.encap.family import IPV4, Family
from flanneld_py.encap.peers import Own, Peer, Unusable
from flanneld_py.encap.state import MARKS, Address, Entry, Route, TunLink
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs

if TYPE_CHECKING:
    from flanneld_py.encap.datapath.control import messages

BACKEND_TYPE = "udp"
DEVICE = {32: "flannel0", 128: "flannel0-v6"}
"""Over IPv4 as flannel names it, and over IPv6; no VXLAN device has such a name."""

DEFAULT_PORT = 8285

OVERHEAD = {32: 28, 128: 48}
"""Bytes per packet over IPv4 and IPv6: UDP 8, IP 20 or 40."""


class Udp:
    """Bare packets in UDP for one network on one host. Raises ConfigInvalid for a Backend section that cannot be."""

    def __init__(self, config: NetworkConfig, underlay: Underlay, on_link: OnLink, family: Family = IPV4) -> None:
        self.family = family
        self._network = family.network(config)
        self._address, self._public_ip = underlay.addresses(family)
        self._on_link = on_link
        self.port = number(config.backend.get("port"), "Port", DEFAULT_PORT, 1, 65535)
        self.mtu = container_mtu(config, underlay, family, OVERHEAD[family.bits])
        self.device = DEVICE[family.bits]
        self.parent = underlay.interface
        self.asks_on_link = self._address in self._network
        self.userspace = True
        self.why = "the udp backend always is"

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease: as flannel's, no type and no data."""
        return plain_attrs(self._public_ip)

    def link(self, lease: Lease) -> TunLink:
        """Return the device as it should be."""
        return TunLink(self.device, self.mtu)

    def datapath(self, lease: Lease) -> messages.Configure:
        """Return what the data-plane process is to be, given our lease."""
        from flanneld_py.encap.datapath.control import messages  # A host on another backend need not load it.

        subnet = self.family.subnet(lease.subnets)
        assert subnet is not None
        return messages.Configure(messages.Mode.RAW, self.device, self._address.packed, self.port, self.mtu, (subnet,))

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """Return our base address and the route to everybody: what no peer has, the data plane answers with ICMP."""
        subnet = self.family.subnet(own.subnets)
        assert subnet is not None
        base, network = subnet.network_address.packed, self._network.network_address.packed
        return (
            Address(self.device, base, self.family.bits),
            Route(self.device, network, self._network.prefixlen, None),
        )

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found is ours. An operator's own address or route stays his."""
        if entry.device == self.parent:
            return is_direct(entry, self.parent, self._network)  # Left by host-gw: it would win over our route.
        if entry.device != self.device:
            return False
        match entry:
            case Route():
                return entry.protocol in MARKS
            case Address(_, address, _):
                return 8 * len(address) == self.family.bits and ip_address(address) in self._network
            case _:
                return False

    def peer(self, lease: Lease) -> Peer:
        """Take any lease: a type in it, which flannel does not look at either, says nothing about the port.

        Raises Unusable for a host that our route for all of Network would be the way to: only one on our own link has
        a longer one.
        """
        public = self.family.public(lease.attrs)
        assert public is not None
        if public in self._network and not (self.asks_on_link and self._on_link(public)):
            raise Unusable(
                f"{self.family.field} {public} is inside Network {self._network} and not on the link of {self.parent}: "
                "the tunnel would lead into itself; choose Backend.Type 'vxlan', or a Network without the hosts"
            )
        return Peer(lease, None, ())
