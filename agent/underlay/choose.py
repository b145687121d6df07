"""Choose the underlay interface and our addresses on it, as flannel does (its flags, its order).

    no --iface, --iface-regex or --iface-can-reach:
        --public-ip (else --public-ipv6) given and on an interface: that one       (flannel fails if it is on none: NAT)
        else, while we run, the interface that we are on, as long as its address and its link live
        else the interface of the best default route, in dual stack of IPv4's, but no tunnel's: a VPN that takes the
        default route away (wg-quick, OpenVPN) is no underlay unless somebody says so
    otherwise the first that fits of: each --iface, each --iface-regex, --iface-can-reach

An interface fits if it has an address of every family that the network config turns on. What names an address takes
that one; of the other family, and where an interface is named, it is the best one.

Pure; host.py asks the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TypeVar

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
A = TypeVar("A", IPv4Address, IPv6Address)

IFA_F_SECONDARY = 0x01  # linux/if_addr.h; for IPv4 "secondary", the same bit as IPv6's "temporary"
IFA_F_DADFAILED = 0x08
IFA_F_OPTIMISTIC = 0x04
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
SCOPE_GLOBAL = 0  # linux/rtnetlink.h: rt_scope_t
SCOPE_LINK = 253


TUNNELS = frozenset({"tun", "wireguard", "vti", "vti6", "xfrm"})
"""Kinds of interfaces that VPNs have: over one of them the other hosts are reached by chance at best."""


class NoInterface(Exception):
    """No interface fits; the text says what was looked for, and what there is."""


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface; flags and scope as the kernel has them.

    `broadcast` and `base` are the last and the first address of its network, where they are no hosts'.
    """

    address: IPAddress
    scope: int = SCOPE_GLOBAL
    flags: int = IFA_F_PERMANENT
    broadcast: IPv4Address | None = None
    base: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the host; `mtu` in bytes, `kind` the kernel's word for what it is if it is no hardware.

    `live`: it is up, and has a carrier.
    """

    name: str
    index: int
    mtu: int
    mac: bytes
    addresses: tuple[InterfaceAddress, ...]
    kind: str = ""
    live: bool = True
    loopback: bool = False

    @property
    def broadcasts(self) -> frozenset[IPAddress]:
        """The addresses that mean everybody on its link, and so are no host's."""
        return frozenset(entry.broadcast for entry in self.addresses if entry.broadcast is not None)


@dataclass(frozen=True, slots=True)
class Host:
    """What selection needs to know: interfaces in index order, and where some routes lead, None where there is no such.

    `defaults` and `defaults6` name the interfaces of each family's default routes, the best first; `reach` is the index
    of the one that leads to --iface-can-reach, with the source address the kernel would use.
    """

    interfaces: tuple[Interface, ...]
    defaults: tuple[str, ...]
    reach: tuple[int, IPAddress | None] | None = None
    defaults6: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnderlayOptions:
    """What the operator asks for: --iface, --iface-regex, --iface-can-reach, --public-ip, --public-ipv6."""

    names: Sequence[str] = ()
    regexes: Sequence[str] = ()
    can_reach: IPAddress | None = None
    public_ip: IPv4Address | None = None
    public_ip6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class UnderlayChoice:
    """The chosen interface, our addresses on it, and those for the others to send to; a family that is off has None."""

    interface: Interface
    address: IPv4Address | None
    public_ip: IPv4Address | None
    address6: IPv6Address | None = None
    public_ip6: IPv6Address | None = None


def outside(host: Host, overlay: Sequence[Network]) -> Host:
    """Leave out the interfaces that have an address in these subnets of ours: our device, the containers' bridge."""

    def inside(entry: InterfaceAddress) -> bool:
        return any(entry.address in subnet for subnet in overlay)

    return replace(host, interfaces=tuple(each for each in host.interfaces if not any(map(inside, each.addresses))))


def choose(
    host: Host,
    asked: UnderlayOptions,
    *,
    ipv4: bool = True,
    ipv6: bool = False,
    keep: Sequence[IPAddress] = (),
    stay: bool = False,
) -> UnderlayChoice:
    """Choose the underlay for these families. Raises NoInterface.

    Where several addresses of the interface would do, one of `keep` stays: that it is still there is enough. `stay`:
    so does the interface that has it.
    """
    if _asks(asked):
        candidates = _asked_for(host, asked, (ipv4, ipv6))
    else:
        candidates = _by_default(host, asked, keep if stay else (), ipv4=ipv4)
    for interface, named in candidates:
        own4 = _on(interface, IPv4Address, named, keep) if ipv4 else None
        own6 = _on(interface, IPv6Address, named, keep) if ipv6 else None
        if (own4 is None and ipv4) or (own6 is None and ipv6):
            continue
        if interface.loopback:
            raise NoInterface(
                f"no packet leaves this host by {interface.name}: name the interface that leads to the other hosts "
                f"(--iface); there are: {_overview(host)}"
            )
        if interface.mtu == 0:
            raise NoInterface(
                f"interface {interface.name} has an MTU of 0; set one with: ip link set {interface.name} mtu 1500"
            )
        if asked.public_ip in interface.broadcasts:
            raise NoInterface(
                f"--public-ip {asked.public_ip} is the broadcast address of {interface.name}; give an address at which "
                "other hosts can reach this one"
            )
        if asked.public_ip in [entry.base for entry in interface.addresses if entry.base not in (None, own4)]:
            raise NoInterface(
                f"--public-ip {asked.public_ip} is the network's own address on {interface.name}; give an address at "
                "which other hosts can reach this one"
            )
        public4 = (asked.public_ip or own4) if ipv4 else None
        public6 = (asked.public_ip6 or own6) if ipv6 else None
        return UnderlayChoice(interface, own4, public4, own6, public6)
    raise NoInterface(_why(host, asked, ipv4=ipv4, ipv6=ipv6))


Candidate = tuple[Interface, tuple[IPAddress, ...]]
"""An interface, and the addresses on it that were asked for, or that a route would use."""


def _asks(asked: UnderlayOptions) -> bool:
    return bool(asked.names or asked.regexes or asked.can_reach is not None)


def _asked_for(host: Host, asked: UnderlayOptions, families: tuple[bool, bool]) -> Iterator[Candidate]:
    public = [address for address in (asked.public_ip, asked.public_ip6) if address is not None]
    for wanted in asked.names:
        yield from _by_address(host, wanted, public)
        yield from ((interface, ()) for interface in host.interfaces if interface.name == wanted)
    for pattern in asked.regexes:
        yield from _by_regex(host, re.compile(pattern), families)
    if asked.can_reach is not None and host.reach is not None:
        index, source = host.reach
        named = (source,) if source is not None else ()
        yield from ((interface, named) for interface in host.interfaces if interface.index == index)


def _by_default(host: Host, asked: UnderlayOptions, stay: Sequence[IPAddress], *, ipv4: bool) -> Iterator[Candidate]:
    for public in (asked.public_ip, asked.public_ip6):
        if public is not None:
            beside = [asked.public_ip6] if asked.public_ip6 is not None else []
            # An address of lo is published as one behind NAT is.
            yield from (each for each in _by_address(host, str(public), beside) if not each[0].loopback)
    for interface in host.interfaces:
        if interface.live and any(entry.address in stay for entry in interface.addresses):
            yield interface, ()
    for default in host.defaults if ipv4 else host.defaults6:
        for interface in host.interfaces:
            if interface.name == default and interface.kind not in TUNNELS:
                yield interface, ()


def _by_address(host: Host, wanted: str, beside: Sequence[IPAddress]) -> Iterator[Candidate]:
    """Find the interface that holds an address; of the other family, one of `beside` is taken if it is there too."""
    try:
        address = ip_address(wanted)
    except ValueError:
        return
    for interface in host.interfaces:
        if any(entry.address == address for entry in interface.addresses):
            yield interface, (address, *beside)


def _by_regex(host: Host, pattern: re.Pattern[str], families: tuple[bool, bool]) -> Iterator[Candidate]:
    """Find interfaces with a matching address, of each family that is on; then those with a matching name."""
    versions = {version for version, on in zip((4, 6), families, strict=True) if on}
    for interface in host.interfaces:
        matching = tuple(entry.address for entry in interface.addresses if pattern.search(str(entry.address)))
        if versions <= {address.version for address in matching}:
            yield interface, matching
    yield from ((interface, ()) for interface in host.interfaces if pattern.search(interface.name))


def _on(interface: Interface, family: type[A], named: Sequence[IPAddress], keep: Sequence[IPAddress]) -> A | None:
    """Return the address of a family that was named and is on the interface, else the best one."""
    held = [entry.address for entry in interface.addresses if _can_be_bound(entry)]
    for address in named:
        if isinstance(address, family) and address in held:
            return address
    return best_address(interface, family, keep)


def _can_be_bound(entry: InterfaceAddress) -> bool:
    """Tell whether the kernel lets us send from it: IPv6 looks for duplicates first (RFC 4862)."""
    undecided = entry.flags & (IFA_F_TENTATIVE | IFA_F_OPTIMISTIC) == IFA_F_TENTATIVE
    return not undecided and not entry.flags & IFA_F_DADFAILED


def best_address(interface: Interface, family: type[A], keep: Sequence[IPAddress] = ()) -> A | None:
    """Return the address flannel would take: not deprecated, global before link-local, permanent before dynamic.

    One of `keep` goes before all. A link-local IPv6 address is no choice: it means something on one link only.
    """
    usable = [
        (
            entry.address not in keep,
            entry.scope != SCOPE_GLOBAL,
            not entry.flags & IFA_F_PERMANENT,
            bool(entry.flags & IFA_F_SECONDARY),
            number,
        )
        for number, entry in enumerate(interface.addresses)
        if isinstance(entry.address, family)
        and _can_be_bound(entry)
        and not entry.flags & IFA_F_DEPRECATED
        and entry.scope in (SCOPE_GLOBAL, SCOPE_LINK)
        and not entry.address.is_loopback
        and not (entry.address.version == 6 and entry.address.is_link_local)
    ]
    if not usable:
        return None
    best = interface.addresses[min(usable)[-1]].address
    assert isinstance(best, family)
    return best


def _why(host: Host, asked: UnderlayOptions, *, ipv4: bool, ipv6: bool) -> str:
    """Say why nothing fits, and what there is."""
    need = "an IPv4 and an IPv6 address" if ipv4 and ipv6 else "an IPv6 address" if ipv6 else "an IPv4 address"
    if _asks(asked):
        patterns = [f"/{pattern}/" for pattern in asked.regexes]
        route = [f"route to {asked.can_reach}"] if asked.can_reach is not None else []
        wanted = ", ".join([*asked.names, *patterns, *route])
        return f"no interface with {need} matches {wanted}; there are: {_overview(host)}"
    defaults = host.defaults if ipv4 else host.defaults6
    tunnels = [each.name for each in host.interfaces if each.kind in TUNNELS and each.name in defaults]
    but = f" but that over {', '.join(tunnels)}, a tunnel's, which is taken only if it is named" if tunnels else ""
    return f"no default route over an interface with {need}{but}; give --iface. There are: {_overview(host)}"


def _overview(host: Host) -> str:
    return ", ".join(
        f"{interface.name} ({', '.join(str(entry.address) for entry in interface.addresses) or 'no address'})"
        for interface in host.interfaces
    )
