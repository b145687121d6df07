from __future__ import annotations

import subprocess
import tempfile

import pytest

from tests.lab.measure import Passage, Ping, PingStream, parse_iperf, parse_passage, parse_ping, parse_round_trips

ANSWERED = """\
--- 10.42.2.2 ping statistics ---
5 packets transmitted, 4 received, +1 duplicates, 20% packet loss, time 41ms
rtt min/avg/max/mdev = 0.024/0.038/0.070/0.016 ms
"""


def stream(replies: list[tuple[float, int]], sent: int) -> str:
    lines = [f"[{at:.6f}] 64 bytes from 10.42.2.2: icmp_seq={n} ttl=62 time=0.04 ms" for at, n in replies]
    lines.insert(1, "[100.000000] From 10.42.1.1 icmp_seq=9 Destination Host Unreachable")
    return "\n".join([*lines, "", f"{sent} packets transmitted, {len(replies)} received, 0% packet loss, time 9ms"])


def test_ping_summary() -> None:
    outcome = parse_ping(ANSWERED)
    assert outcome == Ping(5, 4, 0.038)
    assert outcome.loss == pytest.approx(0.2)


def test_ping_without_an_answer() -> None:
    outcome = parse_ping("3 packets transmitted, 0 received, 100% packet loss, time 20ms\n")
    assert outcome == Ping(3, 0, None)
    assert outcome.loss == 1


def test_ping_that_did_not_work_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="no summary"):
        parse_ping("ping: connect: Network is unreachable\n")


def test_the_longest_gap_lies_between_replies_or_before_the_stop() -> None:
    replies = [(100.0, 1), (100.01, 2), (100.31, 32), (100.32, 33)]
    between = parse_passage(stream(replies, 33), 100.33)
    assert (between.sent, between.received) == (33, 4)
    assert between.longest_gap == pytest.approx(0.3)
    assert parse_passage(stream(replies, 133), 101.32).longest_gap == pytest.approx(1.0)


def test_the_last_packets_may_still_be_on_their_way() -> None:
    assert parse_passage(stream([(100.0, 1), (100.01, 2)], 4), 100.03).sent == 2
    assert parse_passage(stream([(100.0, 1), (100.01, 2)], 24), 100.25).sent == 24


def test_a_reply_that_came_twice_counts_once() -> None:
    assert parse_passage(stream([(100.0, 1), (100.0, 1)], 1), 100.01).received == 1


def test_a_stream_without_a_reply_is_one_endless_gap() -> None:
    assert parse_passage("7 packets transmitted, 0 received", 100.0) == Passage(7, 0, float("inf"))


def test_each_round_trip_is_told_with_its_time() -> None:
    assert parse_round_trips(stream([(100.0, 1), (100.01, 2)], 2)) == [(100.0, 0.04), (100.01, 0.04)]


def test_iperf_counts_what_the_receiver_got() -> None:
    assert parse_iperf('{"end": {"sum_received": {"bits_per_second": 2.5e9}}}') == 2.5


def test_iperfs_own_words_are_the_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse_iperf('{"error": "unable to connect to server"}')


def test_looking_at_a_running_ping_leaves_its_output_alone() -> None:
    """A process inherits the file with its offset: reading must not move where ping writes next."""
    script = """for n in $(seq 4000); do echo "[1.0] 64 bytes from x: icmp_seq=$n ttl=62"; done
    echo 4000 packets transmitted, 4000 received"""
    with tempfile.TemporaryFile() as output, subprocess.Popen(["sh", "-c", script], stdout=output) as process:
        watched = PingStream(process, output)
        while process.poll() is None:
            watched.wait_replies(0)
        assert watched.stop().received == 4000
