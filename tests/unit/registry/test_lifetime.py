from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from flanneld_py.registry.lifetime import (
    PERIOD,
    RETRY,
    TTL,
    Adopt,
    Contest,
    GiveUp,
    Held,
    Reclaim,
    Renew,
    Republish,
    Restore,
    Step,
    Wait,
    Written,
    looks_alive,
    next_step,
    remaining,
)
from flanneld_py.registry.model import Lease, LeaseAttrs, Rejected, Subnets

LEASE = Lease(Subnets(IPv4Network("10.5.1.0/24")), LeaseAttrs(IPv4Address("192.0.2.1")), 7, 7, 1234)
HELD = Held(LEASE, renewed=1000.0, attempted=1000.0)


def test_it_is_renewed_each_period() -> None:
    assert next_step(HELD, LEASE, 1000.0, current=True) == Wait(1000.0 + PERIOD)
    assert next_step(HELD, LEASE, 1000.0 + PERIOD, current=True) == Renew()


def test_after_a_failure_it_is_renewed_sooner_and_beyond_its_end_still() -> None:
    failed = replace(HELD, attempted=1000.0 + PERIOD)
    assert next_step(failed, LEASE, 1000.0 + PERIOD, current=True) == Wait(1000.0 + PERIOD + RETRY)
    assert next_step(failed, LEASE, 1000.0 + 2 * TTL, current=True) == Renew()


def test_a_view_that_is_older_than_our_write_says_nothing() -> None:
    assert isinstance(next_step(HELD, None, 1000.0, current=False), Wait)


def test_a_key_that_is_gone_is_claimed_again() -> None:
    assert next_step(HELD, None, 1000.0, current=True) == Reclaim()


def test_a_key_overwritten_by_others_is_restored() -> None:
    other = replace(LEASE, attrs=LeaseAttrs(IPv4Address("192.0.2.99")), mod_revision=9)
    assert next_step(HELD, other, 1000.0, current=True) == Restore(other)
    assert next_step(HELD, Rejected("not JSON", 9), 1000.0, current=True) == Restore(Rejected("not JSON", 9))


def test_a_subnet_that_another_host_took_is_given_up() -> None:
    other = replace(LEASE, attrs=LeaseAttrs(IPv4Address("192.0.2.99")), create_revision=9, mod_revision=9)
    assert next_step(HELD, other, 1000.0, current=True) == GiveUp(other)


def test_what_it_is_to_say_is_written_instead_of_a_renewal() -> None:
    wanted = replace(LEASE, attrs=LeaseAttrs(IPv4Address("192.0.2.2")))
    for now in (1000.0, 1000.0 + PERIOD):
        for current in (True, False):
            assert next_step(HELD, LEASE, now, current=current, wanted=wanted) == Republish(wanted.attrs)
    assert next_step(HELD, None, 1000.0, current=True, wanted=wanted) == Reclaim()
    other = replace(LEASE, attrs=LeaseAttrs(IPv4Address("192.0.2.99")), mod_revision=9)
    assert next_step(HELD, other, 1000.0, current=True, wanted=wanted) == Restore(other)


def test_a_write_whose_answer_was_lost_is_found_in_the_view() -> None:
    wanted = replace(LEASE, attrs=LeaseAttrs(IPv4Address("192.0.2.2")))
    shown = replace(wanted, mod_revision=9)
    step = next_step(HELD, shown, 1000.0, current=True, wanted=wanted)
    assert step == Written(shown)
    assert isinstance(step, Written)
    assert step.lease.mod_revision == 9


def test_it_is_contested_once_it_is_time_to_look_again_and_not_by_an_old_view() -> None:
    def step(now: float, *, current: bool) -> Step:
        return next_step(HELD, LEASE, now, current=current, second_look=1030.0)

    assert step(1000.0, current=True) == Wait(1030.0)
    assert step(1030.0, current=True) == Contest()
    assert step(1030.0, current=False) == Wait(1000.0 + PERIOD)
    assert next_step(HELD, None, 1030.0, current=True, second_look=1030.0) == Contest()


def test_a_reservation_is_adopted_and_never_ends() -> None:
    """What is renewed for it is the sign that its holder lives."""
    reserved = replace(LEASE, mod_revision=9, lease_id=0)
    assert next_step(HELD, reserved, 1000.0, current=True) == Adopt(reserved)
    assert next_step(replace(HELD, lease=reserved), reserved, 1000.0 + PERIOD, current=True) == Renew()
    assert remaining(replace(HELD, lease=reserved), 9e9) == float("inf")


def test_the_ttl_tells_who_is_alive() -> None:
    assert looks_alive(TTL - 30, TTL)
    assert not looks_alive(TTL - 600, TTL)
    assert remaining(HELD, 1000.0 + TTL) == 0
