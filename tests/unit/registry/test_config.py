"""The network config: every default, and every way to get it wrong."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.registry.config import ConfigInvalid, IPv4Config, IPv6Config, NetworkConfig, parse_config
from flanneld_py.registry.model import Json


def parse(**fields: Json) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.3.0.0/16", **fields}).encode())


def ipv4(**fields: Json) -> IPv4Config:
    family = parse(**fields).ipv4
    assert family is not None
    return family


def ipv6(**fields: Json) -> IPv6Config:
    family = parse(**{"EnableIPv6": True, "IPv6Network": "fc00::/48", **fields}).ipv6
    assert family is not None
    return family


def test_the_smallest_config_gets_flannels_defaults() -> None:
    assert parse() == NetworkConfig(
        ipv4=IPv4Config(IPv4Network("10.3.0.0/16"), 24, IPv4Address("10.3.1.0"), IPv4Address("10.3.255.0")),
        ipv6=None,
        nftables=False,
        backend_type="udp",
        backend={},
    )


def test_ipv6_defaults() -> None:
    assert ipv6() == IPv6Config(
        IPv6Network("fc00::/48"), 64, IPv6Address("fc00:0:0:1::"), IPv6Address("fc00:0:0:ffff::")
    )


def test_ipv6_alone_needs_no_ipv4_network() -> None:
    config = parse_config(b'{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48"}')
    assert config.ipv4 is None
    assert config.ipv6 is not None


def test_overrides() -> None:
    assert ipv4(SubnetLen=28, SubnetMin="10.3.5.0", SubnetMax="10.3.8.16") == IPv4Config(
        IPv4Network("10.3.0.0/16"), 28, IPv4Address("10.3.5.0"), IPv4Address("10.3.8.16")
    )
    assert ipv6(IPv6SubnetLen=124, IPv6SubnetMin="fc00::5:0", IPv6SubnetMax="fc00::8:10") == IPv6Config(
        IPv6Network("fc00::/48"), 124, IPv6Address("fc00::5:0"), IPv6Address("fc00::8:10")
    )
    assert parse(EnableNFTables=True).nftables


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0/8", 24), ("10.3.0.0/22", 24), ("10.3.0.0/23", 25), ("10.3.0.0/24", 26), ("10.3.0.0/28", 30)],
)
def test_subnet_len_leaves_room_for_four(network: str, length: int) -> None:
    assert ipv4(Network=network).subnet_len == length
    assert ipv4(Network=network, SubnetLen=0).subnet_len == length


@pytest.mark.parametrize(
    ("network", "length"), [("fc00::/16", 64), ("fc00::/62", 64), ("fc00::/63", 65), ("fc00::/124", 126)]
)
def test_ipv6_subnet_len_leaves_room_for_four(network: str, length: int) -> None:
    assert ipv6(IPv6Network=network).subnet_len == length


def test_host_bits_of_the_network_are_masked() -> None:
    assert ipv4(Network="10.3.4.5/16") == ipv4()
    assert ipv6(IPv6Network="fc00::1/48") == ipv6()


def test_null_and_zero_addresses_mean_the_default() -> None:
    assert ipv4(SubnetMin="0.0.0.0", SubnetMax="0.0.0.0", SubnetLen=None) == ipv4()
    assert ipv4(SubnetMin=None, SubnetMax=None) == ipv4()
    assert ipv6(IPv6SubnetMin="::", IPv6SubnetMax=None) == ipv6()


def test_one_subnet_is_a_range() -> None:
    assert ipv4(SubnetMin="10.3.7.0", SubnetMax="10.3.7.0").subnet_min == IPv4Address("10.3.7.0")


def test_the_first_subnet_may_be_asked_for() -> None:
    assert ipv4(SubnetMin="10.3.0.0").subnet_min == IPv4Address("10.3.0.0")


def test_field_names_ignore_case_and_the_last_one_wins() -> None:
    config = parse_config(
        b'{"NETWORK": "10.1.0.0/16", "network": "10.2.0.0/16", "subnetLEN": 25, "bAckend": {"tYPE": "A"}}'
    )
    assert config.ipv4 is not None
    assert (config.ipv4.network, config.ipv4.subnet_len) == (IPv4Network("10.2.0.0/16"), 25)
    assert config.backend_type == "a"


def test_fields_that_flannel_does_not_know_are_ignored() -> None:
    assert parse(Comment="ours", FaultyThing=[1, {}]) == parse()


def test_the_backend_keeps_all_its_options_under_lower_case_names() -> None:
    config = parse(Backend={"Type": "VXLAN", "VNI": 7, "DirectRouting": True, "nested": {"Keep": "Case"}})
    assert config.backend_type == "vxlan"
    assert config.backend == {"type": "VXLAN", "vni": 7, "directrouting": True, "nested": {"Keep": "Case"}}


WRONG: list[tuple[dict[str, Json], str]] = [
    ({"EnableIPv4": False}, "EnableIPv4 and EnableIPv6 are both false"),
    ({"EnableIPv4": "yes"}, 'EnableIPv4 is "yes": expected true or false'),
    ({"EnableIPv6": 1}, "EnableIPv6 is 1: expected true or false"),
    ({"EnableNFTables": []}, "EnableNFTables is a list: expected true or false"),
    ({"Network": None}, "Network is missing: expected an IPv4 CIDR"),
    ({"Network": 10}, "Network is 10: expected an IPv4 CIDR"),
    ({"Network": "10.3.0.0"}, 'Network is "10.3.0.0": expected an IPv4 CIDR'),
    ({"Network": "10.3.0.0/33"}, 'Network is "10.3.0.0/33": expected an IPv4 CIDR'),
    ({"Network": "10.3.0.0/255.255.0.0"}, "expected an IPv4 CIDR"),
    ({"Network": "0.0.0.0/0"}, "every address there is"),
    ({"Network": "fc00::/48"}, "an IPv6 CIDR: expected an IPv4 CIDR"),
    ({"Network": "10.3.0.0/29"}, "Network 10.3.0.0/29 is too small"),
    ({"Network": "10.3.0.0/29", "SubnetLen": 30}, "Network 10.3.0.0/29 is too small"),
    ({"SubnetLen": 31}, "SubnetLen is 31: expected a number from 18 to 30"),
    ({"SubnetLen": 17}, "SubnetLen is 17: expected a number from 18 to 30"),
    ({"SubnetLen": -24}, "SubnetLen is -24: expected a number"),
    ({"SubnetLen": "24"}, 'SubnetLen is "24": expected a number'),
    ({"SubnetLen": 24.0}, "SubnetLen is 24.0: expected a number"),
    ({"SubnetLen": False}, "SubnetLen is false: expected a number"),
    ({"SubnetMin": "10.4.1.0"}, "SubnetMin 10.4.1.0 is outside of Network 10.3.0.0/16"),
    ({"SubnetMax": "10.4.1.0"}, "SubnetMax 10.4.1.0 is outside of Network 10.3.0.0/16"),
    ({"SubnetMin": "10.3.1.1"}, "SubnetMin 10.3.1.1 is not on a SubnetLen boundary: .* such as 10.3.1.0"),
    ({"SubnetMax": "10.3.1.1"}, "SubnetMax 10.3.1.1 is not on a SubnetLen boundary"),
    ({"SubnetMin": "10.3"}, 'SubnetMin is "10.3": expected an IPv4 address within 10.3.0.0/16'),
    ({"SubnetMin": 7}, "SubnetMin is 7: expected an IPv4 address"),
    ({"SubnetMin": "fc00::"}, "expected an IPv4 address"),
    ({"SubnetMin": "10.3.9.0", "SubnetMax": "10.3.8.0"}, "SubnetMin 10.3.9.0 is above SubnetMax 10.3.8.0"),
    ({"Backend": "vxlan"}, 'Backend is "vxlan": expected an object'),
    ({"Backend": None}, "Backend is null: expected an object"),
    ({"Backend": {}}, "Backend has no Type"),
    ({"Backend": {"Type": ""}}, "Backend has no Type"),
    ({"Backend": {"Type": 7}}, "Backend.Type is 7"),
]

WRONG_IPV6: list[tuple[dict[str, Json], str]] = [
    ({"IPv6Network": None}, "IPv6Network is missing: expected an IPv6 CIDR"),
    ({"IPv6Network": "10.3.0.0/16"}, "an IPv4 CIDR: expected an IPv6 CIDR"),
    ({"IPv6Network": "fc00::%1/48"}, "expected an IPv6 CIDR"),
    ({"IPv6Network": "::/0"}, "every address there is"),
    ({"IPv6Network": "fc00::/125"}, "IPv6Network fc00::/125 is too small"),
    ({"IPv6SubnetLen": 127}, "IPv6SubnetLen is 127: expected a number from 50 to 126"),
    ({"IPv6SubnetLen": 49}, "IPv6SubnetLen is 49: expected a number from 50 to 126"),
    ({"IPv6SubnetMin": "fd00::"}, "IPv6SubnetMin fd00:: is outside of IPv6Network fc00::/48"),
    ({"IPv6SubnetMax": "fd00::"}, "IPv6SubnetMax fd00:: is outside of IPv6Network fc00::/48"),
    ({"IPv6SubnetMin": "fc00::1"}, "IPv6SubnetMin fc00::1 is not on a IPv6SubnetLen boundary"),
    ({"IPv6SubnetMax": "fc00::1"}, "IPv6SubnetMax fc00::1 is not on a IPv6SubnetLen boundary"),
    ({"IPv6SubnetMin": "10.3.1.0"}, "expected an IPv6 address"),
    (
        {"IPv6SubnetMin": "fc00:0:0:9::", "IPv6SubnetMax": "fc00:0:0:8::"},
        "IPv6SubnetMin fc00:0:0:9:: is above IPv6SubnetMax fc00:0:0:8::",
    ),
]


@pytest.mark.parametrize(("fields", "text"), WRONG)
def test_what_is_wrong_is_said(fields: dict[str, Json], text: str) -> None:
    with pytest.raises(ConfigInvalid, match=text):
        parse(**fields)


@pytest.mark.parametrize(("fields", "text"), WRONG_IPV6)
def test_what_is_wrong_with_ipv6_is_said(fields: dict[str, Json], text: str) -> None:
    with pytest.raises(ConfigInvalid, match=text):
        ipv6(**fields)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"null", b"[]", b'"x"', b"\xff", b'{"Network": NaN}', b"\xef\xbb\xbf{}", b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(value: bytes) -> None:
    with pytest.raises(ConfigInvalid, match="the network configuration cannot be read: the value is"):
        parse_config(value)
