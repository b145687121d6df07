"""The network configuration under <prefix>/config: JSON text to frozen values, checked.

Not here: fetching it, and what a backend makes of its own options.

Order of things in `parse_config`:

    1. JSON object, keys in lower case (also those of Backend): flannel's reader ignores case
    2. which families are on          EnableIPv4 (default true), EnableIPv6 (default false)
    3. per family: Network, SubnetLen, SubnetMin, SubnetMax, each with flannel's defaults and checks
    4. the backend: `Type`, and the whole object, for the backend to read

    Network 10.3.0.0/16, SubnetLen 24:
    | 10.3.0.0/24 | 10.3.1.0/24 | ............... | 10.3.255.0/24 |
      never leased   SubnetMin                       SubnetMax
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import cast

from flanneld_py.registry.document import parse_object, show
from flanneld_py.registry.model import Json
from flanneld_py.registry.store import RegistryError


class ConfigInvalid(RegistryError):
    """The network configuration cannot be used. The text names the field, what was found and what would be right."""


@dataclass(frozen=True, slots=True)
class IPv4Config:
    """Where IPv4 subnets are leased from; `subnet_min` and `subnet_max` are the bases of the first and last subnet."""

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address


@dataclass(frozen=True, slots=True)
class IPv6Config:
    """Where IPv6 subnets are leased from; `subnet_min` and `subnet_max` are the bases of the first and last subnet."""

    network: IPv6Network
    subnet_len: int
    subnet_min: IPv6Address
    subnet_max: IPv6Address


FamilyConfig = IPv4Config | IPv6Config


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The cluster's network. A family that is off is None; at least one is on.

    `backend` is the whole Backend object with its keys in lower case, `backend_type` its lower-cased Type.
    """

    ipv4: IPv4Config | None
    ipv6: IPv6Config | None
    nftables: bool
    backend_type: str
    backend: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What differs between the families: field names and flannel's limits on prefix lengths."""

    version: int
    network: str
    subnet_len: str
    subnet_min: str
    subnet_max: str
    usual_len: int
    longest_len: int
    example: str


_IPV4 = _Rules(4, "Network", "SubnetLen", "SubnetMin", "SubnetMax", 24, 30, "10.3.0.0/16")
_IPV6 = _Rules(6, "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", 64, 126, "fc00::/48")


def parse_config(value: bytes) -> NetworkConfig:
    """Read and check the network configuration.

    Raises ConfigInvalid. Source: flannel pkg/subnet/config.go; stricter in that SubnetMin > SubnetMax and a
    Backend without Type are errors here and not a failure later.
    """
    document = _document(value)
    ipv4 = _flag(document, "EnableIPv4", default=True)
    ipv6 = _flag(document, "EnableIPv6", default=False)
    if not ipv4 and not ipv6:
        raise ConfigInvalid("EnableIPv4 and EnableIPv6 are both false: set at least one of them to true")
    backend_type, backend = _backend(document)
    return NetworkConfig(
        ipv4=_ipv4(document) if ipv4 else None,
        ipv6=_ipv6(document) if ipv6 else None,
        nftables=_flag(document, "EnableNFTables", default=False),
        backend_type=backend_type,
        backend=backend,
    )


def _document(value: bytes) -> Mapping[str, Json]:
    try:
        return _fold(parse_object(value))
    except ValueError as error:
        raise ConfigInvalid(f"the network configuration cannot be read: {error}") from error


def _fold(document: Mapping[str, Json]) -> dict[str, Json]:
    return {key.lower(): value for key, value in document.items()}


def _flag(document: Mapping[str, Json], field: str, *, default: bool) -> bool:
    match document.get(field.lower()):
        case None:
            return default
        case bool(flag):
            return flag
        case other:
            raise ConfigInvalid(f"{field} is {show(other)}: expected true or false")


def _backend(document: Mapping[str, Json]) -> tuple[str, Mapping[str, Json]]:
    if "backend" not in document:
        # flannel's default, whatever its documentation says.
        return "udp", {}
    backend = document["backend"]
    if not isinstance(backend, dict):
        raise ConfigInvalid(f'Backend is {show(backend)}: expected an object such as {{"Type": "vxlan"}}')
    backend = _fold(backend)
    match backend.get("type"):
        case None | "":
            raise ConfigInvalid('Backend has no Type: name one, such as {"Type": "vxlan"}')
        case str(name):
            return name.lower(), backend
        case other:
            raise ConfigInvalid(f'Backend.Type is {show(other)}: expected a name such as "vxlan"')


def _ipv4(document: Mapping[str, Json]) -> IPv4Config:
    network = cast(IPv4Network, _network(document, _IPV4))
    length, low, high = _geometry(document, _IPV4, network)
    return IPv4Config(network, length, IPv4Address(low), IPv4Address(high))


def _ipv6(document: Mapping[str, Json]) -> IPv6Config:
    network = cast(IPv6Network, _network(document, _IPV6))
    length, low, high = _geometry(document, _IPV6, network)
    return IPv6Config(network, length, IPv6Address(low), IPv6Address(high))


def _network(document: Mapping[str, Json], rules: _Rules) -> IPv4Network | IPv6Network:
    value = document.get(rules.network.lower())
    expected = f'expected an IPv{rules.version} CIDR such as "{rules.example}"'
    if value is None:
        raise ConfigInvalid(f"{rules.network} is missing: {expected}")
    if not isinstance(value, str) or "/" not in value or "%" in value or not value.rpartition("/")[2].isdecimal():
        raise ConfigInvalid(f"{rules.network} is {show(value)}: {expected}")
    try:
        network = ip_network(value, strict=False)
    except ValueError:
        raise ConfigInvalid(f"{rules.network} is {show(value)}: {expected}") from None
    if network.version != rules.version:
        raise ConfigInvalid(f"{rules.network} is {show(value)}, an IPv{network.version} CIDR: {expected}")
    if network.prefixlen == 0:
        raise ConfigInvalid(f"{rules.network} is {show(value)}, every address there is: {expected}")
    return network


def _geometry(document: Mapping[str, Json], rules: _Rules, network: IPv4Network | IPv6Network) -> tuple[int, int, int]:
    """Return (subnet length, base of the first subnet, base of the last subnet)."""
    length = _subnet_len(document, rules, network)
    size = 1 << (network.max_prefixlen - length)
    base = int(network.network_address)
    # The very first subnet is left out: its base would be the network's own address.
    low = _bound(document, rules, rules.subnet_min, network, length, default=base + size)
    high = _bound(document, rules, rules.subnet_max, network, length, default=base + network.num_addresses - size)
    if low > high:
        first, last = type(network)((low, length)), type(network)((high, length))
        raise ConfigInvalid(
            f"{rules.subnet_min} {first.network_address} is above {rules.subnet_max} {last.network_address}: "
            "no subnet lies between them; swap them"
        )
    return length, low, high


def _subnet_len(document: Mapping[str, Json], rules: _Rules, network: IPv4Network | IPv6Network) -> int:
    value = document.get(rules.subnet_len.lower())
    shortest = network.prefixlen + 2
    if shortest > rules.longest_len:
        raise ConfigInvalid(
            f"{rules.network} {network} is too small: it has no room for four subnets of at least four addresses; "
            f"expected a prefix length of {rules.longest_len - 2} or less"
        )
    match value:
        case bool():
            pass
        case None:
            return max(rules.usual_len, shortest)
        case int(length) if length == 0:
            return max(rules.usual_len, shortest)
        case int(length) if shortest <= length <= rules.longest_len:
            return length
    raise ConfigInvalid(
        f"{rules.subnet_len} is {show(value)}: expected a number from {shortest} to {rules.longest_len}, "
        f"so that {rules.network} {network} has room for at least four subnets of at least four addresses"
    )


def _bound(
    document: Mapping[str, Json],
    rules: _Rules,
    field: str,
    network: IPv4Network | IPv6Network,
    length: int,
    *,
    default: int,
) -> int:
    """Read SubnetMin or SubnetMax: the base of a subnet of `length` within `network`."""
    value = document.get(field.lower())
    if value is None:
        return default
    try:
        address = type(network.network_address)(value) if isinstance(value, str) and "%" not in value else None
    except ValueError:
        address = None
    if address is None:
        raise ConfigInvalid(f"{field} is {show(value)}: expected an IPv{rules.version} address within {network}")
    if int(address) == 0:
        return default
    if address not in network:
        raise ConfigInvalid(f"{field} {address} is outside of {rules.network} {network}: expected an address within it")
    subnet = type(network)((int(address), length), strict=False)
    if subnet.network_address != address:
        raise ConfigInvalid(
            f"{field} {address} is not on a {rules.subnet_len} boundary: "
            f"expected the base of a /{length}, such as {subnet.network_address}"
        )
    return int(address)
