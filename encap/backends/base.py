"""What the agent needs of a backend, whichever it is; and what backends share. Which there are: table.py.

    config, underlay --> Backend
    attrs      what we publish with our lease        link, own_entries   our device, and what is on it without peers
    peer       a lease of another host: its entries  owns                what on the devices is ours
    datapath   what the data-plane process is to be, where the packets are carried in userspace

A backend decides and does nothing: the Reconciler brings device and entries about, the Supervisor the process.
Everything that follows from our lease is worked out from the lease as it was written, so all hosts see what we do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Protocol

from flanneld_py.encap.family import Family, IPAddress, Network
from flanneld_py.encap.peers import Own, Peer
from flanneld_py.encap.state import MARKS, Entry, Link, OurLink, Route
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig
from flanneld_py.registry.model import Json, Lease, LeaseAttrs, stand_in

if TYPE_CHECKING:
    from flanneld_py.encap.datapath.control import messages


OnLink = Callable[[IPAddress], bool]
"""Whether packets to an underlay address go over the underlay interface without a gateway."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """The interface that carries the tunnel: its MTU in bytes, its own address, and the address peers should use.

    The addresses of a family that is off are None. `broadcasts` mean everybody on its link, and so are no host's.
    """

    interface: str
    mtu: int
    address: IPv4Address | None
    public_ip: IPv4Address | None
    address6: IPv6Address | None = None
    public_ip6: IPv6Address | None = None
    broadcasts: frozenset[IPAddress] = frozenset()

    def __str__(self) -> str:
        """Show it to people."""
        own = [str(address) for address in (self.address, self.address6) if address is not None]
        return f"{', '.join(own)} on {self.interface}, MTU {self.mtu}"

    @property
    def own(self) -> tuple[str, IPv4Address | None, IPv6Address | None]:
        """What a connection of this host may be bound to: the interface, and its addresses."""
        return self.interface, self.address, self.address6

    def addresses(self, family: Family) -> tuple[IPAddress, IPAddress]:
        """Return our own address and the one for peers. Raises ConfigInvalid if the underlay lacks the family."""
        own, public = (self.address, self.public_ip) if family.bits == 32 else (self.address6, self.public_ip6)
        if own is None or public is None:
            raise ConfigInvalid(
                f"{family.name} was turned on after {self.interface} was chosen as the underlay without it: "
                "restart flanneld-py"
            )
        return own, public


@dataclass(frozen=True, slots=True)
class Found:
    """What may be worth keeping when we publish ourselves: this host's identity, our lease and our device so far.

    `others` are the leases of all other hosts.
    """

    identity: str
    lease: Lease | None = None
    device: Link | None = None
    others: Iterable[Lease] = ()


class Backend(Protocol):
    """One family of a network on one host. `mtu`, in bytes, is for containers.

    `device` is ours alone, None if there is none; `parent` the underlay interface, which we share with everybody.
    Entries are on these two. `asks_on_link` is whether those of a peer depend on OnLink.
    `userspace` is whether the data-plane process carries the packets, and `why` says why so.
    """

    family: Family
    parent: str
    asks_on_link: bool
    mtu: int
    userspace: bool
    why: str

    @property
    def device(self) -> str | None:
        """See above."""
        ...

    @property
    def port(self) -> int | None:
        """The UDP port that the tunnel's datagrams go to; None without a tunnel."""
        ...

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease."""
        ...

    def link(self, lease: Lease) -> OurLink | None:
        """Return the device as it should be, given our lease; None if there is none."""
        ...

    def datapath(self, lease: Lease) -> messages.Configure | None:
        """Return what the data-plane process is to be, given our lease; None if the kernel carries the packets."""
        ...

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """Return the entries that are there without any peer."""
        ...

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found on our two devices is ours: made by us, an earlier run, or flannel's daemon."""
        ...

    def peer(self, lease: Lease) -> Peer:
        """Return what a lease of another host needs in the kernel. Raises Unusable."""
        ...


class Deviceless:
    """What backends without a device of their own have in common: they own nothing but routes on the underlay."""

    def __init__(self, config: NetworkConfig, underlay: Underlay, family: Family) -> None:
        self._network = family.network(config)
        _, self._public = underlay.addresses(family)
        self.family = family
        self.device = None
        self.port = None
        self.parent = underlay.interface
        self.mtu = underlay.mtu
        self.userspace = False

    def link(self, lease: Lease) -> None:
        """See Backend: there is no device."""

    def datapath(self, lease: Lease) -> messages.Configure | None:
        """See Backend."""
        return None

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """See Backend: nothing is there without peers."""
        return ()

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found on the underlay interface is ours, or a leftover."""
        return is_direct(entry, self.parent, self._network)


def container_mtu(config: NetworkConfig, underlay: Underlay, family: Family, overhead: int) -> int:
    """Return the bytes that the wire format's overhead leaves to containers. Raises ConfigInvalid if too few."""
    outer = number(config.backend.get("mtu"), "MTU", 0, 0, 65535) or underlay.mtu
    if outer - overhead < family.least_mtu:
        raise ConfigInvalid(
            f"the MTU {outer} of {underlay.interface} or Backend.MTU leaves {outer - overhead} bytes to containers; "
            f"it must be at least {family.least_mtu + overhead}"
        )
    return outer - overhead


def plain_attrs(public: IPAddress, backend_type: str = "") -> LeaseAttrs:
    """Return what a backend without data publishes: the underlay address of its family, and its type if it has one."""
    match public:
        case IPv4Address():
            return LeaseAttrs(public, None, backend_type)
        case IPv6Address():
            return LeaseAttrs(stand_in(public), public, backend_type)


def direct_route(interface: str, family: Family, lease: Lease) -> Route:
    """Return the route to the subnet of a host that is on the interface's link: the host itself is the gateway."""
    subnet, gateway = family.subnet(lease.subnets), family.public(lease.attrs)
    assert subnet is not None
    assert gateway is not None
    return Route(interface, subnet.network_address.packed, subnet.prefixlen, gateway.packed)


def is_direct(entry: Entry, interface: str, network: Network) -> bool:
    """Tell whether an entry is a direct route that we have made, now or on another backend."""
    return (
        isinstance(entry, Route)
        and entry.device == interface
        and entry.protocol in MARKS
        and entry.gateway is not None
        and 8 * len(entry.subnet) == network.max_prefixlen
        and ip_address(entry.subnet) in network
    )


def number(value: Json, name: str, default: int, least: int, most: int) -> int:
    """Read a number among a backend's options. Raises ConfigInvalid."""
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigInvalid(f"Backend.{name} is {value!r}; it must be a number from {least} to {most}")
    return value


def switch(value: Json, name: str) -> bool:
    """Read a switch, off by default, among a backend's options. Raises ConfigInvalid."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigInvalid(f"Backend.{name} is {value!r}; it must be true or false")
