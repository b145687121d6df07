"""Choose the subnets of a host: the network configuration and all leases in, one decision out.

Pure; writing the decision, and choosing again when another host was first, is the caller's.

In order of preference:

    1. Reuse by identity      the lease that our owner record names
    2. Reuse by public IP     a lease with our PublicIP: flannel's only notion of whose a lease is
    3. Create                 each family on its own; of the subnets we had, the first that still fits and is free:
                              of our lease that does not fit as a whole (it is replaced), of our owner record,
                              of the subnet file; else a random one

    free subnets, numbered from SubnetMin in steps of SubnetLen; [..] is what leases of any length touch:

        0   1  [2   3]  4  [5]  6   7          5 free, the r-th of them is taken, r uniform
        SubnetMin              SubnetMax

flannel chooses among the first 100 free subnets only, so that a subnet let go is soon another host's, while peers may
still have stale entries for it. Over the whole range that is rare.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from random import Random
from typing import Literal

from flanneld_py.registry.config import ConfigInvalid, FamilyConfig, IPv6Config, NetworkConfig
from flanneld_py.registry.model import Lease, Subnets
from flanneld_py.registry.store import RegistryError

Network = IPv4Network | IPv6Network


class OutOfSubnets(RegistryError):
    """Every subnet of the network is leased."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a host brings along: its address, the subnets its owner record names, the subnet file's IPv4 subnet.

    `owned` may be of a lease that is gone. If that lease is another host's by now, the caller leaves `owned` out:
    a lease names no host.
    """

    public_ip: IPv4Address
    owned: Subnets | None = None
    previous: IPv4Network | None = None


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

    Raises OutOfSubnets, and ConfigInvalid for a network without IPv4: flannel has no lease key for that.
    """
    if config.ipv4 is None:
        raise ConfigInvalid("EnableIPv4 is false: a lease in etcd always has an IPv4 subnet; set EnableIPv4 to true")
    own = list(_own(leases, claim))
    for reuse in own:
        if incompatibility(config, reuse.lease.subnets) is None:
            return reuse
    # A reservation that does not fit stays: it is an operator's.
    replaces = next((reuse.lease for reuse in own if reuse.lease.lease_id), None)
    taken = [*(lease.subnets for lease in leases if lease is not replaces), *blocked]
    had = [replaces.subnets] if replaces is not None else []
    if claim.owned is not None:
        had.append(claim.owned)
    had4 = [subnets.v4 for subnets in had]
    if claim.previous is not None:
        had4.append(claim.previous)
    v4 = IPv4Network(_pick(config.ipv4, had4, [subnets.v4 for subnets in taken], rng))
    if config.ipv6 is None:
        return Create(Subnets(v4), replaces)
    had6 = [subnets.v6 for subnets in had if subnets.v6 is not None]
    v6 = IPv6Network(_pick(config.ipv6, had6, [subnets.v6 for subnets in taken if subnets.v6 is not None], rng))
    return Create(Subnets(v4, v6), replaces)


def incompatibility(config: NetworkConfig, subnets: Subnets) -> str | None:
    """Say why a lease of these subnets does not fit the configuration; None if it does."""
    if config.ipv4 is None:
        return f"{subnets.v4} is IPv4, which is off"
    reason = _misfit(config.ipv4, subnets.v4)
    if reason is not None:
        return reason
    if config.ipv6 is None:
        return None if subnets.v6 is None else f"{subnets.v6} is IPv6, which is off"
    return "an IPv6 subnet is missing" if subnets.v6 is None else _misfit(config.ipv6, subnets.v6)


def _own(leases: Collection[Lease], claim: Claim) -> Iterator[Reuse]:
    """Give the leases that are ours, the most certain first.

    What we have goes before a reservation for our address: a restart must not move a host that runs containers.
    """
    for lease in leases:
        if lease.subnets == claim.owned:
            yield Reuse(lease, "identity")
    ours = [lease for lease in leases if lease.attrs.public_ip == claim.public_ip]
    for lease in sorted(ours, key=lambda lease: (lease.lease_id == 0, lease.mod_revision), reverse=True):
        yield Reuse(lease, "public-ip")


def _misfit(family: FamilyConfig, subnet: Network) -> str | None:
    if subnet.prefixlen != family.subnet_len:
        return f"{subnet} is a /{subnet.prefixlen}, and subnets are /{family.subnet_len}"
    if not int(family.subnet_min) <= int(subnet.network_address) <= int(family.subnet_max):
        return f"{subnet} is not between {family.subnet_min} and {family.subnet_max}"
    return None


def _pick(family: FamilyConfig, had: Iterable[Network], taken: Iterable[Network], rng: Random) -> tuple[int, int]:
    """Return (base, prefix length) of the first of `had` that fits and is free, else of a random free subnet."""
    base, size = int(family.subnet_min), _size(family)
    gaps = _gaps(family, taken)
    for subnet in had:
        if _misfit(family, subnet) is None:
            number = (int(subnet.network_address) - base) // size
            if any(number in gap for gap in gaps):
                return int(subnet.network_address), family.subnet_len
    # Not len(): IPv6 ranges outgrow what it can return.
    free = sum(gap.stop - gap.start for gap in gaps)
    if free == 0:
        raise OutOfSubnets(_exhausted(family))
    number = rng.randrange(free)
    for gap in gaps:
        if number < gap.stop - gap.start:
            break
        number -= gap.stop - gap.start
    return base + (gap.start + number) * size, family.subnet_len


def _size(family: FamilyConfig) -> int:
    return 1 << (family.network.max_prefixlen - family.subnet_len)


def _count(family: FamilyConfig) -> int:
    return (int(family.subnet_max) - int(family.subnet_min)) // _size(family) + 1


def _gaps(family: FamilyConfig, taken: Iterable[Network]) -> list[range]:
    """Return the numbers of the free subnets, ascending."""
    gaps = []
    start, count = 0, _count(family)
    for first, last in sorted(_touched(family, subnet) for subnet in taken):
        if first >= count:
            break
        if first > start:
            gaps.append(range(start, first))
        start = max(start, last + 1)
    if start < count:
        gaps.append(range(start, count))
    return gaps


def _touched(family: FamilyConfig, subnet: Network) -> tuple[int, int]:
    """Return the first and the last number that a lease overlaps; outside of the range if the lease is."""
    offset, size = int(subnet.network_address) - int(family.subnet_min), _size(family)
    length = 1 << (subnet.max_prefixlen - subnet.prefixlen)
    return offset // size, (offset + length - 1) // size


def _exhausted(family: FamilyConfig) -> str:
    v6 = "IPv6" if isinstance(family, IPv6Config) else ""
    return (
        f"{v6}Network {family.network} with {v6}SubnetLen {family.subnet_len} has {_count(family)} subnets, "
        f"from {family.subnet_min} to {family.subnet_max}, and all are leased: "
        f"delete the leases of hosts that are gone, or make the {v6}Network larger or its subnets smaller"
    )
