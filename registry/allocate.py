"""Choose the subnets of a host: the network configuration and all leases in, one decision out.

Pure; writing the decision, and choosing again when another host was first, is the caller's.

In order of preference:

    1. Reuse by identity      the lease that our owner record names
    2. Reuse by public IP     a lease with our PublicIP: flannel's only notion of whose a lease is; without IPv4 the
                              one with our PublicIPv6
    3. Create                 each family on its own; of the subnets we had, the first that still fits and is free:
                              of our lease that does not fit as a whole (it is replaced), of our owner record,
                              of the subnet file; else a random one

    free subnets, numbered from SubnetMin in steps of their length; [..] is what leases of any length touch:

        0   1  [2   3]  4  [5]  6   7          5 free, the r-th of them is taken, r uniform
        SubnetMin              SubnetMax

A host may ask for a smaller subnet than SubnetLen says (`--subnet-len`). It gets one beside other small ones, where
there is room, so that whole ones stay for the others. Whatever length from SubnetLen on a lease has, it is kept.

flannel chooses among the first 100 free subnets only, so that a subnet let go is soon another host's, while peers may
still have stale entries for it. Over the whole range that is rare.

Turning a family on or off replaces the lease by one that keeps the other family's subnet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from random import Random
from typing import Literal

from flanneld_py.registry.config import FamilyConfig, IPv4Config, IPv6Config, NetworkConfig
from flanneld_py.registry.model import NO_IPV4, Lease, Subnets
from flanneld_py.registry.store import RegistryError

Network = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address


LONGEST = {4: 30, 6: 126}
"""Prefix lengths of the smallest subnets, by IP version; as for the network's SubnetLen (config.py)."""


class OutOfSubnets(RegistryError):
    """Every subnet of the network is leased."""


class LengthRefused(RegistryError):
    """The network has no subnets of the length that this host is to have; the text says which it has."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a host brings along: its addresses, the subnets its owner record names, those of the subnet file.

    `owned` may be of a lease that is gone. If that lease is another host's by now, the caller leaves `owned` out:
    a lease names no host. `contested` is a lease of ours that must give way in a family where another overlaps it.
    `subnet_len` is the prefix length of the IPv4 subnet, if not the network's.
    """

    public_ip: IPv4Address | None
    owned: Subnets | None = None
    previous: tuple[Network, ...] = ()
    public_ip6: IPv6Address | None = None
    contested: Subnets | None = None
    subnet_len: int | None = None


@dataclass(frozen=True, slots=True)
class Reuse:
    """Go on with a lease that exists."""

    lease: Lease
    by: Literal["identity", "public-ip"]


@dataclass(frozen=True, slots=True)
class Create:
    """Take these subnets; `replaces` is a lease of ours that does not fit the configuration and is to go with it."""

    subnets: Subnets
    replaces: Lease | None = None


def choose(
    config: NetworkConfig, leases: Collection[Lease], claim: Claim, rng: Random, blocked: Collection[Subnets] = ()
) -> Reuse | Create:
    """Choose the subnets of this host; `blocked` are those of keys that are there, but cannot be read.

    Raises OutOfSubnets and LengthRefused.
    """
    own = list(_own(leases, claim))
    for reuse in own:
        if reuse.lease.subnets != claim.contested and incompatibility(config, reuse.lease.subnets) is None:
            return reuse
    # A reservation that does not fit stays: it is an operator's. Where only a family comes or goes, it goes along.
    replaces = next((mine.lease for mine in own if mine.lease.lease_id or _extends(config, mine.lease.subnets)), None)
    others = [*(lease.subnets for lease in leases if lease is not replaces), *blocked]
    taken = [subnet for subnets in others for subnet in _leased(config, subnets)]
    # A subnet with a host's own address in it would lead what is sent to that host into the tunnel.
    hosts = [claim.public_ip, claim.public_ip6]
    hosts += [address for lease in leases for address in (lease.attrs.public_ip, lease.attrs.public_ip6)]
    taken += [ip_network(address) for address in _inside(config, hosts)]
    before = [replaces.subnets] if replaces is not None else []
    before += [claim.owned] if claim.owned is not None else []
    had = [*(subnet for subnets in before for subnet in subnets.families), *claim.previous]
    v4, v6 = NO_IPV4, None
    if config.ipv4 is not None:
        v4 = IPv4Network(_pick(config.ipv4, _length(config.ipv4, claim), had, taken, rng))
    if config.ipv6 is not None:
        v6 = IPv6Network(_pick(config.ipv6, config.ipv6.subnet_len, had, taken, rng))
    return Create(Subnets(v4, v6), replaces)


def incompatibility(config: NetworkConfig, subnets: Subnets) -> str | None:
    """Say why a lease of these subnets does not fit the configuration; None if it does."""
    v4 = None if subnets.v4 == NO_IPV4 else subnets.v4
    return _unlike(config.ipv4, v4, "IPv4") or _unlike(config.ipv6, subnets.v6, "IPv6")


def overlapping(subnets: Subnets, leases: Iterable[Lease], config: NetworkConfig) -> list[Lease]:
    """Return the leases that share an address with these subnets, in either family, themselves left out."""
    return [
        lease
        for lease in leases
        if lease.subnets != subnets
        and lease.subnets.overlaps(subnets)
        and any(mine.overlaps(other) for mine in subnets.families for other in _leased(config, lease.subnets))
    ]


def has_address(lease: Lease, claim: Claim) -> bool:
    """Tell whether a lease has the address by which the host is known."""
    if claim.public_ip is None or lease.subnets.v4 == NO_IPV4:
        return claim.public_ip6 is not None and lease.attrs.public_ip6 == claim.public_ip6
    return lease.attrs.public_ip == claim.public_ip


def _leased(config: NetworkConfig, subnets: Subnets) -> Iterator[Network]:
    """Give what a lease takes of this network. A subnet that reaches beyond it is no host's: nobody routes there."""
    for subnet in subnets.families:
        family: FamilyConfig | None = config.ipv4 if subnet.version == 4 else config.ipv6
        if family is None or subnet.prefixlen < family.network.prefixlen:
            continue
        if subnet.network_address in family.network:
            yield subnet


def _inside(config: NetworkConfig, addresses: Iterable[IPAddress | None]) -> Iterator[IPAddress]:
    """Give the addresses that are inside the network."""
    for address in addresses:
        for family in (config.ipv4, config.ipv6):
            if address is not None and family is not None and address in family.network:
                yield address


def _unlike(family: FamilyConfig | None, subnet: Network | None, name: str) -> str | None:
    if family is None:
        return None if subnet is None else f"{subnet} is {name}, which is off"
    return f"an {name} subnet is missing" if subnet is None else _misfit(family, subnet)


def _extends(config: NetworkConfig, subnets: Subnets) -> bool:
    """Tell whether a lease fits but for a family that was turned on or off since."""
    families = ((config.ipv4, None if subnets.v4 == NO_IPV4 else subnets.v4), (config.ipv6, subnets.v6))
    both = [(family, subnet) for family, subnet in families if family is not None and subnet is not None]
    return bool(both) and all(_misfit(family, subnet) is None for family, subnet in both)


def _own(leases: Collection[Lease], claim: Claim) -> Iterator[Reuse]:
    """Give the leases that are ours, the most certain first.

    What we have goes before a reservation for our address: a restart must not move a host that runs containers.
    """
    for lease in leases:
        if lease.subnets == claim.owned:
            yield Reuse(lease, "identity")
    ours = [lease for lease in leases if has_address(lease, claim)]
    for lease in sorted(ours, key=lambda lease: (lease.lease_id == 0, lease.mod_revision), reverse=True):
        yield Reuse(lease, "public-ip")


def _misfit(family: FamilyConfig, subnet: Network) -> str | None:
    longest = LONGEST[family.network.version]
    if not family.subnet_len <= subnet.prefixlen <= longest:
        return f"{subnet} is a /{subnet.prefixlen}, and subnets are /{family.subnet_len} to /{longest}"
    first, last = _span(subnet)
    if not (int(family.subnet_min) <= first and last < int(family.subnet_max) + _size(family, family.subnet_len)):
        return f"{subnet} is not between {family.subnet_min} and {family.subnet_max}"
    return None


def _length(family: IPv4Config, claim: Claim) -> int:
    """Return the prefix length of the subnet to be taken. Raises LengthRefused."""
    length = claim.subnet_len or family.subnet_len
    if not family.subnet_len <= length <= LONGEST[4]:
        raise LengthRefused(
            f"--subnet-len is {length}, and Network {family.network} has SubnetLen {family.subnet_len}: "
            f"give a number from {family.subnet_len} to {LONGEST[4]}, or leave it out"
        )
    return length


def _pick(
    family: FamilyConfig, length: int, had: Iterable[Network], taken: Iterable[Network], rng: Random
) -> tuple[int, int]:
    """Return (base, prefix length) of the first of `had` that fits and is free, else of a random one of that length.

    Subnets of the other family do not count.
    """
    version = family.network.version
    spans = sorted(_span(subnet) for subnet in taken if subnet.version == version)
    for subnet in had:
        if subnet.version == version and _misfit(family, subnet) is None:
            first, last = _span(subnet)
            if not any(start <= last and first <= end for start, end in spans):
                return first, subnet.prefixlen
    gaps = _gaps(family, length, spans)
    gaps = list(_begun(gaps, 1 << (length - family.subnet_len))) or gaps
    # Not len(): IPv6 ranges outgrow what it can return.
    free = _sum(gaps)
    if free == 0:
        raise OutOfSubnets(_exhausted(family, length))
    number = rng.randrange(free)
    for gap in gaps:
        if number < gap.stop - gap.start:
            break
        number -= gap.stop - gap.start
    return int(family.subnet_min) + (gap.start + number) * _size(family, length), length


def room(config: NetworkConfig, leases: Iterable[Lease], claim: Claim) -> Iterator[tuple[str, int, int]]:
    """Give (Network, free subnets, all subnets) for each family, of the length that this host would take."""
    taken = [subnet for lease in leases for subnet in _leased(config, lease.subnets)]
    lengths = ((config.ipv4, claim.subnet_len), (config.ipv6, None))
    for family, length in ((family, length or family.subnet_len) for family, length in lengths if family is not None):
        spans = sorted(_span(subnet) for subnet in taken if subnet.version == family.network.version)
        yield str(family.network), _sum(_gaps(family, length, spans)), _count(family, length)


def _span(subnet: Network) -> tuple[int, int]:
    """Return the first and the last address as numbers."""
    first = int(subnet.network_address)
    return first, first + (1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1


def _size(family: FamilyConfig, length: int) -> int:
    return 1 << (family.network.max_prefixlen - length)


def _count(family: FamilyConfig, length: int) -> int:
    end = int(family.subnet_max) + _size(family, family.subnet_len)
    return (end - int(family.subnet_min)) // _size(family, length)


def _sum(gaps: Iterable[range]) -> int:
    return sum(gap.stop - gap.start for gap in gaps)


def _gaps(family: FamilyConfig, length: int, spans: Iterable[tuple[int, int]]) -> list[range]:
    """Return the numbers of the free subnets of that length, ascending; `spans` are what is taken, ascending."""
    gaps = []
    base, size, start, count = int(family.subnet_min), _size(family, length), 0, _count(family, length)
    for begin, end in spans:
        first, last = (begin - base) // size, (end - base) // size
        if first >= count:
            break
        if first > start:
            gaps.append(range(start, first))
        start = max(start, last + 1)
    if start < count:
        gaps.append(range(start, count))
    return gaps


def _begun(gaps: Iterable[range], parts: int) -> Iterator[range]:
    """Give what is free beside something taken in the same whole subnet, which has that many parts."""
    for gap in gaps:
        above = min(-(-gap.start // parts) * parts, gap.stop)
        below = max(gap.stop // parts * parts, above)
        yield from filter(None, (range(gap.start, above), range(below, gap.stop)))


def _exhausted(family: FamilyConfig, length: int) -> str:
    v6 = "IPv6" if isinstance(family, IPv6Config) else ""
    return (
        f"{v6}Network {family.network} with {v6}SubnetLen {length} has {_count(family, length)} subnets, "
        f"from {family.subnet_min} to {family.subnet_max}, and all are leased: "
        f"delete the leases of hosts that are gone, or make the {v6}Network larger or its subnets smaller"
    )
