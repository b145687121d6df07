"""The `host-gw` backend as a pure function: a lease becomes a route to its subnet by way of its host, without a tunnel.

It matches flannel's (`<subnet> via <PublicIP> dev <underlay>`, lease type `host-gw`). All hosts have to be on one link;
one that is not is left out, by name, and the others work. In dual stack there is one for each family, and a host may be
on our link in one of them only. Deliberate differences from flannel: a route that somebody
else has made is never replaced, and what becomes of the underlay is noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flanneld_py.encap.backends.base import Deviceless, Found, OnLink, Underlay, direct_route, plain_attrs
from flanneld_py.encap.family import IPV4, Family
from flanneld_py.encap.peers import Peer, Unusable
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig
from flanneld_py.registry.document import show
from flanneld_py.registry.model import Lease, LeaseAttrs

if TYPE_CHECKING:
    pass

BACKEND_TYPE = "host-gw"


class HostGw(Deviceless):
    """Routes to the other hosts of one link. Raises ConfigInvalid if this host cannot be their gateway."""

    def __init__(self, config: NetworkConfig, underlay: Underlay, on_link: OnLink, family: Family = IPV4) -> None:
        address, public = underlay.addresses(family)
        if public != address:
            flag = "--public-ip" if family is IPV4 else "--public-ipv6"
            raise ConfigInvalid(
                f"Backend.Type is 'host-gw', and {flag} {public} is not the address "
                f"{address} of {underlay.interface}: nobody can route through it. Leave {flag} out, "
                "or choose 'vxlan'"
            )
        super().__init__(config, underlay, family)
        self._on_link = on_link
        self.asks_on_link = True
        self.why = "the host-gw backend has routes only"

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease."""
        return plain_attrs(self._public, BACKEND_TYPE)

    def peer(self, lease: Lease) -> Peer:
        """Return the route to a lease. Raises Unusable."""
        if lease.attrs.backend_type != BACKEND_TYPE:
            raise Unusable(f"backend type is {show(lease.attrs.backend_type or 'none')}, ours is {BACKEND_TYPE!r}")
        public = self.family.public(lease.attrs)
        assert public is not None
        if not self._on_link(public):
            raise Unusable(
                f"{self.family.field} {public} is not on the link of {self.parent}, so it cannot be a gateway: "
                "bring that host into the same layer-2 network, or choose Backend.Type 'vxlan' with DirectRouting"
            )
        return Peer(lease, None, (direct_route(self.parent, self.family, lease),))
