"""The `vxlan` backend as a pure function: leases and configuration in, kernel objects out.

It matches flannel's kernel VXLAN (device `flannel.<VNI>` with `<subnet base>/32`, and per peer a neighbour, an FDB
entry and an onlink route; with DirectRouting a route by way of the host itself where that is on our link), so that
hosts with flannel's daemon are peers like any other. IPv6 has a device of its own, `flannel-v6.<VNI>`, over IPv6.
Deliberate differences:
- a device whose name would be too long for the kernel has another, which no peer sees; flannel's daemon fails there;
- whether a peer is on our link is asked again when the underlay's routes have changed;
- the IPv6 device's MTU leaves room for its longer outer header, 70 bytes in all; flannel leaves 50;
- the outer source address is the underlay interface's own, also behind NAT (`--public-ip` is only advertised);
- the MAC is derived from the host's identity where neither the device nor our lease has one already;
- a peer that publishes another VNI is not programmed: its kernel would drop every packet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from flanneld_py.encap.backends.base import (
    Found,
    OnLink,
    Underlay,
    container_mtu,
    direct_route,
    is_direct,
    number,
    switch,
)
from flanneld_py.encap.family import IPV4, Family
from flanneld_py.encap.peers import Own, Peer, Unusable
from flanneld_py.encap.state import (
    MARKS,
    Address,
    Entry,
    FdbEntry,
    Neighbour,
    Nexthop,
    OurLink,
    Route,
    TunLink,
    VxlanLink,
    text,
)
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.document import show
from flanneld_py.registry.model import Json, Lease, LeaseAttrs, stand_in

if TYPE_CHECKING:
    from flanneld_py.encap.datapath.control import messages

BACKEND_TYPE = "vxlan"
DEFAULT_VNI = 1
DEFAULT_PORT = 8472
"""Linux's VXLAN port, and flannel's; IANA's is 4789."""

_LONGEST_NAME = 15  # IFNAMSIZ without its zero byte (linux/if.h)

OVERHEAD = {32: 50, 128: 70}
"""Bytes per packet over IPv4 and IPv6: inner Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40 (RFC 7348 section 5)."""


def device_name(vni: int, family: Family) -> str:
    """Return flannel's name for the device; where that is too long, one that fits and is no other VNI's or family's."""
    name = f"flannel.{vni}" if family is IPV4 else f"flannel-v6.{vni}"
    return name if len(name) <= _LONGEST_NAME else f"flannel{4 if family is IPV4 else 6}x{vni:06x}"


class Vxlan:
    """Kernel VXLAN for one network on one host. Raises ConfigInvalid for a Backend section that cannot be."""

    def __init__(
        self,
        config: NetworkConfig,
        underlay: Underlay,
        on_link: OnLink,
        family: Family = IPV4,
        *,
        nexthop_objects: bool,
        userspace: bool = False,
        why: str = "",
    ) -> None:
        options = config.backend
        self.family = family
        self.userspace = userspace
        self.why = why
        self._on_link = on_link
        self._network = family.network(config)
        self._address, self._public_ip = underlay.addresses(family)
        self._nexthop_objects = nexthop_objects
        self.vni = number(options.get("vni"), "VNI", DEFAULT_VNI, 0, 2**24 - 1)
        self.port = number(options.get("port"), "Port", 0, 0, 65535) or DEFAULT_PORT
        self.mtu = container_mtu(config, underlay, family, OVERHEAD[family.bits])
        self.gbp = switch(options.get("gbp"), "GBP")
        self.learning = switch(options.get("learning"), "Learning")
        self.asks_on_link = switch(options.get("directrouting"), "DirectRouting")
        self.device = device_name(self.vni, family)
        self.parent = underlay.interface

    # Ourselves

    def attrs(self, found: Found) -> LeaseAttrs:
        """Return what we publish with our lease: VNI and MAC; see choose_mac."""
        device = found.device.mac if isinstance(found.device, VxlanLink) else None
        published = self.family.data(found.lease.attrs) if found.lease is not None else None

        def taken(mac: bytes) -> bool:
            return any(publishes(self.family.data(lease.attrs), mac) for lease in found.others)

        identity = found.identity if self.family is IPV4 else f"{found.identity} {self.family.name}"
        data: Json = {"VNI": self.vni, "VtepMAC": text(choose_mac(device, published, identity, taken))}
        match self._public_ip:
            case IPv4Address() as public_ip:
                return LeaseAttrs(public_ip, None, BACKEND_TYPE, data)
            case IPv6Address() as public_ip6:
                return LeaseAttrs(stand_in(public_ip6), public_ip6, BACKEND_TYPE, None, data)

    def link(self, lease: Lease) -> OurLink:
        """Return the device as it should be, with the MAC in our lease."""
        if self.userspace:
            return TunLink(self.device, self.mtu)
        return VxlanLink(
            name=self.device,
            vni=self.vni,
            port=self.port,
            mtu=self.mtu,
            mac=self._vtep(self.family.data(lease.attrs)),
            parent=self.parent,
            local=self._address.packed,
            learning=self.learning,
            gbp=self.gbp,
        )

    def datapath(self, lease: Lease) -> messages.Configure | None:
        """Return what the data-plane process is to be, given our lease; None if the kernel carries the packets."""
        if not self.userspace:
            return None
        from flanneld_py.encap.datapath.control import messages  # Most hosts never need it.

        mac, subnet = self._vtep(self.family.data(lease.attrs)), self.family.subnet(lease.subnets)
        assert subnet is not None
        local = self._address.packed
        return messages.Configure(
            messages.Mode.VXLAN, self.device, local, self.port, self.mtu, (subnet,), self.vni, mac
        )

    def own_entries(self, own: Own) -> tuple[Entry, ...]:
        """Return the entries that are there without any peer: our base address, without a route to go with it."""
        subnet = self.family.subnet(own.subnets)
        assert subnet is not None
        return (Address(self.device, subnet.network_address.packed, self.family.bits),)

    def owns(self, entry: Entry) -> bool:
        """Tell whether an entry found is ours: made by us, by an earlier run, or by flannel's daemon.

        An operator's own address, route or neighbour outside Network stays his; so does all but our routes on the
        underlay interface.
        """
        if entry.device == self.parent:
            return is_direct(entry, self.parent, self._network)
        if entry.device != self.device:
            return False
        match entry:
            case Route(_, subnet, length, gateway, protocol):
                exact = gateway == subnet and length < self.family.bits and self._inside(subnet)
                return protocol in MARKS or exact
            case Address(_, address, _) | Neighbour(_, address, _):
                return self._inside(address)
            case FdbEntry() | Nexthop():
                return True

    def _inside(self, packed: bytes) -> bool:
        return 8 * len(packed) == self.family.bits and ip_address(packed) in self._network

    # The others

    def peer(self, lease: Lease) -> Peer:
        """Return what a lease needs in the kernel. Raises Unusable."""
        if lease.attrs.backend_type != BACKEND_TYPE:
            raise Unusable(f"backend type is {show(lease.attrs.backend_type or 'none')}, ours is {BACKEND_TYPE!r}")
        mac = self._vtep(self.family.data(lease.attrs))
        subnet, public_ip = self.family.subnet(lease.subnets), self.family.public(lease.attrs)
        assert subnet is not None
        assert public_ip is not None
        if self.asks_on_link and self._on_link(public_ip):
            return Peer(lease, mac, (direct_route(self.parent, self.family, lease),))
        base, length = subnet.network_address.packed, subnet.prefixlen
        entries: tuple[Entry, ...] = (Route(self.device, base, length, base),)
        if self._nexthop_objects:
            entries = (*entries, Nexthop(self.device, base))
        if not self.userspace:
            entries = (Neighbour(self.device, base, mac), FdbEntry(self.device, mac, public_ip.packed), *entries)
        return Peer(lease, mac, entries)

    def _vtep(self, data: Json) -> bytes:
        """Read a peer's BackendData: keys in any case, as Go reads them; an absent VNI is that of old daemons."""
        if not isinstance(data, dict):
            field = "BackendData" if self.family is IPV4 else "BackendV6Data"
            raise Unusable(f"{field} is no JSON object with VNI and VtepMAC")
        if "VtepMAC" in data and "VNI" in data:
            vni, mac = data["VNI"], data["VtepMAC"]
        else:
            fields = {name.lower(): value for name, value in data.items()}
            vni, mac = fields.get("vni", self.vni), fields.get("vtepmac")
        if vni != self.vni:
            raise Unusable(f"VNI is {show(vni)}, ours is {self.vni}")
        return parse_mac(mac)


def parse_mac(value: Json) -> bytes:
    """Read the MAC of a VTEP. Raises Unusable for anything but a unicast address of six bytes."""
    if not isinstance(value, str) or len(value) != 17 or value[2::3] not in (":::::", "-----"):
        raise Unusable(f"VtepMAC {show(value)} is no MAC address")
    try:
        mac = bytes.fromhex(value.replace(value[2], ""))
    except ValueError:
        raise Unusable(f"VtepMAC {show(value)} is no MAC address") from None
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise Unusable(f"VtepMAC {show(value)} is no unicast MAC address")
    return mac


def choose_mac(device: bytes | None, published: Json, identity: str, taken: Callable[[bytes], bool]) -> bytes:
    """Choose our VTEP's MAC so that it lasts: the device's, else the one in our lease, else one derived from identity.

    `taken` tells whether another lease has a MAC: a clone, which has the identity of its original, gets another one.
    A device that is there keeps its MAC all the same: traffic may be flowing to it.
    """
    if device is not None:
        return device
    if isinstance(published, dict):
        try:
            mac = parse_mac(published.get("VtepMAC"))
        except Unusable:
            mac = b""
        if mac and not taken(mac):
            return mac
    for attempt in range(1000):
        digest = hashlib.sha256(f"flanneld-py VTEP {identity} {attempt}".encode()).digest()
        mac = bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]  # locally administered, unicast (IEEE 802)
        if not taken(mac):
            return mac
    raise AssertionError("a thousand MACs cannot all be taken")


def publishes(data: Json, mac: bytes) -> bool:
    """Tell whether a lease's data say that its VTEP has this MAC, as a host that wrote it in the usual form would."""
    return isinstance(data, dict) and data.get("VtepMAC") == text(mac)
