"""The agent of a userspace host is killed, and the data plane itself, under running traffic.

h1c1 ── h1 (userspace) ──┐
h2c1 ── h2 (userspace) ──┴── core: etcd      (the picture: tests/lab/__init__.py)
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.lab.lab import Lab
from tests.lab.measure import ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import nothing_lost, until
from tests.netns.test_userspace import USERSPACE, datapath_pids
from tests.netns.transfer import CHUNK, stream

pytestmark = pytest.mark.root


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(hosts=2, overlay="none").with_agents(USERSPACE, USERSPACE)


def test_a_tcp_connection_does_not_notice_that_the_agents_are_killed(lab: Lab) -> None:
    before = [datapath_pids(host) for host in lab.hosts]
    with stream(*lab.pairs()[0]) as one, stream(*lab.pairs()[1], port=7001) as other:
        one.wait_more(2)
        for host in lab.hosts:
            host.agent.kill()
        one.wait_more(2)
        for host in lab.hosts:
            host.agent.start(*USERSPACE)
        for host in lab.hosts:
            host.agent.wait_ready()
        one.wait_more(2)
        assert one.finish() > 6 * CHUNK
        other.finish()
    assert [datapath_pids(host) for host in lab.hosts] == before


def test_no_ping_is_lost_while_both_agents_are_killed_again_and_again(lab: Lab) -> None:
    with ping_through(*lab.pairs()[0]) as replies:
        for _ in range(3):
            replies.wait_replies(5)
            for host in lab.hosts:
                host.agent.kill()
            replies.wait_replies(5)
            for host in lab.hosts:
                host.agent.start(*USERSPACE)
            for host in lab.hosts:
                host.agent.wait_ready()
        nothing_lost(replies)


def test_a_tcp_connection_survives_the_death_of_the_data_plane(lab: Lab) -> None:
    host = lab.hosts[0]
    (before,) = datapath_pids(host)
    with stream(*lab.pairs()[0]) as one:
        one.wait_more(2)
        os.kill(before, signal.SIGKILL)
        until(lambda: datapath_pids(host) not in ([], [before]), "another process")
        one.wait_more(4)
        one.finish()
