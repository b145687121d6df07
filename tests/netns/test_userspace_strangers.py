"""Forged datagrams against the userspace data plane: each is dropped and counted under its reason, none gets anywhere.

h1c1 ── h1 (TUN, attacked) ──┐
        h2 (VXLAN, forges) ──┼── core (unknown, forges)      (the picture: tests/lab/__init__.py)

Every forgery comes alone, several times, and as a train of equal ones in one UDP_SEGMENT send, which UDP_GRO hands over
in one piece as a NIC's would.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network, ip_address

import pytest

from flanneld_py.encap.datapath.control import messages
from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.lab.namespace import Namespace
from tests.lab.processes import start_time
from tests.netns import forgery
from tests.netns.conftest import MakeLab
from tests.netns.userspace import DEVICE, PORT, End, Userspace, ends, peer
from tests.netns.wiretap import Wiretap, wiretap

pytestmark = pytest.mark.root

THIRD = End(ip_address("172.30.0.77"), "06:00:ac:1e:00:4d", IPv4Network("10.42.3.0/24"))
ALONE, TRAIN, BIG = 3, 5, 10_000

INJECT = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.bind((sys.argv[1], 0))
    out.connect((sys.argv[2], int(sys.argv[3])))
    for line in sys.stdin:
        data, size = bytes.fromhex(line.partition(" ")[2]), int(line.partition(" ")[0])
        out.sendmsg([data], [(socket.IPPROTO_UDP, 103, size.to_bytes(2, sys.byteorder))] if size else [])
"""


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(2, overlay="manual")


class Victim:
    """Host 1, what it counts, and who listens in it."""

    def __init__(self, lab: Lab, plane: Userspace, taps: Sequence[Wiretap]) -> None:
        self.own, self.peer = ends(lab)
        self.bare = plane.configuration.mode is messages.Mode.RAW
        self.plane = plane
        self._lab = lab
        self._taps = taps

    def receive(self, datagrams: Sequence[bytes], *, train: bool = False, stranger: str = "") -> Counter[str]:
        """Send datagrams, one by one or as trains of equal ones; return what of them was counted, by reason."""
        before = self._counted()
        lines = [f"0 {data.hex()}" for data in datagrams]
        if train:
            lines = [f"{len(datagrams[0])} {b''.join(datagrams).hex()}"]
        self._inject(lines, stranger)
        self.let_honest_one_pass()
        return self._counted() - before

    def let_honest_one_pass(self) -> None:
        """Send a datagram that passes; when it has, all before it has been dealt with."""
        header, inner = forgery.honest(self.own, self.peer)
        self._inject([f"0 {((b'' if self.bare else header) + inner).hex()}"], "")
        for tap in self._taps:
            tap.wait_wanted()

    def _counted(self) -> Counter[str]:
        return Counter({name: n for name, n in self.plane.status().counters.items() if name.startswith("in-")})

    def _inject(self, lines: Sequence[str], stranger: str) -> None:
        namespace: Namespace = (
            self._lab.core if stranger == str(self._lab.plan.gateway) else self._lab.hosts[1].namespace
        )
        source = stranger or str(self.peer.underlay)
        command = [sys.executable, "-c", INJECT, source, str(self.own.underlay), str(PORT)]
        namespace.run(command, stdin="\n".join(lines))


MakeVictim = Callable[[messages.Mode], Victim]


@pytest.fixture
def victim(lab: Lab) -> Iterator[MakeVictim]:
    with ExitStack() as stack:

        def make(mode: messages.Mode) -> Victim:
            plane = Userspace(lab, 1, mode)
            stack.callback(plane.hang_up)
            plane.start()
            assert plane.fill([*map(peer, plane.others), peer(THIRD)]) == messages.Done(2)
            places = ((plane.host.namespace, DEVICE), (lab.containers[0].namespace, "eth0"))
            taps = [stack.enter_context(wiretap(*place, forgery.FORGED, forgery.HONEST)) for place in places]
            return Victim(lab, plane, taps)

        yield make


def nobody_saw_anything(target: Victim) -> bool:
    return [tap.unwanted() for tap in target._taps] == [0, 0]


@pytest.mark.parametrize("mode", messages.Mode)
def test_what_a_peer_may_not_send_is_counted_and_dropped(victim: MakeVictim, mode: messages.Mode) -> None:
    target = victim(mode)
    wrong = {}
    for each in forgery.from_a_peer(target.own, target.peer, THIRD):
        if target.bare and not each.bare:
            continue
        data = each.inner if target.bare else each.header + each.inner
        expected = Counter({each.counter: ALONE})
        counted = target.receive([data] * ALONE)
        if 0 < len(data) < BIG:
            expected[each.counter] += TRAIN
            counted += target.receive([data] * TRAIN, train=True)
        if counted != expected:
            wrong[each.what] = dict(counted), dict(expected)
    assert not wrong
    assert nobody_saw_anything(target)


@pytest.mark.parametrize("mode", messages.Mode)
def test_whoever_is_no_peer_gets_nothing_through(lab: Lab, victim: MakeVictim, mode: messages.Mode) -> None:
    target = victim(mode)
    lab.hosts[1].namespace.ip("addr add 172.30.0.99/32 dev eth0")  # a peer's other address is a stranger's
    header, inner = forgery.honest(target.own, target.peer, forgery.FORGED)
    data = inner if target.bare else header + inner
    for stranger in (str(lab.plan.gateway), "172.30.0.99"):
        for train in (False, True):
            counted = target.receive([data] * TRAIN, train=train, stranger=stranger)
            assert counted == {"in-unknown-peer": TRAIN}
    assert nobody_saw_anything(target)


@pytest.mark.parametrize("reason", ["in-source", "in-destination", "in-vni", "in-mac", "in-ethertype"])
def test_nothing_forged_rides_with_the_honest(victim: MakeVictim, reason: str) -> None:
    """One stream in one UDP_SEGMENT send: what is merged must not be judged by its first datagram alone."""
    target = victim(messages.Mode.VXLAN)
    datagrams = forgery.train(target.own, target.peer, THIRD, reason)
    before = target.plane.count("received-bytes")
    assert target.receive(datagrams, train=True) == {reason: 4}
    assert target.plane.count("received-bytes") > before
    assert nobody_saw_anything(target)


@pytest.mark.parametrize("mode", messages.Mode)
def test_garbage_does_not_end_it(lab: Lab, victim: MakeVictim, mode: messages.Mode) -> None:
    target = victim(mode)
    pid = target.plane.status().pid
    datagrams = forgery.garbage(500)
    assert target.receive(datagrams).total() == 500
    cut = [data.ljust(60)[:60] for data in datagrams[:60]]
    assert target.receive(cut, train=True).total() == 60
    assert nobody_saw_anything(target)
    assert target.plane.status().pid == pid
    assert start_time(pid) is not None
    if mode is messages.Mode.VXLAN:
        assert ping(lab.containers[0], lab.containers[1]).loss == 0
