from __future__ import annotations

import struct

import pytest

from tests.bench.witness import (
    AF_BRIDGE,
    DEL_LINK,
    DEL_NEIGHBOUR,
    NEW_NEIGHBOUR,
    NEW_NEXTHOP,
    NEW_ROUTE,
    NUD_PERMANENT,
    events,
    parse_prefixes,
)

AF_INET = 2
NUD_FAILED = 0x20
BASE = bytes([10, 64, 0, 0])
MAC = bytes([6, 0xFB, 0, 0, 0, 1])


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, fixed: bytes, *attributes: bytes) -> bytes:
    body = fixed + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def neighbour(kind: int, family: int, state: int) -> bytes:
    fixed = struct.pack("=BxHiHBB", family, 0, 7, state, 0, 0)
    return message(kind, fixed, attribute(1, BASE), attribute(2, MAC))


def test_each_event_is_named_by_what_it_is_about() -> None:
    buffer = b"".join(
        [
            message(NEW_ROUTE, bytes(12), attribute(30, bytes(4)), attribute(1, BASE)),
            neighbour(NEW_NEIGHBOUR, AF_INET, NUD_PERMANENT),
            neighbour(DEL_NEIGHBOUR, AF_BRIDGE, NUD_PERMANENT),
            message(NEW_NEXTHOP, bytes(8), attribute(6, BASE)),
            message(DEL_LINK, bytes(16), attribute(3, b"flannel.1\0")),
        ]
    )
    assert list(events(buffer)) == [
        (NEW_ROUTE, BASE),
        (NEW_NEIGHBOUR, BASE),
        (DEL_NEIGHBOUR, MAC),
        (NEW_NEXTHOP, BASE),
        (DEL_LINK, b"flannel.1"),
    ]


def test_a_neighbour_on_its_way_out_is_not_a_new_one() -> None:
    assert list(events(neighbour(NEW_NEIGHBOUR, AF_INET, NUD_FAILED))) == []


def test_other_messages_and_a_torn_buffer_are_passed_over() -> None:
    address = message(20, bytes(8), attribute(1, BASE))
    whole = message(NEW_ROUTE, bytes(12), attribute(1, BASE))
    assert list(events(address + whole + whole[:10])) == [(NEW_ROUTE, BASE)]
    assert list(events(bytes(32))) == []


def test_the_number_of_routes_is_that_of_the_main_table() -> None:
    text = b"Basic info: ...\nMain:\n\tLeaves:         7\n\tPrefixes:       12\nLocal:\n\tPrefixes:       3\n"
    assert parse_prefixes(text) == 12
    with pytest.raises(ValueError, match="fib_triestat"):
        parse_prefixes(b"")
