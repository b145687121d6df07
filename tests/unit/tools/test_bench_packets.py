from __future__ import annotations

import pytest

from tests.bench.packets import LADDER, Capacity, Datagrams, Flow, climb, parse_datagrams

SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 7 1 900 40 893 0 0 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 0 0 0 0 0 0 0
"""


def capacity_of(most: float, generator: float = 1e9, overloaded: float = 1.0) -> Capacity:
    """The capacity of a path that delivers `most`, less when it is overloaded, found with such a generator."""

    def offer(rate: float) -> Flow:
        offered = min(rate, generator)
        return Flow(offered, offered if offered <= most else most * overloaded)

    return climb(offer)


def test_the_best_is_found_and_twice_that_is_offered() -> None:
    assert capacity_of(100_000) == Capacity(100_000, Flow(200_000, 100_000))


def test_a_path_that_collapses_under_load_keeps_its_best_rung() -> None:
    found = capacity_of(100_000, overloaded=0.1)
    assert found.best == max(rung for rung in LADDER if rung <= 100_000)
    assert found.overload == Flow(2 * found.best, 10_000)


def test_a_path_that_is_worse_than_the_first_rung() -> None:
    assert capacity_of(5_000) == Capacity(5_000, Flow(10_000, 5_000))


def test_a_generator_that_cannot_more_is_seen_in_what_was_offered() -> None:
    assert capacity_of(1e9, generator=250_000) == Capacity(250_000, Flow(250_000, 250_000))


def test_datagrams_that_nobody_read_have_arrived_all_the_same() -> None:
    assert parse_datagrams(SNMP) == Datagrams(sent=40, arrived=900)


def test_no_counters_are_an_error() -> None:
    with pytest.raises(ValueError, match="no UDP counters"):
        parse_datagrams("Ip: Forwarding\nIp: 1\n")
