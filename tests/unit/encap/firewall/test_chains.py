"""Where our chain and its jump go, given what others have in the table. Rules are as iptables-save prints them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from flanneld_py.encap.firewall.chains import (
    Table,
    forward_part,
    masquerade_part,
    plan,
    raw_part,
    read_save,
    removal,
    rule_text,
)
from flanneld_py.encap.firewall.policy import Policy, rules

FORWARD, MASQUERADE = forward_part(""), masquerade_part("")
RULES = ["-s 10.42.0.0/16 -j ACCEPT"]
JUMP = '-m comment --comment "flanneld-py forward" -j FLANNEL-FWD'
DOCKER = [
    "-j DOCKER-USER",
    "-m set --match-set docker-ext-bridges-v4 dst -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-o docker0 -j DOCKER",
    "-i docker0 -j ACCEPT",
]


def lines(forward: list[str], **chains: list[str]) -> list[str]:
    """Plan for a filter table with these rules in FORWARD and these further chains."""
    others = {name.replace("_", "-"): found for name, found in chains.items()}
    saved = ["*filter", ":FORWARD DROP [0:0]", *(f":{name} - [0:0]" for name in others)]
    saved += [f"-A {chain} {rule}" for chain, found in {"FORWARD": forward, **others}.items() for rule in found]
    return plan(read_save("\n".join([*saved, "COMMIT"]))["filter"], FORWARD, RULES, RULES)


def test_rules_are_written_as_iptables_prints_them() -> None:
    policy = Policy(ip_network("10.42.0.0/16"), ip_network("10.42.5.0/24"), True, excluded=(ip_network("10.0.0.1"),))
    comment = '-m comment --comment "flanneld-py masq"'
    assert [rule_text(rule, MASQUERADE.label) for rule in rules(policy).masquerade] == [
        f"-m mark --mark 0x4000/0x4000 {comment} -j RETURN",
        f"-s 10.42.5.0/24 -d 10.42.0.0/16 {comment} -j RETURN",
        f"-s 10.42.0.0/16 -d 10.42.5.0/24 {comment} -j RETURN",
        f"! -s 10.42.0.0/16 -d 10.42.5.0/24 {comment} -j RETURN",
        f"-s 10.42.0.0/16 -d 10.0.0.1/32 {comment} -j RETURN",
        f"-s 10.42.0.0/16 ! -d 224.0.0.0/4 {comment} -j MASQUERADE --random-fully",
        f"! -s 10.42.0.0/16 -d 10.42.0.0/16 {comment} -j MASQUERADE --random-fully",
    ]


MAKE = [":FLANNEL-FWD - [0:0]", f"-A FLANNEL-FWD {RULES[0]}"]


def test_the_jump_is_last_where_packets_get_there() -> None:
    assert lines([]) == [*MAKE, f"-A FORWARD {JUMP}"]
    assert lines(["-i eth9 -j DROP", "-s 192.0.2.0/24 -j REJECT"]) == [*MAKE, f"-A FORWARD {JUMP}"]


@pytest.mark.parametrize(
    "last",
    ["-j DROP", "-j REJECT --reject-with icmp-host-prohibited", '-m comment --comment "a b" -j DROP', "-g ELSE"],
)
def test_the_jump_is_before_what_ends_the_chain(last: str) -> None:
    assert lines(["-i eth9 -j DROP", last]) == [*MAKE, f"-I FORWARD 2 {JUMP}"]


def test_the_jump_is_before_a_chain_of_somebodys_that_swallows_all() -> None:
    assert lines(["-j LOGDROP"], LOGDROP=["-j LOG", "-j DROP"]) == [*MAKE, f"-I FORWARD 1 {JUMP}"]
    assert lines(["-j LOOK"], LOOK=["-i eth9 -j DROP", "-j RETURN", "-j DROP"]) == [*MAKE, f"-A FORWARD {JUMP}"]


def test_with_docker_the_jump_is_in_the_chain_that_docker_keeps_for_others() -> None:
    drop = ["-i eth9 -j DROP"]
    assert lines(DOCKER, DOCKER_USER=[*drop, "-j RETURN"]) == [*MAKE, f"-I DOCKER-USER 2 {JUMP}"]
    assert lines(DOCKER, DOCKER_USER=drop) == [*MAKE, f"-A DOCKER-USER {JUMP}"]
    assert lines(["-j DROP", *DOCKER], DOCKER_USER=[]) == [*MAKE, f"-I FORWARD 1 {JUMP}"], "nobody gets to Docker's"


def test_the_jump_follows_when_docker_comes() -> None:
    placed = lines([*DOCKER, JUMP], DOCKER_USER=["-j RETURN"], FLANNEL_FWD=RULES)
    assert placed == [f"-D FORWARD {JUMP}", f"-I DOCKER-USER 1 {JUMP}"]


def test_what_is_right_is_left() -> None:
    assert lines([JUMP], FLANNEL_FWD=RULES) == []
    assert lines([JUMP, "-i eth9 -j DROP", "-j DROP"], FLANNEL_FWD=RULES) == []
    assert lines(["-j FLANNEL-FWD"], FLANNEL_FWD=RULES) == [], "flannel's own, without a comment"


def test_what_is_wrong_is_replaced_and_nothing_else() -> None:
    assert lines([JUMP], FLANNEL_FWD=["-j DROP"]) == MAKE
    assert lines([JUMP], FLANNEL_FWD=[*RULES, *RULES]) == MAKE
    assert lines(["-j DROP", JUMP], FLANNEL_FWD=RULES) == [f"-D FORWARD {JUMP}", f"-I FORWARD 1 {JUMP}"]
    assert lines([JUMP, JUMP], FLANNEL_FWD=RULES) == [*[f"-D FORWARD {JUMP}"] * 2, f"-A FORWARD {JUMP}"]


def test_how_this_iptables_prints_our_rules_counts_as_ours() -> None:
    saved = read_save(f"*filter\n:FLANNEL-FWD -\n-A FORWARD {JUMP}\n-A FLANNEL-FWD -s 10.42.0.0/255.255.0.0 -j ACCEPT")
    assert plan(saved["filter"], FORWARD, RULES, ["-s 10.42.0.0/255.255.0.0 -j ACCEPT"]) == []


def test_removal() -> None:
    saved = read_save(f"*filter\n:FORWARD DROP\n:FLANNEL-FWD -\n-A FORWARD -j X\n-A FORWARD {JUMP}\n-A OTHER {JUMP}")
    assert plan(saved["filter"], FORWARD, [], []) == [
        ":FLANNEL-FWD - [0:0]",
        f"-D FORWARD {JUMP}",
        f"-D OTHER {JUMP}",
        "-X FLANNEL-FWD",
    ]
    assert plan(read_save("*filter\n:FORWARD DROP")["filter"], FORWARD, [], []) == []


def test_a_table_that_this_iptables_cannot_read_is_told_apart() -> None:
    saved = read_save("# Table `filter' is incompatible, use 'nft' tool.\n*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n")
    assert (saved["filter"].readable, saved["nat"].readable) == (False, True)


SUBNET = ip_network("10.42.5.0/24")
RAW_RULES = ["-d 10.42.5.0/24 -i flannel.1 -j ACCEPT"]
RAW_JUMP = '-m comment --comment "flanneld-py raw" -j FLANNEL-RAW'
MAKE_RAW = [":FLANNEL-RAW - [0:0]", f"-A FLANNEL-RAW {RAW_RULES[0]}"]
DOCKERS = ["-d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP", "-d 10.42.5.2/32 ! -i docker0 -j DROP"]


def raw_lines(prerouting: list[str], *, there: bool = False) -> list[str]:
    """Plan for a raw table with these rules in PREROUTING, and our chain if it is there."""
    chains = {"PREROUTING": prerouting, **({"FLANNEL-RAW": RAW_RULES} if there else {})}
    saved = [f"-A {chain} {rule}" for chain, found in chains.items() for rule in found]
    table = read_save("\n".join(["*raw", ":PREROUTING ACCEPT [0:0]", *saved, "COMMIT"]))["raw"]
    return plan(table, raw_part("", SUBNET), RAW_RULES, RAW_RULES)


def test_what_is_let_through_is_written_as_iptables_prints_it() -> None:
    direct = frozenset(map(ip_address, ("192.0.2.10", "192.0.2.9")))
    policy = Policy(ip_network("10.42.0.0/16"), SUBNET, device="flannel.1", underlay="eth0", direct=direct)
    comment = '-m comment --comment "flanneld-py raw"'
    assert [rule_text(rule, raw_part("").label) for rule in rules(policy).raw] == [
        f"! -d 10.42.5.0/24 {comment} -j RETURN",
        f"-d 10.42.5.0/24 -i flannel.1 {comment} -j ACCEPT",
        f"-s 10.42.0.0/16 -d 10.42.5.0/24 -i eth0 {comment} -j ACCEPT",
        f"-s 192.0.2.9/32 -d 10.42.5.0/24 -i eth0 {comment} -j ACCEPT",
        f"-s 192.0.2.10/32 -d 10.42.5.0/24 -i eth0 {comment} -j ACCEPT",
    ]


def test_in_raw_the_jump_is_last_where_nobody_drops_what_comes_to_our_subnet() -> None:
    for others in ([], ["-p udp -j CT --notrack"], DOCKERS[:1], ["-d 10.42.9.2/32 ! -i docker0 -j DROP"]):
        assert raw_lines(others) == [*MAKE_RAW, f"-A PREROUTING {RAW_JUMP}"]
    for own in ("-s 10.42.9.7/32 -d 10.42.5.0/24 ! -i docker0 -j DROP", "-d 10.42.5.7/32 -i flannel.1 -j DROP"):
        assert raw_lines([own]) == [*MAKE_RAW, f"-A PREROUTING {RAW_JUMP}"], "what an operator wrote counts before"


@pytest.mark.parametrize(
    "drop",
    [
        DOCKERS[1],
        "-d 10.42.5.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DROP",
        '-d 10.42.5.2/32 ! -i cni0 -m comment --comment "DROP DIRECT ACCESS" -j DROP',
        "-d 10.42.0.0/16 ! -i docker0 -j DROP",
        "-j DROP",
    ],
)
def test_in_raw_the_jump_is_before_the_first_rule_that_drops_what_comes_to_our_subnet(drop: str) -> None:
    others = ["-p udp -j CT --notrack", DOCKERS[0], drop, DOCKERS[1]]
    assert raw_lines(others) == [*MAKE_RAW, f"-I PREROUTING 3 {RAW_JUMP}"]
    placed = [*others[:2], RAW_JUMP, *others[2:]]
    assert raw_lines(placed, there=True) == []
    assert raw_lines([RAW_JUMP, *others], there=True) == [], "earlier does no harm"
    assert raw_lines([*others, RAW_JUMP], there=True) == [
        f"-D PREROUTING {RAW_JUMP}",
        f"-I PREROUTING 3 {RAW_JUMP}",
    ]


def test_in_raw_ipv6_is_read_as_well() -> None:
    part = raw_part("", ip_network("fd42:0:0:5::/64"))
    drops = ["-d ::1/128 ! -i lo -j DROP", "-d fd42:0:0:5::2/128 ! -i docker0 -j DROP"]
    table = read_save("\n".join(["*raw", *(f"-A PREROUTING {drop}" for drop in drops), "COMMIT"]))["raw"]
    assert plan(table, part, RAW_RULES, RAW_RULES)[-1] == f"-I PREROUTING 2 {RAW_JUMP}"


def test_only_what_is_ours_and_about_a_subnet_is_removed() -> None:
    ours = '-m comment --comment "flanneld-py raw" -j ACCEPT'
    chains = {
        "PREROUTING": ["-j FLANNEL-RAW-7", "-j FLANNEL-RAW-8", "-j FLANNEL-RAW-9"],
        "FLANNEL-RAW-7": [f"-d 10.42.5.0/24 -i flannel.7 {ours}"],
        "FLANNEL-RAW-8": [f"-d 10.77.1.0/24 -i flannel.8 {ours}"],
        "FLANNEL-RAW-9": ["-d 10.42.5.0/24 -i flannel.9 -j ACCEPT"],
    }
    seven = [":FLANNEL-RAW-7 - [0:0]", "-D PREROUTING -j FLANNEL-RAW-7", "-X FLANNEL-RAW-7"]
    assert removal(Table(chains), raw_part(""), "-d 10.42.5.0/24 ").splitlines() == ["*raw", *seven, "COMMIT"]
    assert "FLANNEL-RAW-8" in removal(Table(chains), raw_part(""))
    assert "FLANNEL-RAW-9" not in removal(Table(chains), raw_part(""))
    assert removal(Table({}), raw_part("")) == ""


def test_a_rule_that_asks_and_does_nothing_is_a_rule() -> None:
    """`iptables -A FORWARD` makes one."""
    saved = read_save("*filter\n:FORWARD DROP [0:0]\n-A FORWARD\n-A FORWARD -j X\nCOMMIT\n")
    assert saved["filter"].chains == {"FORWARD": ["", "-j X"]}
    assert saved["filter"].policies == {"FORWARD": "DROP"}
