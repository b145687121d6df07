from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from flanneld_py.registry.model import Delta, Lease, LeaseAttrs, Page, Rejected, Subnets
from flanneld_py.registry.view import LeaseView


def lease(number: int, revision: int, public_ip: int = 0) -> Lease:
    attrs = LeaseAttrs(IPv4Address(f"192.0.2.{public_ip or number}"), backend_type="vxlan")
    return Lease(Subnets(IPv4Network(f"10.5.{number}.0/24")), attrs, 1, revision)


def listed(*numbers: int, revision: int = 10) -> LeaseView:
    view = LeaseView()
    view.begin_listing()
    view.page(Page({f"k{number}": lease(number, number) for number in numbers}, revision))
    view.end_listing()
    view.take_changed("test")
    return view


def test_a_listing_is_in_force_only_when_it_is_complete() -> None:
    view = LeaseView()
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1)}, 5))
    assert not view.synced
    view.page(Page({"k2": lease(2, 2)}, 5))
    view.end_listing()
    assert view.synced
    assert view.take_changed("test") == ["k1", "k2"]
    assert view.take_changed("test") == []


def test_an_empty_delta_changes_nothing() -> None:
    """Flannel's fault A: an empty result was taken for an empty snapshot."""
    view = listed(1, 2)
    view.delta(Delta((), 20))
    assert list(view.records) == ["k1", "k2"]
    assert not view.take_changed("test")
    assert view.doubts == 0
    assert view.revision == 20


def test_a_garbled_record_is_noted_and_takes_nobody_away() -> None:
    """Flannel's fault A: one key that is no lease withdrew every peer."""
    view = listed(1, 2)
    view.delta(Delta((("k/foo", Rejected("no subnet in its name", 21)), ("k1", Rejected("not JSON", 22))), 22))
    assert view.leases() == {"k1": lease(1, 1), "k2": lease(2, 2)}, "k1 keeps its last readable lease"
    assert view.unreadable == {"k/foo": Rejected("no subnet in its name"), "k1": Rejected("not JSON")}
    assert view.written("k1") == Rejected("not JSON")
    view.delta(Delta((("k1", lease(1, 23, public_ip=9)), ("k/foo", None)), 23))
    assert view.unreadable == {}
    assert view.leases()["k1"].attrs.public_ip == IPv4Address("192.0.2.9")


def test_a_second_listing_finds_what_changed_meanwhile() -> None:
    """Flannel's fault C: the comparison saw subnets only, and missed a new MAC or address."""
    view = listed(1, 2, 3)
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1), "k2": lease(2, 30, public_ip=77)}, 30))
    view.end_listing()
    assert sorted(view.take_changed("test")) == ["k2", "k3"]
    assert "k3" not in view.records
    assert view.leases()["k2"].attrs.public_ip == IPv4Address("192.0.2.77")


def test_a_broken_listing_takes_nothing_away() -> None:
    view = listed(1, 2)
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1)}, 30))
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1), "k2": lease(2, 2)}, 31))
    view.end_listing()
    assert view.take_changed("test") == []


def test_a_registry_that_turns_up_empty_is_noticed() -> None:
    view = listed(1, 2)
    view.delta(Delta((("k1", None), ("k2", None)), 30))
    assert view.doubts == 1
    assert listed().doubts == 1
    assert listed(1).doubts == 0


def test_what_a_watch_tells_during_a_listing_is_newer_than_the_listing() -> None:
    """The keeper lists while the follower watches: a page is as old as its first one."""
    view = listed(1, 2, revision=10)
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1)}, 11))
    view.delta(Delta((("k3", lease(3, 12)), ("k2", None), ("k1", lease(1, 13, public_ip=77))), 13))
    view.page(Page({"k2": lease(2, 2), "k1": lease(1, 1)}, 11))
    view.end_listing()
    assert sorted(view.records) == ["k1", "k3"]
    assert view.leases()["k1"].attrs.public_ip == IPv4Address("192.0.2.77")
    assert view.revision == 13
    assert view.generation == 0


def test_a_listing_that_breaks_does_not_move_the_revision() -> None:
    """Else a watch resumed from it would miss what the missing pages had to say."""
    view = listed(1, revision=10)
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1)}, 30))
    assert view.revision == 10


def test_a_store_that_begins_anew_is_noticed() -> None:
    view = listed(1, revision=10)
    view.begin_listing()
    view.page(Page({"k1": lease(1, 3)}, 4))
    view.end_listing()
    assert (view.generation, view.doubts) == (1, 1)
    assert view.revision == 4


def test_a_replaced_store_with_the_same_revisions_is_compared_all_the_same() -> None:
    view = listed(1, revision=10)
    view.distrust()
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1, public_ip=77)}, 10))
    view.end_listing()
    assert view.take_changed("test") == ["k1"]
    assert (view.generation, view.doubts) == (1, 1)


def test_what_is_there_in_a_store_that_is_doubtful_counts_as_told_anew() -> None:
    """Else what is held because it may be missing would be held although it is there."""
    view = listed(1, 2, revision=10)
    view.distrust()
    view.begin_listing()
    view.page(Page({"k1": lease(1, 1), "k2": lease(2, 2)}, 10))
    view.end_listing()
    assert sorted(view.take_changed("test")) == ["k1", "k2"]
    assert view.take_changed("test") == []
