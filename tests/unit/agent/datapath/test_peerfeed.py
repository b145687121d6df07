"""Peers on their way to the userspace data plane: levels, and what stays while the registry is doubted."""

from __future__ import annotations

import pytest

from flanneld_py.agent.datapath.peerfeed import PeerFeed
from flanneld_py.encap.datapath.control.messages import Peer


def peer(number: int, address: int | None = None) -> Peer:
    return Peer(f"10.5.{number}.0-24", bytes([10, 5, number, 0]), 24, bytes([10, 0, 0, address or number]))


def gone(number: int) -> tuple[str, None]:
    return peer(number).key, None


class Process:
    """What the data plane makes of what it is told."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = {one.key: one for one in peers}

    def take_all(self, roster: PeerFeed) -> set[str]:
        if roster.complete:
            self.peers.clear()
        self.peers.update((one.key, one) for one in roster.all())
        return set(self.peers)

    def take_changes(self, roster: PeerFeed) -> set[str]:
        keys, peers = roster.changes()
        for key in keys:
            self.peers.pop(key, None)
        self.peers.update((one.key, one) for one in peers)
        return set(self.peers)


def keys(*numbers: int) -> set[str]:
    return {peer(number).key for number in numbers}


@pytest.fixture
def roster() -> PeerFeed:
    made = PeerFeed()
    made.update((peer(n).key, peer(n)) for n in (2, 3))
    return made


def test_changes_and_the_whole_come_to_the_same(roster: PeerFeed) -> None:
    process = Process()
    assert process.take_all(roster) == keys(2, 3)
    roster.update([gone(2), (peer(3).key, peer(3, 33)), (peer(4).key, peer(4)), gone(4), gone(9)])
    assert process.take_changes(roster) == keys(3)
    assert process.peers[peer(3).key] == peer(3, 33)
    assert roster.changes() == ([], [])
    assert roster.all() == [peer(3, 33)]


def test_held_peers_stay_until_the_release(roster: PeerFeed) -> None:
    process, another = Process(), Process()
    process.take_all(roster)
    assert roster.hold() == 2
    roster.update([gone(2), gone(3)])
    assert process.take_changes(roster) == keys(2, 3)
    assert another.take_all(roster) == keys(2, 3), "one that is started meanwhile gets them as well"
    roster.hold()
    roster.release()
    assert process.take_all(roster) == set()


def test_a_held_peer_that_came_back_is_an_ordinary_one(roster: PeerFeed) -> None:
    process = Process()
    process.take_all(roster)
    roster.hold()
    roster.update([gone(2), gone(3)])
    roster.update([(peer(2).key, peer(2))])
    roster.update([gone(2)])
    assert process.take_changes(roster) == keys(3)


def test_what_only_the_process_knows_is_held_too() -> None:
    roster, process = PeerFeed(), Process(peer(2), peer(3))
    roster.hold()
    roster.update([(peer(4).key, peer(4)), gone(3)])
    assert process.take_all(roster) == keys(2, 3, 4)
    assert process.take_changes(roster) == keys(2, 3, 4)
    roster.release()
    assert process.take_all(roster) == keys(4)
