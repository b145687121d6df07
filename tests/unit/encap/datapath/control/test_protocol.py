"""The control protocol: what is encoded is read back, and what is no message is refused in words."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.datapath.control import messages, protocol

CONFIGURE = messages.Configure(
    mode=messages.Mode.VXLAN,
    device="flannel.1",
    local=bytes([10, 0, 0, 1]),
    port=8472,
    mtu=1450,
    subnets=(IPv4Network("10.5.1.0/24"), IPv6Network("fd05:1::/64")),
    vni=1,
    mac=bytes.fromhex("020000000001"),
)
PEER = messages.Peer("10.5.2.0-24", bytes([10, 5, 2, 0]), 24, bytes([10, 0, 0, 2]), bytes.fromhex("020000000002"))
PEER6 = messages.Peer("fd05:2::-64", bytes.fromhex("fd050002") + bytes(12), 64, bytes(15) + b"\x01")
STATUS = messages.Status(
    7, True, 2, "flannel.1", ("csum", "tso4"), True, True, 8 << 20, counters={"sent": 1, "in-source": 3}
)

counter = st.integers(0, 2**64 - 1)
keys = st.text(min_size=1, max_size=60)
addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
peers = st.builds(messages.Peer, keys, addresses, st.integers(0, 32), addresses, st.binary(min_size=6, max_size=6))
rows = st.builds(messages.PeerTraffic, keys, counter, counter, counter, counter)


@pytest.mark.parametrize(
    "message",
    [
        CONFIGURE,
        replace(CONFIGURE, mode=messages.Mode.RAW, vni=0, local=bytes(15) + b"\x01"),
        messages.Begin(),
        messages.Put((PEER, PEER6)),
        messages.Remove("10.5.2.0-24"),
        messages.End(),
        messages.AskStatus(),
        messages.AskTraffic(1000),
        messages.Stop(),
        messages.Done(10_000),
        messages.Refused("the port is taken", restart=True),
        messages.Refused("the port is taken"),
        STATUS,
        messages.Traffic(5, (messages.PeerTraffic("10.5.2.0-24", 1, 2, 3, 4),)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_encoded_is_read_back(message: messages.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


def test_what_a_newer_process_says_beyond_what_we_know_is_passed_over() -> None:
    """An agent that is an older version again takes over the process that a newer one started."""
    told = protocol.encode(STATUS)
    assert protocol.decode(told.replace(b'{"pid"', b'{"mood": "good", "pid"')) == STATUS


@given(st.lists(peers, max_size=300))
def test_any_number_of_peers_fits_into_messages_that_fit(table: list[messages.Peer]) -> None:
    read: list[messages.Peer] = []
    for data in protocol.encode_peers(table):
        assert len(data) <= protocol.MAX_MESSAGE
        message = protocol.decode(data)
        assert isinstance(message, messages.Put)
        read += message.peers
    assert read == table


def test_ten_thousand_peers_take_few_messages() -> None:
    table = [replace(PEER, key=f"10.{i >> 8}.{i & 255}.0-24") for i in range(10_000)]
    encoded = list(protocol.encode_peers(table))
    assert len(encoded) == 50
    puts = [message for message in map(protocol.decode, encoded) if isinstance(message, messages.Put)]
    assert [peer for put in puts for peer in put.peers] == table


@given(st.lists(rows, max_size=protocol.TRAFFIC_PAGE))
def test_a_page_of_counters_always_fits(page: list[messages.PeerTraffic]) -> None:
    longest = [replace(row, key="k" * protocol.MAX_KEY) for row in page]
    message = messages.Traffic(0, tuple(longest))
    assert protocol.decode(protocol.encode(message)) == message


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    for kind in (*range(1, 9), *range(65, 69)):
        with suppress(protocol.Malformed):
            protocol.decode(bytes([protocol.VERSION, kind]) + data)


@given(st.sampled_from([CONFIGURE, messages.Put((PEER, PEER6)), STATUS]), st.data())
def test_a_truncated_message_is_refused_or_complete(message: messages.Message, data: st.DataObject) -> None:
    whole = protocol.encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    try:
        read = protocol.decode(whole[:cut])
    except protocol.Malformed:
        return
    assert isinstance(message, messages.Put)
    assert isinstance(read, messages.Put)
    assert read.peers == message.peers[: len(read.peers)]


def test_another_version_is_refused_except_for_a_refusal() -> None:
    other = protocol.VERSION + 1
    with pytest.raises(protocol.Malformed, match=f"version {other}, ours is {protocol.VERSION}"):
        protocol.decode(bytes([other]) + protocol.encode(messages.AskStatus())[1:])
    refusal = messages.Refused("version 2", restart=True)
    assert protocol.decode(bytes([other]) + protocol.encode(refusal)[1:]) == refusal


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "gre"),
        ("device", "a/b"),
        ("device", "flannel%d"),
        ("device", "sixteen-letters-"),
        ("device", 7),
        ("local", "10.0.0"),
        ("port", 0),
        ("port", "8472"),
        ("port", True),
        ("mtu", 67),
        ("mtu", 65536),
        ("vni", -1),
        ("vni", 2**24),
        ("mac", "02:00"),
        ("mac", None),
        ("subnets", ["10.5.1.1/24"]),
        ("subnets", 3),
    ],
)
def test_a_configuration_with_an_impossible_value_is_refused(field: str, value: object) -> None:
    body = json.loads(protocol.encode(CONFIGURE)[2:])
    data = protocol.encode(CONFIGURE)[:2] + json.dumps({**body, field: value}).encode()
    with pytest.raises(protocol.Malformed):
        protocol.decode(data)


@pytest.mark.parametrize("key", ["", "k" * (protocol.MAX_KEY + 1)])
def test_a_key_that_fits_no_message_is_an_error_of_the_sender(key: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 255"):
        protocol.encode(messages.Remove(key))


def test_a_message_too_long_is_refused() -> None:
    with pytest.raises(protocol.Malformed, match="60001 bytes"):
        protocol.decode(bytes([protocol.VERSION, 1]) + bytes(protocol.MAX_MESSAGE - 1))
    with pytest.raises(ValueError, match="the most is"):
        protocol.encode(replace(STATUS, device="x" * protocol.MAX_MESSAGE))


def test_only_what_device_and_socket_are_made_of_is_fixed() -> None:
    assert replace(CONFIGURE, mtu=1400, vni=7, mac=bytes(6), subnets=()).fixed() == CONFIGURE.fixed()
    assert replace(CONFIGURE, port=1).fixed() != CONFIGURE.fixed()
    assert replace(CONFIGURE, device="x").fixed() != CONFIGURE.fixed()
    assert replace(CONFIGURE, local=bytes(4)).fixed() != CONFIGURE.fixed()
    assert replace(CONFIGURE, mode=messages.Mode.RAW).fixed() != CONFIGURE.fixed()
