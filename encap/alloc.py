"""The `alloc` backend: a subnet for this host, and nothing else. Who brings the packets there is the operator's matter.

It matches flannel's: a lease that names no backend, and the underlay's MTU in subnet.env. Routes that host-gw or
DirectRouting left on the underlay interface are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flanneld_py.encap.backend import Found, Underlay, is_direct, plain_attrs
from flanneld_py.encap.family import IPV4, Family
from flanneld_py.encap.peers import Own, Peer
from flanneld_py.encap.state import Entry
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs

if TYPE_CHECKING:
    from flanneld_py.encap import orders

BACKEND_TYPE = "alloc"


class Alloc:
    """Leases only. Raises ConfigInvalid if the underlay lacks the family."""

    def __init__(self, config: NetworkConfig, underlay: Underlay, family: Family = IPV4) -> None:
        self._network = family.network(config)
        _, self._public = underlay.addresses(family)
        self.family = family
        self.device = None
        self.parent = underlay.interface
        self.asks_on_link = False
        self.mtu = underlay.mtu
        self.userspace = False
        self.why = "the alloc backend leaves packets to the operator"

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease: as flannel's, no type and no data."""
        return plain_attrs(self._public)

    def link(self, lease: Lease) -> None:
        """See Backend: there is no device."""

    def datapath(self, lease: Lease) -> orders.Configure | None:
        """See Backend."""
        return None

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """See Backend: nothing is there without peers."""
        return ()

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found on the underlay interface is ours: a leftover."""
        return is_direct(entry, self.parent, self._network)

    def peer(self, lease: Lease) -> Peer:
        """Take any lease, and need nothing for it."""
        return Peer(lease, None, ())
