"""Keys and values byte for byte as flannel's daemon writes them, and what happens to those it would not write."""

import json
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.registry.codec import (
    claim_key,
    config_key,
    decode_attrs,
    decode_owner,
    decode_record,
    encode_attrs,
    encode_owner,
    lease_key,
    owner_key,
    owners_prefix,
    parse_lease_key,
    subnets_prefix,
)
from flanneld_py.registry.model import NO_IPV4, Json, Lease, LeaseAttrs, Owner, Rejected, Subnets, stand_in
from flanneld_py.registry.store import KeyValue

PREFIX = "/coreos.com/network"
V4 = Subnets(IPv4Network("10.5.52.0/24"))
DUAL = Subnets(IPv4Network("10.12.13.0/24"), IPv6Network("fd00:12:13::/56"))
SIX = Subnets(NO_IPV4, DUAL.v6)
VXLAN = (
    b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
)


@pytest.mark.parametrize(
    ("prefix", "clean"),
    [
        ("/coreos.com/network", "/coreos.com/network"),
        ("/coreos.com/network/", "/coreos.com/network"),
        ("//coreos.com//network//", "/coreos.com/network"),
        ("coreos.com/network", "coreos.com/network"),
        ("/a/./b/../c", "/a/c"),
        ("a/../../b", "../b"),
        ("/../b", "/b"),
    ],
)
def test_prefixes_are_joined_like_path_join(prefix: str, clean: str) -> None:
    assert config_key(prefix) == f"{clean}/config"
    assert subnets_prefix(prefix) == f"{clean}/subnets/"
    assert owners_prefix(prefix) == f"{clean}/ext/hosts/"
    assert lease_key(prefix, V4) == f"{clean}/subnets/10.5.52.0-24"


@pytest.mark.parametrize(("prefix", "key"), [("/", "/config"), ("", "config"), (".", "config"), ("//", "/config")])
def test_a_prefix_may_be_empty(prefix: str, key: str) -> None:
    assert config_key(prefix) == key


@pytest.mark.parametrize(
    ("subnets", "key"),
    [
        (V4, f"{PREFIX}/subnets/10.5.52.0-24"),
        (DUAL, f"{PREFIX}/subnets/10.12.13.0-24&fd00:12:13::-56"),
        (SIX, f"{PREFIX}/subnets/0.0.0.0-31&fd00:12:13::-56"),
        (Subnets(IPv4Network("128.0.0.0/1"), IPv6Network("8000::/1")), f"{PREFIX}/subnets/128.0.0.0-1&8000::-1"),
        (
            Subnets(IPv4Network("10.0.0.2/31"), IPv6Network("fd00::2/127")),
            f"{PREFIX}/subnets/10.0.0.2-31&fd00::2-127",
        ),
    ],
)
def test_lease_keys(subnets: Subnets, key: str) -> None:
    assert lease_key(PREFIX, subnets) == key
    assert parse_lease_key(PREFIX, key) == subnets


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "names no subnet"),
        ("10", "names no subnet"),
        ("10.12.13.0", "names no subnet"),
        ("10.12.13.0/24", "names no subnet"),
        ("10.12.13.0-24foo", "names no subnet"),
        ("foo10.12.13.0-24", "names no subnet"),
        ("foo/10.12.13.0-24", "names no subnet"),
        ("10.12.13.0-24\n", "names no subnet"),
        ("10.12.13.0-٢٤", "names no subnet"),
        ("10.12.13.0-24&", "names no subnet"),
        ("10.12.13.0-24&fd00:12:13::", "names no subnet"),
        ("&fd00:12:13::-56", "names no subnet"),
        ("fd00:12:13::-56", "names no subnet"),
        ("10.12.13.0-24&fd00:12:13::-56&fd00:12:13::-56", "names no subnet"),
        ("10.12.13.0-24&FD00::-56", "names no subnet"),
        ("10.12.13-24", "Expected 4 octets"),
        ("10.12.13.300-24", "300"),
        ("10.12.013.0-24", "Leading zeros"),
        ("10.12.13.0-0", "prefix length 0 in the key: expected 1 to 31"),
        ("10.12.13.0-024", "prefix length 024 in the key"),
        ("10.12.13.0-32", "prefix length 32 in the key: expected 1 to 31"),
        ("10.12.13.0-999", "prefix length 999"),
        ("10.12.13.7-24", "host bits"),
        ("10.12.13.0-24&fd00:12:13::-128", "prefix length 128 in the key: expected 1 to 127"),
        ("10.12.13.0-24&::-0", "prefix length 0"),
        ("10.12.13.0-24&fd00::1-56", "host bits"),
        ("0.0.0.0-31", "stands for none and needs an IPv6 subnet beside it"),
        ("0.0.0.0-0&fd00:12:13::-56", "prefix length 0 in the key"),
        ("10.12.13.0-24&fd00:::-56", "fd00:::"),
        ("10.12.13.0-24&fd00:0::-56", "expected fd00::"),
    ],
)
def test_what_is_no_lease_key(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_lease_key(PREFIX, f"{PREFIX}/subnets/{name}")


@pytest.mark.parametrize("key", ["/other/subnets/10.5.52.0-24", f"{PREFIX}/subnets-backup/10.5.52.0-24", ""])
def test_keys_elsewhere_are_not_ours(key: str) -> None:
    with pytest.raises(ValueError, match=r"does not start with /coreos\.com/network/subnets/"):
        parse_lease_key(PREFIX, key)


@pytest.mark.parametrize(
    ("attrs", "value"),
    [
        (LeaseAttrs(IPv4Address("1.2.3.4")), b'{"PublicIP":"1.2.3.4","PublicIPv6":null}'),
        (
            LeaseAttrs(
                IPv4Address("192.168.64.3"),
                backend_type="vxlan",
                backend_data={"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"},
            ),
            VXLAN,
        ),
        (
            LeaseAttrs(IPv4Address("1.2.3.4"), IPv6Address("fd00::1"), "wireguard", {"Port": 51820}, {"Port": 51821}),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"wireguard",'
            b'"BackendData":{"Port":51820},"BackendV6Data":{"Port":51821}}',
        ),
        (
            LeaseAttrs(IPv4Address("1.2.3.4"), backend_type="extension", backend_data='a<b>&\u2028\u2029"\\\n é🐧'),
            '{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension",'
            '"BackendData":"a\\u003cb\\u003e\\u0026\\u2028\\u2029\\"\\\\\\n é🐧"}'.encode(),
        ),
        (
            LeaseAttrs(IPv4Address("1.2.3.4"), backend_data={}, extra={"Node": "a", "z": [1, None]}),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendData":{},"Node":"a","z":[1,null]}',
        ),
    ],
)
def test_lease_values(attrs: LeaseAttrs, value: bytes) -> None:
    assert encode_attrs(attrs) == value
    assert decode_attrs(value) == attrs


def test_field_names_ignore_case_and_the_last_one_wins() -> None:
    attrs = decode_attrs(b'{"publicip":"1.1.1.1","PUBLICIP":"2.2.2.2","backendTYPE":"vxlan","Other":1}')
    assert attrs == LeaseAttrs(IPv4Address("2.2.2.2"), backend_type="vxlan", extra={"Other": 1})


def test_a_missing_public_ip_is_gos_zero() -> None:
    assert decode_attrs(b"{}") == LeaseAttrs(IPv4Address("0.0.0.0"))


def test_nulls_are_as_good_as_absent() -> None:
    value = b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":null,"BackendData":null,"BackendV6Data":null}'
    assert decode_attrs(value) == LeaseAttrs(IPv4Address("1.2.3.4"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "the value is not JSON"),
        (b'{"PublicIP":"1.2.3.4"', "the value is not JSON"),
        (b"{} {}", "the value is not JSON"),
        (b'{"PublicIP":"1.2.3.4\xff"}', "the value is not JSON: 'utf-8'"),
        ("{}".encode("utf-16"), "the value is not JSON"),
        (b'{"BackendData":NaN}', "NaN is no JSON value"),
        (b'{"BackendData":1e999}', "number 1e999 is too large"),
        (b'{"BackendData":' + b"9" * 5000 + b"}", "the value is not JSON"),
        (b'{"BackendData":' + b"[" * 100_000, "nested too deeply"),
        (b"null", "the value is null: expected a JSON object"),
        (b"[1]", "the value is a list: expected a JSON object"),
        (b'{"PublicIP":"1.2.3"}', 'PublicIP is "1.2.3": expected an IPv4 address'),
        (b'{"PublicIP":16909060}', "PublicIP is 16909060: expected an IPv4 address"),
        (b'{"PublicIP":null}', "PublicIP is null"),
        (b'{"PublicIP":"fd00::1"}', "expected an IPv4 address"),
        (b'{"PublicIPv6":"1.2.3.4"}', 'PublicIPv6 is "1.2.3.4": expected an IPv6 address or null'),
        (b'{"PublicIPv6":"fe80::1%eth0"}', "expected an IPv6 address or null"),
        (b'{"PublicIPv6":1}', "PublicIPv6 is 1"),
        (b'{"BackendType":{}}', "BackendType is an object: expected a string"),
    ],
)
def test_what_is_no_lease_value(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_attrs(value)


def test_a_lone_surrogate_is_replaced_as_go_does() -> None:
    attrs = decode_attrs(b'{"PublicIP":"1.2.3.4","BackendData":"\\ud800"}')
    assert json.loads(encode_attrs(attrs))["BackendData"] == "\ufffd"


def test_an_extra_field_cannot_override_flannels() -> None:
    with pytest.raises(ValueError, match="publicip would override flannel's PublicIP"):
        encode_attrs(LeaseAttrs(IPv4Address("1.2.3.4"), extra={"publicip": "6.6.6.6"}))


def test_what_json_cannot_say_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_attrs(LeaseAttrs(IPv4Address("1.2.3.4"), backend_data=float("inf")))
    deep: Json = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        encode_attrs(LeaseAttrs(IPv4Address("1.2.3.4"), backend_data=deep))


def test_a_record_is_a_lease_with_etcds_bookkeeping() -> None:
    record = decode_record(PREFIX, KeyValue(f"{PREFIX}/subnets/10.5.52.0-24", VXLAN, 3, 7, 99))
    assert record == Lease(V4, decode_attrs(VXLAN))
    assert isinstance(record, Lease)
    assert (record.create_revision, record.mod_revision, record.lease_id) == (3, 7, 99)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("foo", VXLAN, "'foo' names no subnet"), ("10.5.52.0-24", b"?", "the value is not JSON")],
)
def test_a_record_that_is_no_lease_says_why(name: str, value: bytes, reason: str) -> None:
    record = decode_record(PREFIX, KeyValue(f"{PREFIX}/subnets/{name}", value, 3, 7))
    assert isinstance(record, Rejected)
    assert reason in record.reason
    assert record.mod_revision == 7


@pytest.mark.parametrize(
    "owner",
    [
        Owner("node-1", V4, IPv4Address("1.2.3.4"), "host.example", "boot"),
        Owner("n", DUAL, IPv4Address("1.2.3.4")),
        Owner("n", SIX, IPv6Address("2001:db8::1")),
    ],
)
def test_owners_come_back_as_written(owner: Owner) -> None:
    assert decode_owner(owner.identity, encode_owner(owner)) == owner


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{}", "names no subnet"),
        (b"x", "not JSON"),
        (b'{"Subnets":"10.5.52.0-24"}', "PublicIP is null"),
        (b'{"Subnets":"10.5.52.0-24","PublicIP":"1.2.3.4","Hostname":7}', "Hostname is 7"),
    ],
)
def test_what_is_no_owner(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_owner("node-1", value)


def test_flannels_own_form_without_ipv4_is_no_peer_but_takes_its_subnet() -> None:
    """All its IPv6-only hosts hold that one lease together: packets to it would have no one place to go."""
    record = decode_record(PREFIX, KeyValue(f"{PREFIX}/subnets/0.0.0.0-0&fd00:12:13::-56", b"{}", 3, 7))
    assert isinstance(record, Rejected)
    assert record.subnets == SIX


def test_a_key_without_ipv4_is_read_by_flannels_parser() -> None:
    """Its pattern, and a length of five bits for IPv4 and seven for IPv6."""
    pattern = re.compile(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$")
    match = pattern.search(lease_key(PREFIX, SIX))
    assert match is not None
    assert match.groups() == ("0.0.0.0", "31", "fd00:12:13::", "56")


def test_there_is_one_claim_for_each_subnet_whatever_lease_it_is_part_of() -> None:
    assert [claim_key(PREFIX, subnet) for subnet in DUAL.families] == [
        f"{PREFIX}/ext/subnets/10.12.13.0-24",
        f"{PREFIX}/ext/subnets/fd00:12:13::-56",
    ]
    assert SIX.families == DUAL.families[1:]


def test_hosts_without_ipv4_have_each_another_public_ip_that_is_no_hosts() -> None:
    addresses = [stand_in(IPv6Address(f"2001:db8:{net:x}::1")) for net in range(1000)]
    assert len(set(addresses)) == 1000
    assert all(address.is_reserved for address in addresses)


def test_owner_keys() -> None:
    assert owner_key(PREFIX, "node-1") == f"{PREFIX}/ext/hosts/node-1"
    for identity in ("", "a/b"):
        with pytest.raises(ValueError, match="cannot be a key"):
            owner_key(PREFIX, identity)


@pytest.mark.parametrize("name", ["Extra", "BackendData", "BackendV6Data"])
@pytest.mark.parametrize(("opened", "closed"), [('{"a":', "}"), ("[", "]")])
def test_nesting_that_can_be_read_can_also_be_shown_and_written(name: str, opened: str, closed: str) -> None:
    def nested(levels: int) -> bytes:
        return f'{{"PublicIP":"1.2.3.4","{name}":{opened * levels}1{closed * levels}}}'.encode()

    attrs = decode_attrs(nested(50))
    assert decode_attrs(encode_attrs(attrs)) == attrs
    for levels in range(100, 1000, 20):
        with pytest.raises(ValueError, match="nested too deeply"):
            decode_attrs(nested(levels))
