from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.ratelimit import MOST_BUCKETS, Bucket, Buckets


def drain(bucket: Bucket, now: float, tries: int = 1000) -> tuple[int, Bucket]:
    """How many of so many tries at one moment are allowed."""
    allowed = 0
    for _ in range(tries):
        granted, bucket = bucket.take(now)
        allowed += granted
    return allowed, bucket


def test_a_burst_and_then_the_rate() -> None:
    allowed, bucket = drain(Bucket(rate=100, burst=50), now=5000.0)
    assert allowed == 50
    allowed, bucket = drain(bucket, now=5000.1)
    assert allowed == 10
    allowed, bucket = drain(bucket, now=9000.0)
    assert allowed == 50, "more than a burst is not saved up"


@pytest.mark.parametrize("several", [1, 2, 4, 32])
def test_shares_allow_together_what_the_whole_allows(several: int) -> None:
    now, allowed = 5000.0, 0
    shares = [Bucket(rate=100, burst=50).share(several)] * several
    for seconds in (0.0, 1.0, 1.0, 1.0):
        now += seconds
        drained = [drain(share, now) for share in shares]
        allowed += sum(count for count, _ in drained)
        shares = [share for _, share in drained]
    assert several <= allowed <= 200, "a burst each second, as nothing is asked meanwhile"


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    _, bucket = drain(Bucket(rate=100, burst=50), now=10.0)
    assert drain(bucket, now=9.0)[0] == 0


@given(st.lists(st.floats(0, 0.1), max_size=300))
def test_never_more_than_the_burst_and_the_rate(pauses: list[float]) -> None:
    bucket, now, allowed = Bucket(rate=100, burst=50), 0.0, 0
    for pause in pauses:
        now += pause
        granted, bucket = bucket.take(now)
        allowed += granted
        assert allowed <= 50 + 100 * now + 1e-6


def test_one_that_uses_up_its_own_leaves_the_others_theirs() -> None:
    buckets = Buckets(Bucket(10, 5), Bucket(100, 12))
    assert sum(buckets.take(b"scanner", 0.0) for _ in range(1000)) == 5
    assert sum(buckets.take(b"other", 0.0) for _ in range(1000)) == 5
    assert sum(buckets.take(b"third", 0.0) for _ in range(1000)) == 2, "together 12"
    assert sum(buckets.take(b"scanner", 0.1) for _ in range(1000)) == 1


def test_what_is_remembered_of_many_is_bounded() -> None:
    buckets = Buckets(Bucket(10, 5), Bucket(1e9, 1e9))
    for number in range(10 * MOST_BUCKETS):
        assert buckets.take(number.to_bytes(4, "big"), 0.0)
    assert len(buckets._of) <= MOST_BUCKETS
