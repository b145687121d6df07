"""Hosts that are themselves inside Network, beside what is leased, as in flannel's own example of a config.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┴── core: etcd      (the picture: tests/lab/__init__.py)
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.test_leftovers import restart
from tests.netns.test_underlay import stop_datapath, until

pytestmark = pytest.mark.root

CONFIG = {"Network": "172.16.0.0/12", "SubnetMin": "172.20.1.0", "SubnetMax": "172.20.200.0"}

HEAR = "import socket; s = socket.socket(2, 2); s.bind(('', 7777)); print('up', flush=True); print(s.recvfrom(9)[1][1])"
SAY = "import socket; s = socket.socket(2, 2); s.bind(('', 5555)); s.sendto(b'port?', ('{}', 7777))"


def port_seen(lab: Lab) -> int:
    """Send a datagram from one host's port 5555 to the other host; return the port that this one sees."""
    one, two = lab.hosts
    with two.namespace.popen([sys.executable, "-c", HEAR], stdout=-1) as hearer:
        try:
            assert hearer.stdout is not None
            hearer.stdout.readline()
            one.namespace.run([sys.executable, "-c", SAY.format(two.address)])
            return int(hearer.stdout.readline())
        finally:
            hearer.kill()


def tables(host: Host) -> list[str]:
    return host.namespace.run(["nft", "list", "tables"]).stdout.splitlines()


def test_every_backend_works_and_the_hosts_own_packets_are_not_masqueraded(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none", config=CONFIG)
    assert lab.hosts[0].address in lab.plan.underlay
    with ExitStack() as stops:
        for host in lab.hosts:
            stops.callback(stop_datapath, host)
        lab.with_agents(*[("--ip-masq",)] * 2)
        for backend in ({"Type": "vxlan"}, {"Type": "host-gw"}, {"Type": "udp"}):
            if backend["Type"] != "vxlan":
                restart(lab, **CONFIG, Backend=backend)
                assert lab.wait_connected() == [], backend
            # By another port the tunnel's own packets would leave, too: some network cards then get checksums wrong.
            assert port_seen(lab) == 5555
        for host in lab.hosts:
            until(lambda host=host: tables(host) == ["table ip flanneld-py-flannel0"], "the former rules are gone")  # type: ignore[misc]
        assert not any("inside" in host.agent.log_tail(1000) for host in lab.hosts)
