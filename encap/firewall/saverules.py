"""What iptables-save prints, as Filters of ruleset.py: what we do not understand is told as that. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

from flanneld_py.encap.firewall.chains import Table
from flanneld_py.encap.firewall.ruleset import (
    UNKNOWN,
    Addresses,
    Base,
    By,
    Condition,
    Filter,
    Interfaces,
    Of,
    Ports,
    Rule,
    Rules,
    Side,
    Verdict,
    Words,
    keeps_out,
)

HOOKS = {name: name.lower() for name in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")}

_VERDICTS: Mapping[str, Verdict] = {"DROP": "drop", "REJECT": "drop", "ACCEPT": "accept", "RETURN": "return"}
_GO_ON = (
    *("LOG", "NFLOG", "ULOG", "TRACE", "MARK", "CONNMARK", "CT", "NOTRACK", "TCPMSS", "SET", "CLASSIFY", "DSCP", "TOS"),
    *("TTL", "HL", "CHECKSUM", "AUDIT", "SECMARK", "CONNSECMARK", "RATEEST", "TEE", "LED", "HMARK"),
)
_MATCHES = ("comment", "udp", "tcp", "icmp", "icmp6", "multiport", "conntrack", "state", "addrtype")
"""Modules that ask for nothing but by options that are read, or told to be unknown."""

_STATES = {"NEW": "new", "ESTABLISHED": "established", "RELATED": "related", "INVALID": "invalid"}
_STATES |= {"UNTRACKED": "untracked", "DNAT": "dnat", "SNAT": "snat"}
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}


Seen = Mapping[str, Sequence[tuple[Condition, ...]]]
"""Chain -> what nft says that its rules ask, rule by rule."""


def read_filter(family: int, table: Table, seen: Seen | None = None) -> Filter:
    """Return a table of iptables (family 4) or ip6tables (6).

    Of a rule that somebody wrote with nft iptables-save shows what it can, `udp dport { 53 } drop` as `-p udp -j DROP`.
    So whoever is to be blamed is read once more, with what nft has `seen`.
    """
    bases = [Base(name, HOOKS[name], table.policies.get(name) == "DROP") for name in table.chains if name in HOOKS]

    def read(each: tuple[str, tuple[Condition, ...]]) -> Iterator[Rule]:
        rule, more = _rule(each[0], table.chains), each[1]
        # A verdict map is not shown at all: such a rule may let packets pass.
        verdict = "accept" if rule.verdict == "next" and UNKNOWN in more else rule.verdict
        yield replace(rule, conditions=rule.conditions + more, verdict=verdict)

    raw = {name: _with_seen(name, rules, seen) for name, rules in table.chains.items()}
    kept = (each for rules in raw.values() for each in rules if "! -i " in each[0] and each[0].endswith("-j DROP"))
    keeping_out = tuple(filter(keeps_out, (rule for each in kept for rule in read(each))))
    return Filter(
        frozenset((family,)), tuple(bases), {name: Rules(each, read) for name, each in raw.items()}, keeping_out
    )


def _with_seen(chain: str, rules: list[str], seen: Seen | None) -> list[tuple[str, tuple[Condition, ...]]]:
    if seen is None:
        return [(text, ()) for text in rules]
    extra = seen.get(chain, ())
    return list(zip(rules, extra if len(extra) == len(rules) else [(UNKNOWN,)] * len(rules), strict=True))


def _rule(text: str, chains: Collection[str]) -> Rule:
    try:
        words = shlex.split(text) if '"' in text or "'" in text else text.split()
    except ValueError:
        return Rule((UNKNOWN,), "accept", text)
    jump = next((at for at, word in enumerate(words) if word in ("-j", "-g")), None)
    conditions = tuple(_conditions(words[:jump]))
    if jump is None or jump + 1 >= len(words):
        return Rule(conditions, "next", text)
    target = words[jump + 1]
    if target in _VERDICTS:
        return Rule(conditions, _VERDICTS[target], text)
    if target in chains:
        return Rule(conditions, "goto" if words[jump] == "-g" else "jump", text, target)
    return Rule(conditions, "next" if target in _GO_ON else "accept", text)


def _conditions(words: list[str]) -> Iterator[Condition]:
    """Read matches: `! -i eth0 -p udp -m udp --dport 8472 -m comment --comment x`."""
    at, negated = 0, False
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 1
        if word == "!":
            negated = True
            continue
        if not word.startswith("-"):
            continue  # What belongs to an option that we do not know.
        known = _condition(word, value)
        if known is None:
            yield UNKNOWN
        elif known.asks is not None:
            yield Condition(known.asks, negated)
            at += 1
        else:
            at += 1
        negated = False


def _condition(option: str, value: str) -> Condition | None:
    """Return what an option and its value ask, UNKNOWN if that is nothing, None if we do not know the option."""
    match option:
        case "-m":
            return UNKNOWN if value in _MATCHES else None
        case "--comment":
            return UNKNOWN
        case "-i" | "-o":
            names = frozenset((value[:-1] + "*" if value.endswith("+") else value,))
            return Condition(Interfaces(By.CAME if option == "-i" else By.LEAVES, names))
        case "-s" | "-d":
            side = Side.SOURCE if option == "-s" else Side.DESTINATION
            try:
                return Condition(Addresses(side, tuple(ip_network(each, strict=False) for each in value.split(","))))
            except ValueError:
                return None
        case "-p":
            return Condition(Words(Of.PROTOCOL, frozenset((_PROTOCOLS.get(value, value),))))
        case "--dport" | "--dports":
            ranges = _ranges(value)
            return None if ranges is None else Condition(Ports(ranges))
        case "--ctstate" | "--state":
            states = frozenset(_STATES.get(each, each) for each in value.split(","))
            # Translated connections are none of ours, so that it may be one of these lets no more of ours in.
            return Condition(Words(Of.STATE, states - {"dnat", "snat"}))
        case "--dst-type":
            return Condition(Words(Of.TYPE, frozenset(value.lower().split(","))))
    return None


def _ranges(value: str) -> tuple[tuple[int, int], ...] | None:
    found = []
    for part in value.split(","):
        low, _, high = part.partition(":")
        if not low.isdigit() or not (high or low).isdigit():
            return None
        found.append((int(low), int(high or low)))
    return tuple(found)
