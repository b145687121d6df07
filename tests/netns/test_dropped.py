"""What drops packets of ours in real packet filters is found, named, and passed once the operator does what it says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from flanneld_py.encap.firewall.dockerbridges import REMEDY
from flanneld_py.encap.firewall.enforce import Enforcer
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.tools import HostTools
from flanneld_py.encap.firewall.traffic import Obstacle
from tests.contract.kernel_host import entered, throwaway_namespace
from tests.patience import patient

pytestmark = pytest.mark.root

V4 = Policy(
    ip_network("10.42.0.0/16"),
    ip_network("10.42.5.0/24"),
    device="flannel.1",
    underlay="eth0",
    host=ip_address("192.0.2.1"),
    port=8472,
)
V6 = Policy(
    ip_network("fd42::/48"),
    ip_network("fd42:0:0:5::/64"),
    device="flannel-v6.1",
    underlay="eth0",
    host=ip_address("2001:db8::1"),
    port=8472,
)
HOST = """
for name in eth0 flannel.1 flannel-v6.1 cni0; do ip link add $name type bridge; ip link set $name up; done
ip addr add 192.0.2.1/24 dev eth0; ip addr add 10.42.5.1/24 dev cni0; ip route add 10.42.0.0/16 dev flannel.1
ip addr add 2001:db8::1/64 dev eth0 nodad; ip addr add fd42:0:0:5::1/64 dev cni0 nodad
"""


@pytest.fixture(autouse=True)
def _on_a_host() -> Iterator[None]:
    with throwaway_namespace() as name, entered(name):
        sh(HOST)
        yield


def sh(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=patient(30), check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"
    return done.stdout


def nft(family: str, hook: str, rules: str, policy: str = "accept", rest: str = "", name: str = "mine") -> str:
    body = f"chain way {{ type filter hook {hook} priority 0; policy {policy}; {rules}\n}}\n{rest}"
    return f"nft -f - <<'END'\ntable {family} {name} {{\n{body}\n}}\nEND\n"


async def named(*policies: Policy) -> tuple[Obstacle, ...]:
    enforcer = Enforcer(HostTools(), "auto", "", prefer_nft=False)
    choice = await enforcer.choose()
    assert choice is not None
    assert (await enforcer.enforce(choice, policies)).failures == ()
    return await enforcer.obstacles(policies)


DEBIAN = """
iif lo accept
ct state established,related accept
tcp dport { 22, 80, 443 } ct state new accept
icmpv6 type { nd-neighbor-solicit, nd-router-advert, nd-neighbor-advert } accept
counter drop
"""
JUMPS = """
map jumps { type ifname : verdict; elements = { "cni0" : jump in__cni0 } }
chain in__cni0 { ct state established,related counter accept
 iifname "cni0" counter accept
 counter drop
}
"""
PORT = "nft insert rule inet mine way iifname eth0 udp dport 8472 accept"
OUT = PORT.replace("iifname", "oifname")
EARLY = "nft insert rule netdev mine way udp dport 8472 accept"
FORWARD = "ip mine way ip saddr 10.42.0.0/16 accept"
DOCKERS = "ip daddr 10.42.5.2 iifname != cni0 drop"
LATE = "meta l4proto udp ip saddr 192.0.2.1 jump x"
UFW = """
iptables -P INPUT DROP
iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
for chain in not-local user-input; do iptables -N ufw-$chain; iptables -A INPUT -j ufw-$chain; done
iptables -A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
iptables -A ufw-not-local -m limit --limit 3/min -j LOG --log-prefix '[UFW BLOCK] '
iptables -A ufw-not-local -j DROP
"""
DROPS = [
    (nft("inet", "input", "udp dport 8472 drop"), "chain way: udp dport 8472 drop", PORT),
    (nft("inet", "input", DEBIAN), "inet mine, chain way: counter drop", PORT),
    (nft("inet", "input", "tcp dport 22 accept", "drop"), "its policy, drop", PORT),
    (nft("ip", "prerouting", DOCKERS, name="raw"), "Docker has one such", "iifname flannel.1 ip daddr 10.42.5.0/24"),
    (nft("ip", "forward", "oifname cni0 iifname != cni0 counter drop"), "counter drop", FORWARD),
    (nft("ip", "forward", "oifname vmap @jumps", rest=JUMPS, name="docker-bridges"), "in__cni0: counter drop", ""),
    (nft("inet", "postrouting", "ip daddr 10.0.0.0/8 oifname flannel.1 drop"), 'flannel.1" drop', "oifname flannel.1"),
    (nft("netdev", "ingress device eth0", "udp dport 8000-9000 drop"), "netdev mine", EARLY),
    (nft("inet", "output", LATE, rest="chain x { log\n drop\n}"), "chain x: drop", OUT),
    (
        "iptables -t raw -A PREROUTING -s 10.42.0.0/16 ! -i cni0 -j DROP",
        "iptables, table raw, chain PREROUTING: -A PREROUTING -s 10.42.0.0/16 ! -i cni0 -j DROP",
        "iptables -t raw -I PREROUTING -i flannel.1 -d 10.42.5.0/24 -j ACCEPT",
    ),
    (
        "iptables -t mangle -A FORWARD -o flannel.1 -j DROP",
        "iptables, table mangle, chain FORWARD: -A FORWARD -o flannel.1 -j DROP",
        "iptables -t mangle -I FORWARD -s 10.42.0.0/16 -j ACCEPT",
    ),
    (
        "iptables -A INPUT -p udp -m multiport --dports 53,8472 -j DROP",
        "iptables, table filter, chain INPUT",
        "iptables -I INPUT -i eth0 -p udp --dport 8472 -j ACCEPT",
    ),
    (UFW, "its policy, drop", "ufw allow proto udp to any port 8472"),
    ("iptables-legacy -A INPUT -p udp --dport 8472 -j DROP", "iptables-legacy, table filter", "iptables-legacy -I"),
    (
        "iptables-legacy -A FORWARD -d 10.42.5.0/24 -j REJECT; iptables -A FORWARD -i eth7",
        "-A FORWARD -d 10.42.5.0/24 -j REJECT",
        "iptables-legacy -I FORWARD",
    ),
]


@pytest.mark.parametrize(("script", "by", "do"), DROPS)
async def test_what_drops_is_named_and_passes_once_somebody_does_what_is_said(script: str, by: str, do: str) -> None:
    sh(script)
    found = await named(V4)
    assert len(found) == 1, found
    assert by in found[0].by
    if not do:
        assert found[0].do == REMEDY
        return
    assert do in found[0].do
    if not do.startswith("ufw"):
        sh(found[0].do)
        assert await named(V4) == ()


async def test_what_iptables_cannot_show_is_read_by_nft() -> None:
    sh("iptables -t mangle -A INPUT -i eth7; nft add rule ip mangle INPUT fib daddr type broadcast drop")
    assert await named(V4) == ()
    sh("nft add rule ip mangle INPUT udp dport { 53, 8472 } drop")
    (found,) = await named(V4)
    assert found.by == "nft, table ip mangle, chain INPUT: udp dport { 53, 8472 } drop"


BLOCKED = "set bad { type ipv4_addr; flags interval; elements = { 0.0.0.0/1 } }"
PASSES = [
    nft("inet", "input", "tcp dport 8472 drop; udp dport 8473 drop; ip saddr 203.0.113.7 udp dport 8472 drop"),
    nft("inet", "input", "ip saddr 192.0.2.0/24 udp dport 8472 accept\n udp dport 8472 drop", "drop"),
    nft("inet", "input", "iifname eth7 drop; ct state invalid drop; limit rate 9/second drop; meta mark 7 drop"),
    nft("inet", "input", "udp dport 8472 meta mark 7 accept", "drop"),
    nft("inet", "input", "ip saddr @good accept", "drop", "set good { type ipv4_addr; }"),
    nft("inet", "input", "ip saddr @bad drop", rest=BLOCKED),
    nft("inet", "forward", "ip daddr 10.42.5.7 drop; tcp dport 25 drop; oifname eth0 ip saddr 10.42.0.0/16 drop"),
    nft("ip6", "forward", "drop"),
    nft("ip", "forward", "iifname cni0 accept; ip daddr 10.42.5.0/24 iifname flannel.1 accept", "drop"),
    nft("ip", "forward", "oifname vmap @jumps", rest=JUMPS.replace("cni0", "br-7")),
    nft("netdev", "ingress device flannel-v6.1", "drop"),
    "iptables -A FORWARD -i eth7; iptables -t raw -A PREROUTING -d 10.42.5.2/32 ! -i cni0 -j DROP",
    "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP",
    "iptables -N X; iptables -A X -m set ! --match-set x src -j ACCEPT || :; iptables -A FORWARD -p tcp -j DROP",
    "iptables-legacy -P FORWARD DROP",
    # iptables-save shows these without the ports, without the address, and the map not at all.
    "iptables -A INPUT -i eth7; nft add rule ip filter INPUT udp dport { 53, 54 } drop",
    "iptables -A INPUT -i eth7; nft add rule ip filter INPUT ip daddr . iifname { 10.0.0.1 . eth0 } drop",
    "iptables -A INPUT -i eth7; nft add rule ip filter INPUT meta mark vmap { 7 : accept }; iptables -A INPUT -j DROP",
]


@pytest.mark.parametrize("script", PASSES)
async def test_what_may_let_our_packets_pass_is_not_named(script: str) -> None:
    sh(script)
    assert await named(V4) == ()


async def test_each_family_and_way_for_itself() -> None:
    sh(nft("ip6", "input", "udp dport 8472 drop"))
    sh("ip6tables -t mangle -A FORWARD -d fd42::/16 -j DROP")
    found = await named(V4, V6)
    assert [each.do.split(" ")[0] for each in found] == ["ip6tables", "nft"]
    for each in found:
        sh(each.do)
    assert await named(V4, V6) == ()
    # Without a tunnel there is no port to be dropped, and it is the underlay interface that containers' packets pass.
    direct = replace(V4, device=None, port=None, direct=frozenset((ip_address("192.0.2.7"),)))
    sh(nft("inet", "input", "udp dport 8472 drop") + "nft add table ip direct")
    sh(nft("ip", "forward", "iifname eth0 oifname cni0 drop", name="direct"))
    found = await named(direct)
    assert [each.by for each in found] == ['nft, table ip direct, chain way: iifname "eth0" oifname "cni0" drop']
    sh(found[0].do)
    assert await named(direct) == ()


async def test_an_answer_passes_where_answers_do() -> None:
    """Both ends of `udp` use one port: whoever sends first lets the other in."""
    sh(nft("inet", "input", "ct state established,related accept", "drop"))
    assert len(await named(V4)) == 1
    assert await named(replace(V4, answered=True)) == ()


FIREWALLD = """
nft -f - <<'END'
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES { iifname "eth0" goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_IN_public {
    jump filter_INPUT_POLICIES_pre
    jump filter_IN_public_allow
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_POLICIES_pre { icmpv6 type { nd-neighbor-advert, nd-redirect } accept
  }
  chain filter_IN_public_allow { tcp dport 22 accept
    ip6 daddr fe80::/64 udp dport 546 accept
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    reject with icmpx admin-prohibited
  }
}
END
"""


async def test_of_firewalld_its_own_words_are_told_until_its_zones_let_us_in() -> None:
    """As firewalld 2.3 writes it, but for chains that are empty."""
    sh(FIREWALLD)
    zone = "--zone=$(firewall-cmd --get-zone-of-interface=eth0)"
    reload = "&& firewall-cmd --reload"
    assert [each.do for each in await named(V4)] == [
        f"firewall-cmd --permanent {zone} --add-port=8472/udp {reload}",
        f"firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16 {reload}",
    ]
    sh("nft add rule inet firewalld filter_IN_public_allow udp dport 8472 accept")
    sh("nft insert rule inet firewalld filter_FORWARD ip saddr 10.42.0.0/16 accept")
    assert await named(V4) == ()
    # For the moment in which it loads its rules it has a table that drops, which is nobody's to write to.
    sh(nft("inet", "forward", "", "drop", name="firewalld_policy_drop"))
    assert await named(V4) == ()
