"""The codec against anything: what it writes comes back, and nothing it reads can make it fail otherwise than said."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import example, given
from hypothesis import strategies as st

from flanneld_py.registry.codec import (
    decode_attrs,
    decode_owner,
    decode_record,
    encode_attrs,
    encode_owner,
    lease_key,
    parse_lease_key,
    subnets_prefix,
)
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import NO_IPV4, Json, Lease, LeaseAttrs, Owner, Subnets
from flanneld_py.registry.store import KeyValue

PREFIX = "/coreos.com/network"
FLANNEL = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
KNOWN = {name.lower() for name in FLANNEL}

ipv4_networks = st.builds(
    lambda base, length: IPv4Network((base, length), strict=False), st.integers(0, 2**32 - 1), st.integers(1, 31)
)
ipv6_networks = st.builds(
    lambda base, length: IPv6Network((base, length), strict=False), st.integers(0, 2**128 - 1), st.integers(1, 127)
)
subnets = (
    st.builds(Subnets, ipv4_networks, st.none() | ipv6_networks) | st.builds(Subnets, st.just(NO_IPV4), ipv6_networks)
).filter(lambda leased: bool(leased.families))
ipv4 = st.ip_addresses(v=4).map(lambda address: IPv4Address(int(address)))
json_leaves: st.SearchStrategy[Json] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values: st.SearchStrategy[Json] = st.recursive(
    json_leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)
attributes = st.builds(
    LeaseAttrs,
    ipv4,
    st.none() | st.ip_addresses(v=6),
    st.text(),
    json_values,
    json_values,
    st.dictionaries(st.text().filter(lambda name: name.lower() not in KNOWN), json_values, max_size=3),
)
odd_names = st.sampled_from(
    [*FLANNEL, "publicip", "Network", "IPv6Network", "SubnetLen", "SubnetMin", "EnableIPv6", "Backend", "Type"]
)
odd_leaves = st.sampled_from(["10.3.0.0/16", "10.3.1.0", "fc00::/48", "::1", "vxlan", 24, 0, 1e308, True, "\ud800"])
odd_objects = st.dictionaries(
    odd_names | st.text(), json_values | odd_leaves | st.dictionaries(odd_names, odd_leaves), max_size=6
)
values = st.binary() | odd_objects.map(lambda document: json.dumps(document).encode())


@given(subnets)
def test_lease_keys_come_back(leased: Subnets) -> None:
    assert parse_lease_key(PREFIX, lease_key(PREFIX, leased)) == leased


@given(st.text() | st.from_regex(r"[0-9.]{7,15}-[0-9]{1,3}(&[0-9a-f:]{2,20}-[0-9]{1,3})?", fullmatch=True))
def test_one_lease_has_one_key(name: str) -> None:
    key = subnets_prefix(PREFIX) + name
    try:
        leased = parse_lease_key(PREFIX, key)
    except ValueError:
        return
    assert lease_key(PREFIX, leased) == key


@given(st.text() | st.from_regex(r"[0-9.]{7,15}") | st.ip_addresses(v=4).map(str))
@example("10.05.52.1")
@example("10.5.52.1\0")
@example("\u0661.1.1.1")
def test_addresses_are_read_as_strictly_as_by_the_standard_library(text: str) -> None:
    try:
        expected: IPv4Address | None = IPv4Address(text)
    except ValueError:
        expected = None
    try:
        read: IPv4Address | None = decode_attrs(json.dumps({"PublicIP": text}).encode()).public_ip
    except ValueError:
        read = None
    assert read == expected


@given(attributes)
def test_lease_values_come_back(attrs: LeaseAttrs) -> None:
    value = encode_attrs(attrs)
    assert decode_attrs(value) == attrs
    assert not any(mark in value.decode() for mark in "<>&\u2028\u2029")
    plain = json.loads(value)
    assert list(plain) == [name for name in FLANNEL if name in plain] + list(attrs.extra)
    assert "PublicIPv6" in plain


@given(values)
def test_any_value_is_read_or_refused(value: bytes) -> None:
    record = decode_record(PREFIX, KeyValue(f"{PREFIX}/subnets/10.5.52.0-24", value, 1, 1))
    if isinstance(record, Lease):
        # Once through the encoder a value is in its final form.
        final = encode_attrs(record.attrs)
        assert encode_attrs(decode_attrs(final)) == final
    else:
        assert record.reason


@given(st.builds(Owner, st.just("node-1"), subnets, ipv4 | st.ip_addresses(v=6), st.text(), st.text()))
def test_owners_come_back(owner: Owner) -> None:
    assert decode_owner("node-1", encode_owner(owner)) == owner


@given(values)
def test_any_config_is_usable_or_refused(value: bytes) -> None:
    try:
        config = parse_config(value)
    except ConfigInvalid:
        return
    for family in (config.ipv4, config.ipv6):
        if family is not None:
            assert int(family.subnet_min) <= int(family.subnet_max)
            assert family.subnet_min in family.network
            assert family.subnet_max in family.network
