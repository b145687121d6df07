"""Others load their whole ruleset anew, without ours in it: firewalld, /etc/nftables.conf, iptables-restore.

    h1c1 ── h1 ──┐
    h2c1 ── h2 ──┴── core 172.30.0.1: outside

How long ours is away, and how long no ping passed, is printed (pytest -s), not judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import until
from tests.netns.test_firewall import KINDS, connected, masqueraded, sh

pytestmark = pytest.mark.root

FIREWALLD = """
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		jump filter_FORWARD_ZONES
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_ZONES {
		SOURCES
		goto filter_FWD_public
	}
	chain filter_FWD_trusted {
		accept
	}
	chain filter_FWD_public {
		reject with icmpx admin-prohibited
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
}
"""
"""firewalld's forward path, by zones: what comes from a source of the zone `trusted` passes, all else is rejected."""

TRUSTED = "ip saddr 10.42.0.0/16 goto filter_FWD_trusted"
"""What `firewall-cmd --zone=trusted --add-source=10.42.0.0/16` makes of it."""

ANEW = "table inet firewalld\ndelete table inet firewalld\n"


IPTABLES = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -i lo -j ACCEPT
-A FORWARD -j REJECT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
"""


def firewalld(host: Host, before: str = ANEW, *, trusted: bool = True) -> None:
    """Load its ruleset, in one transaction with what goes before."""
    host.namespace.run(["nft", "-f", "-"], stdin=before + FIREWALLD.replace("SOURCES", TRUSTED if trusted else ""))


def iptables(host: Host) -> None:
    """Load both tables anew."""
    host.namespace.run(["iptables-restore"], stdin=IPTABLES)


def masquerade(host: Host, kind: str) -> bool:
    """Whether our masquerade rules are in force."""
    show = "nft list table ip flanneld-py" if kind == "nftables" else "iptables -t nat -S POSTROUTING"
    said = host.namespace.run(["sh", "-c", show], check=False).stdout
    return ("masquerade" if kind == "nftables" else "-j FLANNEL-POSTRTG") in said


def reload(lab: Lab, load: Callable[[Host], None], complete: Callable[[Host], bool]) -> None:
    """Load rulesets on both hosts while a ping runs, until all is well again."""
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(3)
        for host in lab.hosts:
            load(host)
            began = time.monotonic()
            until(lambda host=host: complete(host), "ours is there again")  # type: ignore[misc]
            print(f"\n{host.name}: ours is there again after {time.monotonic() - began:.3f} s")
        stream.wait_replies(20)
        print(f"{stream.stop().longest_gap:.3f} s without a reply at most")
    assert lab.wait_connected() == []
    assert masqueraded(lab, lab.containers[0])


@KINDS
@pytest.mark.parametrize("before", ["flush ruleset\n", ANEW], ids=["all is flushed", "its own table is"])
def test_firewalld_with_the_network_in_a_zone_that_accepts(make_lab: MakeLab, kind: str, before: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)
    for host in lab.hosts:
        firewalld(host)
    reload(lab, lambda host: firewalld(host, before), lambda host: masquerade(host, kind))
    for host in lab.hosts:
        assert "dropped by others" not in host.agent.log_tail()


def test_firewalld_that_rejects_is_named_with_what_to_do(make_lab: MakeLab) -> None:
    lab = connected(make_lab)
    host = lab.hosts[1]
    firewalld(host, trusted=False)
    until(lambda: "--zone=trusted --add-source=10.42.0.0/16" in host.agent.log_tail(), "the advice")
    assert ping(*lab.pairs()[0], count=2, patience=0.3).received == 0
    firewalld(host)
    assert lab.wait_connected() == []


@KINDS
def test_iptables_tables_are_restored_without_ours(make_lab: MakeLab, kind: str) -> None:
    lab = connected(make_lab, "--ip-masq", "--firewall", kind)

    def complete(host: Host) -> bool:
        return masquerade(host, kind) and "-j FLANNEL-FWD" in sh(host, "iptables -S FORWARD")

    for host in lab.hosts:
        iptables(host)
        until(lambda host=host: complete(host), "iptables is in use")  # type: ignore[misc]
    reload(lab, iptables, complete)
