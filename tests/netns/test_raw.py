"""Drops in iptables' table raw as Docker 28 and later write them, on real hosts: the overlay passes, strangers do not.

    h1c1 ── h1 ──┐        each host: -d <container> ! -i cni0 -j DROP, for each of its containers
    h2c1 ── h2 ──┴── core: the stranger, on the underlay as the hosts are, with routes to the containers by their hosts

With real engines: test_docker.py.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.ipv6 import underlay6
from tests.netns.test_agent import lease_key, nothing_lost, until
from tests.netns.test_firewall import sh
from tests.netns.test_userspace import shown

pytestmark = pytest.mark.root

OURS = '-A PREROUTING -m comment --comment "flanneld-py raw" -j FLANNEL-RAW'


def drop(host: Host, container: Container, iptables: str = "iptables") -> str:
    """Append what Docker would for a container of a host, and return it as it is listed."""
    rule = f"-A PREROUTING -d {container.address}/32 ! -i cni0 -j DROP"
    sh(host, f"{iptables} -t raw {rule}")
    return rule


def prerouting(host: Host, iptables: str = "iptables") -> list[str]:
    return sh(host, f"{iptables} -t raw -S PREROUTING").splitlines()[1:]


def ours_first(host: Host, iptables: str = "iptables") -> bool:
    return prerouting(host, iptables)[:1] == [OURS]


def let_in(host: Host) -> set[str]:
    """Who is let through to a host's containers by the underlay interface."""
    rules = sh(host, "iptables -t raw -S FLANNEL-RAW").splitlines()
    return {rule.split()[3] for rule in rules if " -i eth0 " in rule}


def stranger_reaches(lab: Lab, container: Container, by: Host) -> bool:
    """Whether core reaches a container by way of a host."""
    lab.core.ip(f"route replace {container.address}/32 via {by.address}")
    return (
        lab.core.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", str(container.address)], check=False).returncode == 0
    )


def protected(lab: Lab, iptables: str = "iptables") -> Lab:
    """Let every host drop what does not come to its containers by their bridge."""
    assert lab.wait_connected() == []
    for host in lab.hosts:
        assert stranger_reaches(lab, host.containers[0], host)
        drop(host, host.containers[0], iptables)
        assert not stranger_reaches(lab, host.containers[0], host)
    return lab


def passes(lab: Lab) -> None:
    """Check who reaches whom."""
    assert lab.wait_connected() == []
    for host, container in zip(lab.hosts, reversed(lab.containers), strict=True):
        assert ping(host, container).loss == 0, "from the other host itself"
    for host in lab.hosts:
        assert not stranger_reaches(lab, host.containers[0], host)


BACKENDS: dict[str, dict[str, object]] = {
    "vxlan": {},
    "userspace": {"agent_args": ("--datapath", "userspace", "--firewall", "iptables")},
    "host-gw": {"backend": "host-gw"},
    "DirectRouting": {"backend_options": {"DirectRouting": True}},
}
IN_IPTABLES = ("--ip-masq", "--firewall", "iptables")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_overlay_passes_whatever_its_backend_is_and_strangers_do_not(make_lab: MakeLab, backend: str) -> None:
    passes(protected(make_lab(hosts=2, **{"agent_args": IN_IPTABLES, **BACKENDS[backend]})))


def test_what_somebody_flushed_is_back_before_the_next_drop(make_lab: MakeLab) -> None:
    lab = protected(make_lab(hosts=2, agent_args=IN_IPTABLES))
    host = lab.hosts[1]
    for damage in ("iptables -t raw -F", "iptables -t raw -F PREROUTING", "nft delete table ip raw"):
        sh(host, damage)
        rule = drop(host, host.containers[0])
        until(lambda: ours_first(host), damage)
        assert prerouting(host)[1:] == [rule]
        passes(lab)


def test_drops_that_were_first_are_second(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none")
    for host in lab.hosts:
        sh(host, "iptables -t raw -A PREROUTING -d 10.42.0.0/16 ! -i cni0 -j DROP")
        host.agent.start()
    for host in lab.hosts:
        host.agent.wait_ready()
        lab.attach(host)
    assert [len(prerouting(host)) for host in lab.hosts] == [1, 1], "nobody uses iptables here"
    for host in lab.hosts:
        sh(host, "iptables -P FORWARD DROP")
    until(lambda: all(map(ours_first, lab.hosts)), "ours, when iptables is in use")
    passes(lab)


def test_legacy_iptables(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, agent_args=("--iptables-resync", "1"))
    for host in lab.hosts:
        sh(host, "iptables-legacy -P FORWARD DROP")
    assert lab.wait_connected() == []
    assert not any("raw" in sh(host, "cat /proc/net/ip_tables_names").split() for host in lab.hosts)
    protected(lab, "iptables-legacy")
    until(lambda: all(ours_first(host, "iptables-legacy") for host in lab.hosts), "ours")
    passes(lab)


def test_without_forward_rules_nothing_is_let_through(make_lab: MakeLab) -> None:
    lab = protected(make_lab(hosts=2, agent_args=("--firewall", "iptables", "--iptables-forward-rules=false")))
    assert ping(*lab.pairs()[0], count=2, patience=0.3).received == 0
    assert all(len(prerouting(host)) == 1 for host in lab.hosts)


def test_both_families(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, overlay="none", config={**LEASED, "EnableIPv6": True, "IPv6Network": "fd42::/48"})
    underlay6(lab)
    for host in lab.hosts:
        sh(host, "ip6tables -P FORWARD DROP")
        host.agent.start("--firewall", "iptables")
    for host in lab.hosts:
        host.agent.wait_ready()
    until(lambda: all(ours_first(host, "ip6tables") for host in lab.hosts), "ours")
    for host in lab.hosts:
        own = host.agent.subnet_env()["FLANNEL_IPV6_SUBNET"]
        rules = sh(host, "ip6tables -t raw -S FLANNEL-RAW")
        assert own.replace("::1/64", "::/64") in rules, own
        assert "-i flannel-v6.1" in rules


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_hosts_without_a_tunnel_are_those_that_have_a_lease(make_lab: MakeLab, backend: str) -> None:
    options = {"DirectRouting": True} if backend == "vxlan" else {}
    args = ("--firewall", "iptables")
    lab = protected(make_lab(hosts=2, backend=backend, backend_options=options, agent_args=args))
    one, two = lab.hosts
    assert let_in(one) == {"10.42.0.0/16", f"{two.address}/32"}
    # Killed and started again under a stream from the other host, whose own address is in a rule.
    with ping_through(two, one.containers[0]) as stream:
        one.agent.kill()
        one.agent.start()
        one.agent.wait_ready()
        nothing_lost(stream)
    assert let_in(one) == {"10.42.0.0/16", f"{two.address}/32"}
    etcd, value = lab.etcd, {"PublicIP": "172.30.0.77", "BackendType": backend}
    assert etcd is not None
    if backend == "vxlan":
        value["BackendData"] = {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}  # type: ignore[assignment]
    etcd.ctl("put", lease_key("10.42.9.0/24"), json.dumps(value))
    until(lambda: "172.30.0.77/32" in let_in(one), "the one that came")
    etcd.ctl("del", lease_key("10.42.9.0/24"))
    until(lambda: let_in(one) == {"10.42.0.0/16", f"{two.address}/32"}, "it went")
    passes(lab)
    if backend == "vxlan":
        lab.core.write_sysctl("net.ipv4.ip_forward", "1")
        for host, other in ((one, two), (two, one)):
            host.namespace.ip(f"route add {other.address} via {lab.plan.gateway}")
        until(lambda: let_in(one) == set(), "nobody comes without a tunnel")
        passes(lab)


DOCKER_29 = """
nft -f - <<'END'
table ip docker-bridges {{
  chain raw-PREROUTING {{ type filter hook prerouting priority raw; {direct} }}
  chain filter-FORWARD {{ type filter hook forward priority filter; oifname cni0 jump filter-forward-in__cni0; }}
  chain filter-forward-in__cni0 {{
    ct state established,related counter accept
    {mark}
    iifname cni0 counter accept comment "ICC"
    counter drop comment "UNPUBLISHED PORT DROP"
  }}
}}
END
"""
DIRECT = 'ip daddr {address} iifname != cni0 counter drop comment "DROP DIRECT ACCESS";'
MARK = 'meta mark & 0x100000 == 0x100000 counter accept comment "ALLOW FW MARK"'


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_docker_29_with_its_nftables_backend(make_lab: MakeLab, backend: str) -> None:
    """The rules are its own, the engine is not to be had here. What it is set to decides; what it lacks is named."""
    lab = make_lab(hosts=2, backend=backend)
    assert lab.wait_connected() == []
    for host in lab.hosts:
        drop_direct = DIRECT.format(address=host.containers[0].address)
        sh(host, DOCKER_29.format(direct=drop_direct, mark=""))
    until(lambda: all(shown(host)["firewall"]["dropped_by_others"] for host in lab.hosts), "it is named")
    assert "bridge-accept-fwmark" in lab.hosts[0].agent.log_tail()
    assert ping(*lab.pairs()[0], count=2, patience=0.3).received == 0
    for host in lab.hosts:
        sh(host, "nft delete table ip docker-bridges; " + DOCKER_29.format(direct="", mark=MARK))
    until(lambda: not any(shown(host)["firewall"]["dropped_by_others"] for host in lab.hosts), "it is mended")
    passes(lab)
    sh(lab.hosts[1], "nft flush table ip flanneld-py")
    passes(lab)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_no_way_through_one_host_to_anothers_containers(make_lab: MakeLab, backend: str) -> None:
    lab = protected(make_lab(hosts=2, backend=backend, agent_args=IN_IPTABLES))
    one, two = lab.hosts
    assert stranger_reaches(lab, two.containers[0], one), "as with flannel"
    for kind in ("iptables", "nftables"):
        for host in lab.hosts:
            host.agent.terminate()
            host.agent.start("--firewall", kind, "--forward-own-only")
        for host in lab.hosts:
            host.agent.wait_ready()
        until(lambda: not stranger_reaches(lab, two.containers[0], one), "closed")
        passes(lab)


REFUSES = """#!/bin/sh
script=$(cat)
case "$script" in *'*raw'*) [ ! -e {folder}/refuses ] || {{ echo "no raw" >&2; exit 1; }} ;; esac
echo "$script" | exec {tool} "$@"
"""


def test_a_raw_table_that_cannot_be_written_is_named_and_all_else_works(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none", agent_args=("--firewall", "iptables", "--ip-masq"))
    host, name = lab.hosts[0], "iptables-restore"
    (host.directory / "refuses").touch()
    tool = host.directory / name
    tool.write_text(REFUSES.format(folder=host.directory, tool=shutil.which(name)))
    tool.chmod(0o755)
    host.agent.start(env={"PATH": f"{host.directory}:{os.environ['PATH']}"})
    host.agent.wait_ready()
    until(lambda: shown(host)["firewall"]["in_force"], "all else")
    assert [reason.rpartition(": ")[2] for reason in shown(host)["firewall"]["raw_table"]] == ["no raw"]
    assert host.agent.log_tail().count("iptables' raw table is left as it is; everything else goes on") == 1
    assert "-A FLANNEL-FWD" in sh(host, "iptables-save")
    (host.directory / "refuses").unlink()
    sh(host, "iptables -t raw -A PREROUTING -i eth7")
    until(lambda: shown(host)["firewall"]["raw_table"] == [], "it is mended at the next look")
    assert OURS in prerouting(host)
