"""The `alloc` backend: a subnet for this host, and nothing else. Who brings the packets there is the operator's matter.

It matches flannel's: a lease that names no backend, and the underlay's MTU in subnet.env. Routes that host-gw or
DirectRouting left on the underlay interface are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flanneld_py.encap.backends.base import Deviceless, Found, Underlay, plain_attrs
from flanneld_py.encap.family import IPV4, Family
from flanneld_py.encap.peers import Peer
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs

if TYPE_CHECKING:
    pass

BACKEND_TYPE = "alloc"


class Alloc(Deviceless):
    """Leases only. Raises ConfigInvalid if the underlay lacks the family."""

    def __init__(self, config: NetworkConfig, underlay: Underlay, family: Family = IPV4) -> None:
        super().__init__(config, underlay, family)
        self.asks_on_link = False
        self.why = "the alloc backend leaves packets to the operator"

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease: as flannel's, no type and no data."""
        return plain_attrs(self._public)

    def peer(self, lease: Lease) -> Peer:
        """Take any lease, and need nothing for it."""
        return Peer(lease, None, ())
