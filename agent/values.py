"""What flags may be given: text to values, or one sentence that says what to change. Not which flags there are."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

from flanneld_py.registry.etcd.endpoint import Tls, parse_endpoints

A = TypeVar("A", IPv4Address, IPv6Address)


class UsageError(Exception):
    """The command line or the environment is wrong; the text is one sentence that says what to change."""


def endpoints(value: str, tls: Tls | None) -> tuple[str, ...]:
    """Read etcd's URLs. Raises UsageError."""
    try:
        found = parse_endpoints(value.split(","), tls)
    except ValueError as error:
        raise UsageError(f"--etcd-endpoints: {error}") from None
    plain = [endpoint.url for endpoint in found if not endpoint.secure]
    if 0 < len(plain) < len(found):
        raise UsageError(
            f"--etcd-endpoints mixes http ({', '.join(plain)}) and https; "
            "all members of a cluster are reached the same way"
        )
    return tuple(endpoint.url for endpoint in found)


def file(name: str, value: str) -> Path | None:
    """Read the path of a file that can be opened; None where nothing is given. Raises UsageError."""
    if not value:
        return None
    path = Path(value)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise UsageError(f"--{name}: {value} cannot be read ({error.strerror}); give the path of a PEM file") from None


def address(name: str, value: str) -> IPv4Address | IPv6Address | None:
    """Read an IP address; None where nothing is given. Raises UsageError."""
    try:
        return ip_address(value) if value else None
    except ValueError:
        raise UsageError(f"--{name} is {value!r}; it must be an IP address") from None


def is_ip(value: str) -> bool:
    """Tell whether that is an IP address."""
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def public(name: str, value: str, family: type[A]) -> A | None:
    """Read an address of that family at which other hosts can reach this one. Raises UsageError."""
    if not value:
        return None
    found = address(name, value)
    if not isinstance(found, family):
        raise UsageError(f"--{name} is {value!r}; it must be an IPv{6 if family is IPv6Address else 4} address")
    local = found.version == 6 and found.is_link_local
    reserved = found.version == 4 and (found.is_reserved or found in IPv4Network("0.0.0.0/8"))
    mapped = isinstance(found, IPv6Address) and found.ipv4_mapped is not None
    if found.is_multicast or found.is_unspecified or found.is_loopback or local or reserved or mapped:
        raise UsageError(f"--{name} is {value}; it must be an address at which other hosts can reach this one")
    return found


def regex(pattern: str) -> str:
    """Check a regular expression, and return it. Raises UsageError."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--iface-regex {pattern!r} is no regular expression: {error}") from None
    return pattern
