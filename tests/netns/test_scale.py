"""One real host among many peers that exist only as leases: nothing is missed, however they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.cluster import Cluster, cluster
from tests.bench.figures import Daemon
from tests.bench.peers import Peer
from tests.lab.agent import Agent
from tests.lab.lab import DEFAULT_FLANNELD
from tests.patience import within

pytestmark = pytest.mark.root

PEERS = 2000


@pytest.fixture
def many() -> Iterator[Cluster]:
    with cluster(PEERS) as made:
        yield made


def start(many: Cluster) -> Agent:
    agent = many.agent(Daemon("flanneld-py", Path(DEFAULT_FLANNELD)))
    agent.start()
    return agent


def test_every_peer_is_there_when_it_says_ready(many: Cluster) -> None:
    start(many).wait_ready()
    assert many.complete(PEERS)


def test_of_many_that_join_at_once_none_is_missed(many: Cluster) -> None:
    """Flannel v0.20.2 took only the first event of each watch response, and lost hundreds of a thousand."""
    agent = start(many)
    many.gateway.put_all([Peer(PEERS + number) for number in range(500)])  # While it starts,
    agent.wait_ready()
    many.gateway.put_all([Peer(PEERS + number) for number in range(500, 1000)])  # in transactions,
    for number in range(1000, 1200):  # and one by one.
        many.gateway.put(Peer(PEERS + number))
    many.wait_programmed(PEERS + 1200)
    assert many.complete(PEERS + 1200)


def test_killed_in_the_middle_of_its_work_the_next_one_finishes_it(many: Cluster) -> None:
    first = start(many)
    deadline = within(20)
    while many.programmed() <= 0:  # The first routes are there: most are not.
        assert time.monotonic() < deadline
    first.kill()
    start(many).wait_ready()
    assert many.complete(PEERS)


def test_a_deleted_device_comes_back_with_thousands_of_peers_and_a_short_log(many: Cluster) -> None:
    agent = start(many)
    agent.wait_ready()
    many.bare()
    many.wait_programmed(PEERS)
    deadline = within(5)
    while not many.complete(PEERS):
        assert time.monotonic() < deadline
    assert len(agent.log.read_text().splitlines()) < 30
