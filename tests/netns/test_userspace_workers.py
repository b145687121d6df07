"""Agents whose packets are carried by several processes: `--datapath-workers`.

h1c1 ── h1 (userspace, 2 workers) ──┐
h2c1 ── h2 (kernel)               ──┼── core: etcd      (the picture: tests/lab/__init__.py)
h3c1 ── h3 (userspace, 2 workers) ──┘
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through, throughput
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import nothing_lost, until
from tests.netns.test_userspace import KERNEL, USERSPACE, datapath_pids, shown
from tests.netns.transfer import transfer

pytestmark = pytest.mark.root


def workers(number: int) -> tuple[str, ...]:
    return (*USERSPACE, "--datapath-workers", str(number))


def replaced(host: Host, before: set[int]) -> bool:
    return not before & set(datapath_pids(host))


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(hosts=3, overlay="none").with_agents(workers(2), KERNEL, workers(2))


def test_every_pair_answers_and_nothing_is_lost_on_the_way(lab: Lab) -> None:
    assert [ping(*pair, payload=1450 - 28).loss for pair in lab.pairs()] == [0.0] * 6
    for pair in lab.pairs():
        transfer(*pair, 8 << 20)
    assert throughput(lab.containers[0], lab.containers[2], streams=4) > 0
    for host in (lab.hosts[0], lab.hosts[2]):
        process = shown(host)["userspace"]
        assert process["workers"] == 2
        assert len(process["peers"]) == 2
        assert process["pid"] in datapath_pids(host)
        assert len(datapath_pids(host)) == 3, "two, and who made them"


def test_an_agent_that_is_killed_and_restarted_loses_no_packet(lab: Lab) -> None:
    host = lab.hosts[0]
    before = datapath_pids(host)
    with ping_through(*lab.pairs()[0]) as one, ping_through(*lab.pairs()[1]) as other:
        one.wait_replies(5)
        host.agent.kill()
        one.wait_replies(20)
        host.agent.start(*workers(2))
        host.agent.wait_ready()
        nothing_lost(one)
        nothing_lost(other)
    assert datapath_pids(host) == before


def test_another_number_replaces_the_process_at_the_agents_restart(lab: Lab) -> None:
    host = lab.hosts[0]
    for number in (3, 1, 2):
        before = set(datapath_pids(host))
        assert host.agent.terminate() == 0
        host.agent.start(*workers(number))
        host.agent.wait_ready()
        assert shown(host)["userspace"]["workers"] == number
        until(partial(replaced, host, before), "the former are gone")
        assert lab.wait_connected() == []
    assert "the data-plane process is replaced" in host.agent.log.read_text()


def test_all_are_ended_for_good_on_request(lab: Lab) -> None:
    host = lab.hosts[0]
    assert host.agent.terminate() == 0
    host.namespace.run([*host.agent._argv, "--datapath-stop"], timeout=15)
    until(lambda: datapath_pids(host) == [], "the processes are gone")
