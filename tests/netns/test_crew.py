"""Several data-plane processes for one device, against the real kernel: lanes, orders, and what a death does.

h1c1 -- h1 (2 workers, 8 lanes) -- core -- h2 (1 worker, 4 lanes) -- h2c1      (the hosts: tests/lab/__init__.py)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from flanneld_py.encap.datapath.control import messages
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through, throughput
from tests.netns.conftest import MakeLab
from tests.netns.test_datapath import links, until
from tests.netns.test_userspace import datapath_pids
from tests.netns.transfer import transfer
from tests.netns.userspace import DEVICE, Userspace, peer

pytestmark = pytest.mark.root


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(2, overlay="manual")


@pytest.fixture
def crew(lab: Lab) -> Iterator[Userspace]:
    """Host 1 with two workers."""
    one = Userspace(lab, 1)
    one.configuration = replace(one.configuration, workers=2)
    one.start()
    yield one
    one.hang_up()


@pytest.fixture
def other(lab: Lab) -> Iterator[Userspace]:
    """Host 2 with one."""
    other = Userspace(lab, 2)
    other.start()
    yield other
    other.hang_up()


def test_both_directions_are_carried_whole_by_all_of_them(lab: Lab, crew: Userspace, other: Userspace) -> None:
    a, b = lab.containers
    assert len(datapath_pids(crew.host)) == 3, "two members and who made them"
    for source, target in ((a, b), (b, a)):
        assert ping(source, target).loss == 0
        transfer(source, target, 24 << 20)
        assert throughput(source, target, streams=8) > 0
    until(lambda: totals(crew) == of_peers(crew), "the connections' last packets are counted in both")
    assert min(totals(crew)) > 100_000
    assert not [name for name in crew.status().counters if name.startswith(("in-", "out-"))]


def totals(one: Userspace) -> tuple[int, int]:
    counters = one.status().counters
    return counters["sent-bytes"], counters["received-bytes"]


def of_peers(one: Userspace) -> tuple[int, int]:
    traffic = one.ask(messages.AskTraffic(0))
    assert isinstance(traffic, messages.Traffic)
    (row,) = traffic.peers
    assert row.key == peer(one.others[0]).key
    return row.sent_bytes, row.received_bytes


def test_peers_come_and_go_in_all_members(lab: Lab, crew: Userspace, other: Userspace) -> None:
    source, target = lab.containers
    with ping_through(source, target) as stream:
        stream.wait_replies(5)
        assert crew.fill(map(peer, crew.others)) == messages.Done(1)
        stream.wait_replies(5)
        assert (passage := stream.stop()).received == passage.sent
    key = peer(other.own).key
    crew.tell(messages.Remove(key))
    assert crew.ask(messages.AskTraffic(0)) == messages.Traffic(0, ())
    assert crew.status().peers == 0
    for address in range(1, 9):  # Addresses enough for every lane.
        nobody = str(other.own.subnet.network_address + address)
        crew.host.namespace.run(["ping", "-c1", "-W0.1", nobody], check=False)
    assert crew.count("out-no-route") >= 8
    crew.tell(messages.Put((peer(other.own),)))
    assert crew.status().peers == 1
    assert ping(source, target).loss == 0


FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
    for number in range(int(sys.argv[2])):
        outlet.sendto(b"", (sys.argv[1], 1000 + number))
"""


def test_all_of_them_together_keep_the_limit_of_icmp_errors(crew: Userspace) -> None:
    key, base = peer(crew.others[0]).key, crew.others[0].subnet.network_address
    crew.tell(messages.Remove(key))
    assert crew.ask(messages.AskTraffic(0)) == messages.Traffic(0, ())
    began = time.monotonic()
    crew.host.namespace.run([sys.executable, "-c", FLOOD, str(base + 9), "600"])
    until(lambda: crew.count("out-no-route") == 600, "all are refused")
    answered = crew.count("out-no-route") - crew.count("out-icmp-rate")
    assert 25 <= answered <= 50 + 100 * (time.monotonic() - began)


def test_the_number_of_workers_is_fixed_while_it_runs(crew: Userspace) -> None:
    answer = crew.ask(replace(crew.configuration, workers=3))
    assert isinstance(answer, messages.Refused)
    assert answer.restart
    assert crew.ask(replace(crew.configuration, subnets=())) == messages.Done(1)


def test_the_death_of_a_member_ends_all_and_they_are_made_anew(lab: Lab, crew: Userspace, other: Userspace) -> None:
    maker = crew.status().pid
    members = set(datapath_pids(crew.host)) - {maker}
    os.kill(min(members), signal.SIGKILL)
    assert crew.hear() is None, "the end of the connection says that the device is gone"
    assert DEVICE not in links(crew)
    assert datapath_pids(crew.host) == [maker]
    crew.hang_up()
    crew.set_up()
    assert len(datapath_pids(crew.host)) == 3
    assert ping(*lab.containers).loss == 0


def test_members_end_with_who_made_them_even_if_they_hang(crew: Userspace) -> None:
    """Left behind they would keep device and port, and no new process could have them."""
    maker = crew.status().pid
    members = set(datapath_pids(crew.host)) - {maker}
    try:
        os.kill(min(members), signal.SIGSTOP)
        os.kill(maker, signal.SIGKILL)
        until(lambda: not datapath_pids(crew.host), "no process is left")
        until(lambda: DEVICE not in links(crew), "the device is gone")
    finally:
        for pid in members & set(datapath_pids(crew.host)):
            os.kill(pid, signal.SIGKILL)


def test_stop_ends_all_and_takes_the_device_away(crew: Userspace) -> None:
    crew.stop()
    until(lambda: not datapath_pids(crew.host), "no process is left")
    assert DEVICE not in links(crew)


def test_a_member_that_hangs_goes_with_the_others(crew: Userspace) -> None:
    """Left behind it would keep device and port, and no new process could have them."""
    maker = crew.status().pid
    hanging = next(pid for pid in datapath_pids(crew.host) if pid != maker)
    os.kill(hanging, signal.SIGSTOP)
    try:
        crew.stop()
        assert DEVICE not in links(crew), "the end of the connection says that the device is gone"
        assert hanging not in datapath_pids(crew.host)
    finally:
        if hanging in datapath_pids(crew.host):
            os.kill(hanging, signal.SIGKILL)
