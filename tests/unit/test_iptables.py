"""Where our chain and its jump go, given what others have in the table. Rules are as iptables-save prints them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from flanneld_py.encap.firewall import Policy, rules
from flanneld_py.encap.iptables import forward_part, masquerade_part, plan, read_save, rule_text

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
