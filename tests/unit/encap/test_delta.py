from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from flanneld_py.encap.delta import Tracker
from flanneld_py.encap.state import Address, Entry, Failure, FdbEntry, Key, Neighbour, Nexthop, Operation, Route, Verb

DEVICE = "flannel.1"


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def ip(number: int) -> bytes:
    return bytes([10, 5, number, 0])


def peer(number: int, vtep: int | None = None) -> tuple[Entry, ...]:
    at = mac(number if vtep is None else vtep)
    return (
        Route(DEVICE, ip(number), 24, ip(number)),
        Neighbour(DEVICE, ip(number), at),
        FdbEntry(DEVICE, at, bytes([192, 0, 2, number])),
        Nexthop(DEVICE, ip(number)),
    )


def everything(_: Entry) -> bool:
    return True


def nothing(_: Entry) -> bool:
    return False


def drain(tracker: Tracker, *, prune: bool = True) -> list[Operation]:
    """Apply all operations as a kernel without faults would."""
    done: list[Operation] = []
    while operations := tracker.take(3, prune=prune):
        tracker.done(operations, [])
        done += operations
    return done


def test_updates_go_from_the_device_outward_and_deletions_back() -> None:
    tracker = Tracker(everything)
    tracker.observe(peer(9))
    tracker.want("p", peer(1))
    tracker.want("own", (Address(DEVICE, ip(0), 32),))
    order = [(op.verb, op.entry.key[0]) for op in drain(tracker)]
    assert [kind for verb, kind in order if verb is Verb.ADD] == ["address", "fdb", "neighbour", "nexthop", "route"]
    assert [kind for verb, kind in order if verb is Verb.REMOVE] == ["route", "nexthop", "neighbour", "fdb"]
    assert order.index((Verb.ADD, "route")) < order.index((Verb.REMOVE, "route"))


def test_what_is_there_and_right_is_left_alone() -> None:
    tracker = Tracker(everything)
    tracker.want("p", peer(1))
    tracker.observe(peer(1))
    assert drain(tracker) == []


def test_a_wrong_value_is_replaced_not_removed_and_added() -> None:
    tracker = Tracker(everything)
    tracker.observe(peer(1, vtep=7))
    tracker.want("p", peer(1))
    operations = drain(tracker)
    assert Operation(Verb.REPLACE, Neighbour(DEVICE, ip(1), mac(1))) in operations
    assert [op for op in operations if op.verb is Verb.REMOVE] == [
        Operation(Verb.REMOVE, FdbEntry(DEVICE, mac(7), bytes([192, 0, 2, 1])))
    ]


def test_what_others_undo_is_told_once_and_what_is_put_off_waits() -> None:
    tracker = Tracker(everything)
    tracker.observe((*peer(2), FdbEntry(DEVICE, mac(9), bytes(4))))
    tracker.want("p", peer(1))
    tracker.want("q", peer(2))
    tracker.gone(peer(2)[1].key)
    drain(tracker)
    assert tracker.take_undone() == [], "it is done by now"
    _, neighbour, fdb, nexthop = peer(1)
    stranger = FdbEntry(DEVICE, mac(8), bytes(4))
    for _ in range(2):
        tracker.gone(fdb.key)
        tracker.gone(nexthop.key)
        tracker.observe((stranger,))
    assert tracker.take_undone() == [fdb, nexthop, stranger], "without the route, which only went with its nexthop"
    assert tracker.take_undone() == []
    tracker.put_off(fdb.key)
    tracker.put_off(stranger.key)
    tracker.gone(neighbour.key)
    tracker.gone(fdb.key)
    tracker.observe((stranger, neighbour))
    assert {op.entry.key[0] for op in drain(tracker)} == {"nexthop", "route"}
    assert tracker.waiting == {fdb.key, stranger.key}
    tracker.retry()
    assert drain(tracker) == [Operation(Verb.ADD, fdb), Operation(Verb.REMOVE, stranger)]
    tracker.gone(fdb.key)
    tracker.put_off(fdb.key)
    tracker.want("p", peer(1, vtep=7))
    tracker.want("p", peer(1))
    assert Operation(Verb.ADD, fdb) in drain(tracker), "another value that is wanted does not wait"


def test_nothing_is_deleted_without_prune() -> None:
    tracker = Tracker(everything)
    tracker.observe(peer(1))
    assert drain(tracker, prune=False) == []
    assert len(drain(tracker)) == 4


def test_foreign_entries_are_invisible_unless_at_a_key_that_we_want() -> None:
    tracker = Tracker(nothing)
    tracker.observe(peer(1))
    assert tracker.actual == {}
    tracker.want("p", peer(1))
    tracker.observe((Neighbour(DEVICE, ip(1), mac(5)),))
    assert Operation(Verb.REPLACE, Neighbour(DEVICE, ip(1), mac(1))) in drain(tracker)


def test_a_failed_entry_waits_for_retry_and_holds_up_nobody() -> None:
    tracker = Tracker(everything)
    tracker.want("a", peer(1))
    tracker.want("b", peer(2))
    operations = tracker.take(100, prune=True)
    bad = next(op for op in operations if op.entry == Neighbour(DEVICE, ip(1), mac(1)))
    tracker.done(operations, [Failure(bad, 22, "invalid")])
    assert list(tracker.refused) == [bad.entry.key]
    assert tracker.take(100, prune=True) == []
    tracker.retry()
    assert tracker.take(100, prune=True) == [bad]


def test_a_failed_entry_is_tried_again_at_once_when_it_changes() -> None:
    tracker = Tracker(everything)
    tracker.want("a", peer(1))
    operations = tracker.take(100, prune=True)
    tracker.done(operations, [Failure(op, 22, "invalid") for op in operations])
    tracker.want("a", peer(1, vtep=8))
    assert Neighbour(DEVICE, ip(1), mac(8)) in [op.entry for op in tracker.take(100, prune=True)]


def test_a_key_that_moved_to_another_group_survives_the_first_ones_end() -> None:
    tracker = Tracker(everything)
    tracker.want("a", peer(1, vtep=7))
    tracker.want("b", (FdbEntry(DEVICE, mac(7), bytes([192, 0, 2, 2])),))
    tracker.want("a", ())
    assert drain(tracker) == [Operation(Verb.ADD, FdbEntry(DEVICE, mac(7), bytes([192, 0, 2, 2])))]


def test_a_deleted_entry_comes_back_and_a_deleted_device_brings_back_everything() -> None:
    tracker = Tracker(everything)
    tracker.want("a", peer(1))
    drain(tracker)
    tracker.gone(("route", DEVICE, ip(1), 24))
    assert [op.entry for op in drain(tracker)] == [Route(DEVICE, ip(1), 24, ip(1))]
    tracker.forget(DEVICE)
    assert len(drain(tracker)) == 4


def test_a_deleted_nexthop_object_took_its_route_along() -> None:
    tracker = Tracker(everything)
    for number in (1, 2):
        tracker.want(f"peer{number}", peer(number))
    drain(tracker)
    tracker.gone(Nexthop(DEVICE, ip(2)).key)
    assert {op.entry for op in drain(tracker)} == {entry for entry in peer(2) if isinstance(entry, Nexthop | Route)}


def test_a_reading_shows_what_vanished_but_not_what_came_meanwhile() -> None:
    tracker = Tracker(everything)
    tracker.want("a", peer(1))
    tracker.want("b", peer(2))
    drain(tracker)
    tracker.begin_reading()
    tracker.observe(peer(1))
    tracker.observe((Nexthop(DEVICE, ip(2)),))
    tracker.end_reading()
    assert {op.entry for op in drain(tracker)} == set(peer(2)) - {Nexthop(DEVICE, ip(2))}


def test_held_entries_stay_until_released_or_wanted_again() -> None:
    tracker = Tracker(everything)
    tracker.want("own", (Address(DEVICE, ip(0), 32),))
    tracker.want("a", peer(1))
    tracker.want("b", peer(2))
    drain(tracker)
    assert tracker.hold() == 8
    tracker.want("a", ())
    tracker.want("b", ())
    assert drain(tracker) == []
    tracker.want("a", peer(1))
    tracker.want("a", ())
    assert {op.entry for op in drain(tracker)} == set(peer(1))
    tracker.release()
    assert {op.entry for op in drain(tracker)} == set(peer(2))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("end"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("meddle"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("put off"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(st.just("vanish"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("fail"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("read"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


# A route whose removal is refused goes with its nexthop object all the same.
@example([("want", 1, 1), ("fail", 3, 0), ("end", 1, 0), ("fail", 0, 0)])
@given(steps)
def test_any_history_ends_in_the_desired_state(history: list[tuple[str, int, int]]) -> None:
    """Whatever others do and whatever fails, after a clean pass kernel and desired state are equal."""
    tracker = Tracker(everything)
    kernel: dict[Key, Entry] = {}
    wanted: dict[str, tuple[Entry, ...]] = {}

    def remove(entry: Entry) -> None:
        kernel.pop(entry.key, None)
        if isinstance(entry, Nexthop):  # With it go its routes, in Linux too.
            for each in [each for each in kernel.values() if isinstance(each, Route)]:
                if (each.device, each.gateway) == (entry.device, entry.gateway):
                    del kernel[each.key]

    def work(failing: int = -1) -> None:
        while operations := tracker.take(3, prune=True):
            failures = [Failure(op, 1, "no") for index, op in enumerate(operations) if index == failing]
            for op in operations:
                if op not in [failure.operation for failure in failures]:
                    if op.verb is Verb.REMOVE:
                        remove(op.entry)
                    else:
                        kernel[op.entry.key] = op.entry
            tracker.done(operations, failures)

    for what, number, other in history:
        match what:
            case "want":
                wanted[str(number)] = peer(number, vtep=10 * number + other)
                tracker.want(str(number), wanted[str(number)])
            case "end":
                wanted.pop(str(number), None)
                tracker.want(str(number), ())
            case "meddle":
                changed = Neighbour(DEVICE, ip(number), mac(100 + other))
                kernel[changed.key] = changed
                tracker.observe((changed,))
            case "vanish":
                for entry in peer(number):
                    kernel.pop(entry.key, None)
                    tracker.gone(entry.key)
            case "put off":
                tracker.put_off(peer(number)[other % 4].key)
            case "fail":
                work(failing=number)
            case "read":
                tracker.begin_reading()
                tracker.observe(kernel.values())
                tracker.end_reading()
    tracker.retry()
    work()
    assert set(kernel.values()) == {entry for entries in wanted.values() for entry in entries}
