"""Which rules are blamed: only those that drop each packet of a kind, whatever the rest of the rules does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.family import IPAddress
from flanneld_py.encap.firewall import nftjson, saverules
from flanneld_py.encap.firewall.chains import read_save
from flanneld_py.encap.firewall.drops import Drop, Kind, drops
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.ruleset import (
    Addresses,
    Base,
    By,
    Condition,
    Filter,
    Interfaces,
    Of,
    Ports,
    Rule,
    Side,
    Verdict,
    Words,
)
from flanneld_py.encap.firewall.traffic import Place, kinds

POLICY = Policy(
    ip_network("10.42.0.0/16"),
    ip_network("10.42.5.0/24"),
    device="flannel.1",
    underlay="eth0",
    host=ip_address("192.0.2.1"),
    port=8472,
)
OURS = kinds(POLICY, "cni0")


# Any rules at all: who is blamed is guilty

INTERFACES = ("eth0", "flannel.1", "cni0")
HOSTS = [ip_address(address) for address in ("10.42.5.2", "10.42.5.3", "10.42.9.9", "10.9.9.9", "192.0.2.1")]
NETWORKS = [ip_network(net) for net in ("10.42.5.2/32", "10.42.5.0/24", "10.42.0.0/16", "10.0.0.0/8", "0.0.0.0/0")]
STATES = ("new", "established")


@dataclass(frozen=True)
class Packet:
    came_by: str
    leaves_by: str
    source: IPAddress
    destination: IPAddress
    port: int
    state: str
    chance: int
    """What decides conditions that nobody understands."""


def asked(rng: Random) -> Condition:
    asks = rng.choice(
        (
            Interfaces(rng.choice(list(By)), frozenset(rng.sample(("eth0", "flannel*", "cni0"), rng.randint(1, 2)))),
            Addresses(rng.choice(list(Side)), tuple(rng.sample(NETWORKS, rng.randint(1, 2)))),
            Ports((rng.choice(((8472, 8472), (1, 100))),)),
            Words(Of.STATE, frozenset(rng.sample(STATES, rng.randint(1, 2)))),
            None,
        )
    )
    return Condition(asks, rng.random() < 0.4)


def chain_of(rng: Random, *targets: str) -> tuple[Rule, ...]:
    verdicts: list[Verdict] = ["drop", "accept", "return", "next"]
    verdicts += ["jump", "goto"] if targets else []

    def rule() -> Rule:
        conditions = tuple(asked(rng) for _ in range(rng.choice((0, 1, 1, 2))))
        return Rule(conditions, rng.choice(verdicts), "", rng.choice(targets or ("",)))

    return tuple(rule() for _ in range(rng.randint(0, 4)))


def kind_of(rng: Random) -> Kind:
    return Kind(
        "forward",
        4,
        rng.random() < 0.5,
        came_by=rng.choice((*INTERFACES, None)),
        leaves_by=rng.choice((*INTERFACES, None)),
        source=rng.choice((*NETWORKS, None)),
        destination=rng.choice((*NETWORKS, None)),
        port=rng.choice((8472, None)),
        words=rng.choice(({Of.STATE: frozenset(("new",))}, {})),
    )


def packet_of(rng: Random, kind: Kind) -> Packet:
    hosts = [[host for host in HOSTS if side is None or host in side] for side in (kind.source, kind.destination)]
    return Packet(
        kind.came_by or rng.choice(INTERFACES),
        kind.leaves_by or rng.choice(INTERFACES),
        rng.choice(hosts[0]),
        rng.choice(hosts[1]),
        kind.port or rng.choice((8472, 53)),
        rng.choice(list(kind.words.get(Of.STATE, STATES))),
        rng.randint(0, 7),
    )


def has(packet: Packet, condition: Condition, number: int) -> bool:
    match condition.asks:
        case Interfaces(by, names):
            name = packet.came_by if by is By.CAME else packet.leaves_by
            answer = any(name == each or (each[-1] == "*" and name.startswith(each[:-1])) for each in names)
        case Addresses(side, networks):
            address = packet.source if side is Side.SOURCE else packet.destination
            answer = any(address in network for network in networks)
        case Ports(ranges):
            answer = any(low <= packet.port <= high for low, high in ranges)
        case Words(_, words):
            answer = packet.state in words
        case None:
            answer = bool(packet.chance >> number % 3 & 1)
    return answer != condition.negated


def fate(packet: Packet, table: Filter, chain: str) -> str:
    for number, rule in enumerate(table.chains.get(chain, ())):
        if not all(has(packet, condition, number) for condition in rule.conditions):
            continue
        match rule.verdict:
            case "drop" | "accept":
                return rule.verdict
            case "return":
                return ""
            case "jump" | "goto":
                end = fate(packet, table, rule.target)
                if end or rule.verdict == "goto":
                    return end
    return ""


@given(st.integers(0, 2**32))
def test_who_is_blamed_drops_every_packet_of_the_kind(seed: int) -> None:
    rng = Random(seed)
    for _ in range(20):
        chains = {"way": chain_of(rng, "x", "y"), "x": chain_of(rng, "y"), "y": chain_of(rng)}
        policy = rng.random() < 0.3
        table = Filter(frozenset((4,)), (Base("way", "forward", policy),), chains)
        for drop in drops(table, (kind_of(rng),)):
            for _ in range(20):
                packet = packet_of(rng, drop.kind)
                assert (fate(packet, table, "way") or ("drop" if policy else "accept")) == "drop", (packet, chains)


def test_chains_that_lead_back_into_themselves_blame_nobody() -> None:
    table = Filter(
        frozenset((4,)),
        (Base("way", "forward", False),),
        {"way": (Rule((), "jump", "1", "way"), Rule((), "drop", "2"))},
    )
    assert drops(table, OURS) == []


# nft's JSON, as nft 1.0.6 prints it


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


DPORT = match(payload("udp", "dport"), 8472)
DROP, ACCEPT = {"drop": None}, {"accept": None}
IIFNAME, L4PROTO = {"meta": {"key": "iifname"}}, {"meta": {"key": "l4proto"}}


def blamed(
    *rules: Sequence[Any], hook: str = "input", family: str = "inet", maps: nftjson.Elements | None = None
) -> list[Drop]:
    items = [
        {"rule": {"family": family, "table": "f", "chain": "way", "handle": number, "expr": list(statements)}}
        for number, statements in enumerate(rules)
    ]
    read = nftjson.read_items(json.dumps({"nftables": [{"metainfo": {}}, *items]}))
    return drops(nftjson.read_filter(family, (Base("way", hook, False),), read, maps or {}), OURS)


@pytest.mark.parametrize(
    "statements",
    [
        [DPORT, {"counter": {"packets": 0, "bytes": 0}}, DROP],
        [match(payload("udp", "dport"), {"set": [53, {"range": [8000, 9000]}]}), DROP],
        [match(payload("udp", "dport"), 53, "!="), {"reject": {"type": "icmpx", "expr": "port-unreachable"}}],
        [match(L4PROTO, "udp"), match(payload("th", "dport"), 8472), {"log": None}, DROP],
        [match(payload("ip", "protocol"), {"set": ["tcp", "udp"]}), DROP],
        [match({"meta": {"key": "nfproto"}}, "ipv4"), match(IIFNAME, {"set": ["eth0", "eth1"]}), DROP],
        [match(IIFNAME, "et*"), match(payload("ether", "type"), "ip"), DROP],
        [match(payload("ip", "daddr"), {"prefix": {"addr": "192.0.2.0", "len": 24}}), DROP],
        [match(payload("ip", "daddr"), {"range": ["192.0.2.0", "192.0.2.9"]}), DROP],
        [match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP],
        [match({"ct": {"key": "state"}}, ["new", "untracked", "invalid"], "in"), DROP],
        [{"vmap": {"key": IIFNAME, "data": {"set": [["lo", ACCEPT], ["eth0", DROP]]}}}],
    ],
)  # fmt: skip
def test_rules_of_nftables_that_drop_the_tunnel(statements: list[Any]) -> None:
    established = match({"ct": {"key": "state"}}, ["established", "related"], "in")
    assert len(blamed([established, ACCEPT], [match(IIFNAME, "lo"), ACCEPT], statements)) == 1
    assert blamed([match(IIFNAME, "eth0"), ACCEPT], statements) == []


@pytest.mark.parametrize(
    "statements",
    [
        [match(payload("udp", "dport"), "@ports"), DROP],
        [match(payload("udp", "dport"), "otv"), DROP],
        [match(payload("udp", "sport"), 8472), DROP],
        [match(payload("tcp", "dport"), 8472), DROP],
        [match(payload("ip6", "daddr"), "fd00::/8"), DROP],
        [match(payload("ip", "saddr"), "192.0.2.7"), DROP],
        [match({"&": [{"meta": {"key": "mark"}}, 16]}, 16), DROP],
        [match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), DROP],
        [match({"ct": {"key": "state"}}, "invalid", "in"), DROP],
        [match({"ct": {"key": "status"}}, "dnat", "in"), DROP],
        [{"limit": {"rate": 3, "per": "minute"}}, DROP],
        [{"xt": {"type": "match", "name": "comment"}}, DROP],
        [{"xt": {"type": "target", "name": "LOG"}}],
        [{"queue": {"num": 0}}],
        [{"vmap": {"key": IIFNAME, "data": "@unread"}}],
        [{"vmap": {"key": {"concat": [IIFNAME, L4PROTO]}, "data": {"set": [[{"concat": ["eth0", "udp"]}, DROP]]}}}],
        [match({"concat": [IIFNAME, L4PROTO]}, {"set": [{"concat": ["eth0", "udp"]}]}), DROP],
        [match(DPORT["match"]["left"], 8000, ">"), DROP],
        [{"something new": {}}, DROP],
        [{"jump": {"target": "not there"}}],
        ["what is that"],
    ],
)  # fmt: skip
def test_rules_of_nftables_of_which_that_is_not_sure(statements: list[Any]) -> None:
    assert blamed(statements) == []


def test_a_verdict_map_is_read_where_interfaces_are_looked_up() -> None:
    oifname = {"meta": {"key": "oifname"}}
    rule = [{"vmap": {"key": oifname, "data": "@ways"}}]
    items = [{"rule": {"chain": "way", "handle": 1, "expr": rule}}]
    assert nftjson.named_maps(items) == ["ways"]
    listed = nftjson.elements([{"map": {"elem": [["cni0", DROP], [{"elem": {"val": "br-7"}}, ACCEPT]]}}])
    found = blamed(rule, hook="forward", maps={"ways": listed})
    assert {drop.kind.leaves_by for drop in found} == {"cni0"}
    assert blamed([{"vmap": {"key": IIFNAME, "data": "@ways"}}], hook="input", maps={"ways": listed}) == []


WORDS = [
    "nftables",
    "rule",
    "chain",
    "handle",
    "expr",
    "match",
    "op",
    "left",
    "right",
    "payload",
    "set",
    "vmap",
    "key",
    "data",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.lists(JSON, max_size=4))
def test_no_listing_is_too_odd(listing: Any, statements: list[Any]) -> None:
    for items in (
        nftjson.read_items(json.dumps(listing)),
        [{"rule": {"chain": "way", "handle": 1, "expr": statements}}],
    ):
        nftjson.named_maps(items)
        drops(nftjson.read_filter("inet", (Base("way", "input", False),), items, {}), OURS)


# What iptables-save prints

SAVED = """*filter
:INPUT {policy} [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:deep - [0:0]
-A INPUT -i lo -j ACCEPT
{rules}
COMMIT
"""


def in_save(rules: str, policy: str = "ACCEPT") -> list[str]:
    table = read_save(SAVED.format(rules=rules, policy=policy))["filter"]
    found = drops(saverules.read_filter(4, table), OURS)
    return [drop.chain + " " + (drop.rule.name if drop.rule else "policy") for drop in found]


def test_rules_of_iptables_that_drop_the_tunnel() -> None:
    assert in_save("-A INPUT -p udp -m udp --dport 8472 -j DROP") == ["INPUT -p udp -m udp --dport 8472 -j DROP"]
    assert in_save("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "DROP") == ["INPUT policy"]
    assert in_save('-A INPUT ! -i eth7 -m comment --comment "a -j b" -g deep\n-A deep -j LOG\n-A deep -j REJECT') == [
        "deep -j REJECT"
    ]
    assert in_save("-A INPUT -p udp -m multiport --dports 53,8000:9000 -m addrtype --dst-type LOCAL -j DROP")
    assert in_save("-A INPUT -i et+ -d 192.0.2.0/24 -m state --state NEW,UNTRACKED -j DROP")


@pytest.mark.parametrize(
    "rules",
    [
        "-A INPUT -p udp -m udp ! --dport 8472 -j DROP",
        "-A INPUT -p tcp -m tcp --dport 8472 -j DROP",
        "-A INPUT -p udp -m udp --sport 8472 -j DROP",
        "-A INPUT -m recent --update --name x -j DROP",
        "-A INPUT -m rpfilter -j DROP",
        "-A INPUT -m set ! --match-set good src -j DROP",
        "-A INPUT -f -j DROP",
        "-A INPUT -s 198.51.100.0/24 -j DROP",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -m mark --mark 0x1 -j ACCEPT\n-A INPUT -j DROP",
        "-A INPUT -j NFQUEUE --queue-num 0\n-A INPUT -j DROP",
        "-A INPUT -j deep\n-A INPUT -j DROP\n-A deep -s 192.0.2.0/24 -j ACCEPT",
        '-A INPUT -m comment --comment "half',
    ],
)
def test_rules_of_iptables_of_which_that_is_not_sure(rules: str) -> None:
    assert in_save(rules) == []


OPTIONS = (
    "!",
    "-i",
    "-s",
    "-p",
    "-j",
    "-g",
    "-m",
    "--dport",
    "x",
    "1:2",
    "10.0.0.0/99",
    "DROP",
    "deep",
    "--ctstate",
    '"',
)


@given(st.lists(st.sampled_from(OPTIONS), max_size=12))
def test_no_rule_of_iptables_is_too_odd(words: list[str]) -> None:
    in_save(" ".join(["-A", "INPUT", *words]))


def test_what_to_do_is_written_for_the_tool_and_the_hook() -> None:
    kept = Base("PREROUTING", "prerouting", False)
    docker = "-d 10.42.5.2/32 ! -i docker0 -j DROP"
    table = saverules.read_filter(
        4, read_save(f"*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {docker}\nCOMMIT\n")["raw"]
    )
    (drop,) = drops(table, OURS)
    assert drop.base == kept
    obstacle = Place("iptables", "", "raw").obstacle(drop, docker, (POLICY,))
    assert obstacle.by == (
        f"iptables, table raw, chain PREROUTING: -A PREROUTING {docker} (Docker has one such for each container)"
    )
    assert obstacle.do == "iptables -t raw -I PREROUTING -i flannel.1 -d 10.42.5.0/24 -j ACCEPT"
    firewalld = drops(Filter(frozenset((4,)), (Base("filter_INPUT", "input", True),), {}), OURS)
    assert Place("nft", "inet", "firewalld", "firewalld").obstacle(firewalld[0], "", (POLICY,)).do == (
        "firewall-cmd --permanent --zone=$(firewall-cmd --get-zone-of-interface=eth0) --add-port=8472/udp"
        " && firewall-cmd --reload"
    )
