"""Agents whose packets go through the userspace data plane: among themselves, and with peers on kernel VXLAN.

h1c1 ── h1 (userspace) ──┐
h2c1 ── h2 (kernel)    ──┼── core: etcd      (the picture: tests/lab/__init__.py)
h3c1 ── h3 (userspace) ──┘
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.lab.agent import HEALTH_PORT
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import PREFIX, device, etcd, lease_key, nothing_lost, routes, subnet, until
from tests.netns.transfer import transfer

pytestmark = pytest.mark.root

USERSPACE = ("--datapath", "userspace")
KERNEL = ("--datapath", "kernel")
STREAM = 4 << 20
"""Bytes that show that a stream flows: one that stalls does not end in time."""


def datapath_pids(host: Host) -> list[int]:
    """The data-plane processes of a host."""
    found = host.namespace.run(["ip", "netns", "pids", host.namespace.name]).stdout.split()
    return [pid for pid in map(int, found) if b"flanneld_py.encap.datapath" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 -- short
            return file.read()
    except FileNotFoundError:
        return b""


def kind(host: Host) -> str:
    return str(device(host).get("linkinfo", {}).get("info_kind", ""))


@pytest.fixture
def mixed(make_lab: MakeLab) -> Lab:
    return make_lab(hosts=3, overlay="none").with_agents(USERSPACE, KERNEL, USERSPACE)


def test_every_pair_answers_whatever_carries_its_packets(mixed: Lab) -> None:
    assert [kind(host) for host in mixed.hosts] == ["tun", "vxlan", "tun"]
    assert device(mixed.hosts[0])["inet6_addr_gen_mode"] == "none"
    assert [ping(*pair, payload=1450 - 28).loss for pair in mixed.pairs()] == [0.0] * 6
    for pair in mixed.pairs():
        transfer(*pair, STREAM)


def shown(host: Host) -> dict[str, Any]:
    """What the agent says of itself."""
    document = json.loads(host.namespace.run(["curl", "-sf", f"http://127.0.0.1:{HEALTH_PORT}/status"]).stdout)
    assert isinstance(document, dict)
    return document


def test_the_status_shows_all_that_an_operator_asks(mixed: Lab) -> None:
    user, kernel = mixed.hosts[0], mixed.hosts[1]
    etcd(mixed).ctl("put", f"{PREFIX}/subnets/10.42.250.0-24", stdin=b"garbage")
    until(lambda: shown(user)["rejected_leases"], "the lease that is none")
    document = shown(user)
    (rejected,) = document["rejected_leases"]
    assert rejected["key"] == f"{PREFIX}/subnets/10.42.250.0-24"
    assert "JSON" in rejected["reason"]
    assert (document["subnet"], document["device"], document["backend"]) == (subnet(user), "flannel.1", "vxlan")
    assert (document["peers"], document["ready"], document["registry_connected"]) == (2, True, True)
    assert document["datapath"] == {"kind": "userspace", "reason": "--datapath userspace"}
    assert document["failing_entries"] == []
    process = document["userspace"]
    assert [process["pid"]] == datapath_pids(user)
    assert process["served"]
    assert process["segmentation"]
    assert process["coalescing"]
    assert {"csum", "tso4", "udp-segment", "udp-gro"} <= set(process["offloads"]["in_use"])
    assert process["totals"]["sent_packets"] > 0
    assert "out-no-route" not in process["drops_packets"], "the kernel sends nothing of its own"
    assert {peer["key"] for peer in process["peers"]} == {lease_key(subnet(host)) for host in mixed.hosts[1:]}
    assert all(peer["sent_packets"] and peer["received_bytes"] for peer in process["peers"])
    assert "offloads of the data plane in use" in user.agent.log.read_text()

    document = shown(kernel)
    assert document["datapath"] == {"kind": "kernel", "reason": "--datapath kernel"}
    assert document["userspace"] is None
    etcd(mixed).kill()
    until(lambda: not shown(kernel)["registry_connected"], "the registry is away")


def test_an_agent_that_is_killed_and_restarted_loses_no_packet(mixed: Lab) -> None:
    host = mixed.hosts[0]
    (before,) = datapath_pids(host)
    with ping_through(*mixed.pairs()[0]) as stream:
        stream.wait_replies(5)
        host.agent.kill()
        stream.wait_replies(20)
        host.agent.start(*USERSPACE)
        host.agent.wait_ready()
        nothing_lost(stream)
    assert datapath_pids(host) == [before]


def test_a_data_plane_that_dies_is_started_again(mixed: Lab) -> None:
    host = mixed.hosts[0]
    (before,) = datapath_pids(host)
    os.kill(before, signal.SIGKILL)
    until(lambda: datapath_pids(host) not in ([], [before]), "another process")
    until(lambda: len(routes(host)) == 2, "the device with its routes")
    assert mixed.wait_connected() == []


def test_switching_keeps_subnet_and_mac(mixed: Lab) -> None:
    host = mixed.hosts[1]
    before = subnet(host), device(host)["address"]
    for arguments, expected in ((USERSPACE, "tun"), (KERNEL, "vxlan")):
        assert host.agent.terminate() == 0
        host.agent.start(*arguments)
        host.agent.wait_ready()
        assert kind(host) == expected
        assert mixed.wait_connected() == []
    assert (subnet(host), device(host)["address"]) == before
    assert datapath_pids(host) == []


def test_it_is_ended_for_good_on_request(mixed: Lab) -> None:
    host = mixed.hosts[0]
    assert host.agent.terminate() == 0
    assert len(datapath_pids(host)) == 1
    done = host.namespace.run([*host.agent._argv, "--datapath-stop"], timeout=15)
    assert "stopped" in done.stderr
    until(lambda: datapath_pids(host) == [], "the process is gone")


def test_an_etcd_that_is_gone_or_empty_removes_no_peer(mixed: Lab) -> None:
    """Nor does an agent that was restarted meanwhile: only its data plane knows the peers then."""
    host, silent = mixed.hosts[0], mixed.hosts[2]
    silent.agent.kill()  # Its lease does not come back, its data plane goes on.
    own = lease_key(subnet(host))
    with ping_through(*mixed.pairs()[0]) as first, ping_through(*mixed.pairs()[1]) as second:
        etcd(mixed).kill()
        etcd(mixed).wipe()
        etcd(mixed).start()
        until(lambda: own in etcd(mixed).ctl("get", "--prefix", "--keys-only", PREFIX), "our lease is back", 60)
        first.wait_replies(50)
        second.wait_replies(50)
        host.agent.kill()
        etcd(mixed).ctl("del", "--prefix", PREFIX)
        etcd(mixed).ctl("put", f"{PREFIX}/config", mixed.plan.network_config())
        host.agent.start(*USERSPACE)
        host.agent.wait_ready()
        nothing_lost(first)
        nothing_lost(second)
