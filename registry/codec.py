"""etcd keys and values to the registry's values and back, byte-compatible with flannel's daemon.

Pure: no store, no clock. What cannot be read raises ValueError with the reason; `decode_record` makes it a `Rejected`.

    <prefix>/config                                 network configuration, see config.py
    <prefix>/subnets/10.5.52.0-24                   a lease, IPv4
    <prefix>/subnets/10.12.13.0-24&fd00:12:13::-56  a lease, dual stack
    <prefix>/subnets/0.0.0.0-31&fd00:12:13::-56     a lease, IPv6 only: flannel's daemons read it as dual stack
    <prefix>/ext/hosts/<identity>                   ours: which host holds which lease
    <prefix>/ext/subnets/fd00:12:13::-56            ours: the lease that a subnet, of either family, was taken with

    lease value   {"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...}}
                  PublicIPv6 is always there, empty fields after it never; fields that flannel does not know come last

flannel reads field names case-insensitively, so does this. How JSON is written: document.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from flanneld_py.registry.document import dump, parse_object, show
from flanneld_py.registry.model import NO_IPV4, Json, Lease, LeaseAttrs, Owner, Rejected, Subnets
from flanneld_py.registry.store import KeyValue

_LEASE_NAME = re.compile(r"([0-9.]+)-([0-9]{1,3})(?:&([0-9a-f:]+)-([0-9]{1,3}))?")

_NAMES = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
_FIELDS = {name.lower(): name for name in _NAMES}

_OCTETS = {str(number): number for number in range(256)}


def config_key(prefix: str) -> str:
    """Return the key of the network configuration."""
    return _join(prefix, "config")


def subnets_prefix(prefix: str) -> str:
    """Return what all lease keys start with.

    It ends in a slash, so that `<prefix>/subnets-backup/...` is not among them; flannel's has none.
    """
    return _join(prefix, "subnets") + "/"


def owners_prefix(prefix: str) -> str:
    """Return what all owner keys start with."""
    return _join(prefix, "ext/hosts") + "/"


def lease_key(prefix: str, subnets: Subnets) -> str:
    """Return the key of the lease of these subnets."""
    return subnets_prefix(prefix) + _lease_name(subnets)


def owner_key(prefix: str, identity: str) -> str:
    """Return the key of a host's owner record. Raises ValueError if the identity is empty or has a slash."""
    if not identity or "/" in identity:
        raise ValueError(f"host identity {identity!r} cannot be a key: expected a name without slashes")
    return owners_prefix(prefix) + identity


def claim_key(prefix: str, subnet: IPv4Network | IPv6Network) -> str:
    """Return the key that two leases cannot both be created with: one for each subnet of either family."""
    return _join(prefix, "ext/subnets") + "/" + _subnet_name(subnet)


@lru_cache(maxsize=64)
def _join(prefix: str, rest: str) -> str:
    """Join and clean as Go's path.Join does: no empty, `.` or `..` parts; a leading slash is neither added nor lost."""
    rooted = prefix.startswith("/")
    parts: list[str] = []
    for part in f"{prefix}/{rest}".split("/"):
        if part == ".." and (parts[-1:] not in ([], [".."])):
            parts.pop()
        elif part not in ("", ".") and not (part == ".." and rooted):
            parts.append(part)
    return "/" * rooted + "/".join(parts)


def address_key(prefix: str, address: IPv4Address | IPv6Address) -> str:
    """Return the key that two leases cannot both be created with: one for each address that a host is known by."""
    return _join(prefix, "ext/addresses") + "/" + str(address)


def alive_key(prefix: str, identity: str) -> str:
    """Return the key that is there as long as the host lives, if it holds a reservation."""
    return _join(prefix, "ext/alive") + "/" + identity


def _lease_name(subnets: Subnets) -> str:
    name = _subnet_name(subnets.v4)
    return name if subnets.v6 is None else f"{name}&{_subnet_name(subnets.v6)}"


def _subnet_name(subnet: IPv4Network | IPv6Network) -> str:
    return f"{subnet.network_address}-{subnet.prefixlen}"


def parse_lease_key(prefix: str, key: str) -> Subnets:
    """Read the subnets out of a lease's key; the inverse of `lease_key`.

    Stricter than flannel in that there is one key for one lease: host bits, and IPv6 not in its canonical form,
    are refused. Raises ValueError.
    """
    start = subnets_prefix(prefix)
    if not key.startswith(start):
        raise ValueError(f"the key does not start with {start}")
    return _parse_lease_name(key[len(start) :])


def _parse_lease_name(name: str) -> Subnets:
    match = _LEASE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} names no subnet: expected one like 10.5.52.0-24 or 10.5.52.0-24&fd00:5:52::-64")
    base4, length4, base6, length6 = match.groups()
    v4 = IPv4Network((int(_address4(base4)), _length(length4, 31)))
    if base6 is None:
        if v4 == NO_IPV4:
            raise ValueError(f"{name!r} names no subnet: {NO_IPV4} stands for none and needs an IPv6 subnet beside it")
        return Subnets(v4)
    v6 = IPv6Network((int(IPv6Address(base6)), _length(length6, 127)))
    if str(v6.network_address) != base6:
        raise ValueError(f"{base6} in the key is not the usual form: expected {v6.network_address}")
    return Subnets(v4, v6)


def _address4(text: str) -> IPv4Address:
    """Read an IPv4 address in half the time that IPv4Address takes; that one says what is wrong with others."""
    try:
        first, second, third, fourth = map(_OCTETS.__getitem__, text.split("."))
    except (KeyError, ValueError):
        return IPv4Address(text)
    return IPv4Address(first << 24 | second << 16 | third << 8 | fourth)


def _length(text: str, longest: int) -> int:
    length = int(text)
    if text[0] == "0" or length > longest:
        raise ValueError(f"prefix length {text} in the key: expected 1 to {longest}")
    return length


def decode_record(prefix: str, entry: KeyValue) -> Lease | Rejected:
    """Read one entry under `subnets_prefix`; never raises on what the entry holds."""
    subnets = None
    try:
        # Flannel's own IPv6-only form. All its hosts share the one lease, so it leads to no peer; but it takes room.
        if entry.key.startswith(subnets_prefix(prefix) + "0.0.0.0-0&"):
            subnets = parse_lease_key(prefix, entry.key.replace("0.0.0.0-0&", "0.0.0.0-31&", 1))
        subnets = parse_lease_key(prefix, entry.key)
        attrs = decode_attrs(entry.value)
    except ValueError as error:
        return Rejected(str(error), entry.mod_revision, subnets, entry.create_revision, entry.lease_id)
    return Lease(subnets, attrs, entry.create_revision, entry.mod_revision, entry.lease_id)


def decode_attrs(value: bytes) -> LeaseAttrs:
    """Read a lease's value. Raises ValueError. A missing PublicIP is 0.0.0.0, as in flannel."""
    known: dict[str, Json] = {}
    extra: dict[str, Json] = {}
    for key, field in parse_object(value).items():
        name = _FIELDS.get(key.lower())
        if name is None:
            extra[key] = field
        else:
            known[name] = field
    return LeaseAttrs(
        _ipv4(known.get("PublicIP", "0.0.0.0"), "PublicIP"),
        _ipv6(known.get("PublicIPv6"), "PublicIPv6"),
        _text(known.get("BackendType"), "BackendType"),
        known.get("BackendData"),
        known.get("BackendV6Data"),
        extra,
    )


def encode_attrs(attrs: LeaseAttrs) -> bytes:
    """Write a lease's value as flannel does.

    Raises ValueError if there is something JSON cannot say, or an extra field has the name of one of flannel's.
    """
    document: dict[str, Json] = {
        "PublicIP": str(attrs.public_ip),
        "PublicIPv6": None if attrs.public_ip6 is None else str(attrs.public_ip6),
    }
    if attrs.backend_type:
        document["BackendType"] = attrs.backend_type
    if attrs.backend_data is not None:
        document["BackendData"] = attrs.backend_data
    if attrs.backend_v6_data is not None:
        document["BackendV6Data"] = attrs.backend_v6_data
    for name, field in attrs.extra.items():
        if name.lower() in _FIELDS:
            raise ValueError(f"extra field {name} would override flannel's {_FIELDS[name.lower()]}")
        document[name] = field
    return dump(document)


def encode_owner(owner: Owner) -> bytes:
    """Write the value of an owner record; the identity is in its key."""
    return dump(
        {
            "Subnets": _lease_name(owner.subnets),
            "PublicIP": str(owner.public_ip),
            "Hostname": owner.hostname,
            "BootID": owner.boot_id,
            "Made": owner.made,
        }
    )


def decode_owner(identity: str, value: bytes) -> Owner:
    """Read the value of an owner record. Raises ValueError."""
    document = parse_object(value)
    return Owner(
        identity,
        _parse_lease_name(_text(document.get("Subnets"), "Subnets")),
        _address(document.get("PublicIP"), "PublicIP"),
        _text(document.get("Hostname"), "Hostname"),
        _text(document.get("BootID"), "BootID"),
        _number(document.get("Made"), "Made"),
    )


def _ipv4(value: Json, field: str) -> IPv4Address:
    try:
        if isinstance(value, str):
            return _address4(value)
    except ValueError:
        pass
    raise ValueError(f"{field} is {show(value)}: expected an IPv4 address")


def _address(value: Json, field: str) -> IPv4Address | IPv6Address:
    return (":" in str(value) and _ipv6(value, field)) or _ipv4(value, field)


def _ipv6(value: Json, field: str) -> IPv6Address | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and "%" not in value:
            return IPv6Address(value)
    except ValueError:
        pass
    raise ValueError(f"{field} is {show(value)}: expected an IPv6 address or null")


def _number(value: Json, field: str) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{field} is {show(value)}: expected a whole number")
    return value


def _text(value: Json, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field} is {show(value)}: expected a string")
    return value
