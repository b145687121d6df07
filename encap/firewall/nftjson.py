"""What `nft -j list table` prints, as a Filter of ruleset.py: what we do not understand is told as that. Pure.

    {"nftables": [{"chain": {...}}, {"rule": {"chain": ..., "handle": ..., "expr": [{"match": ...}, {"drop": null}]}}]}

The statements are described in libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any, cast

from flanneld_py.encap.firewall.policy import Network
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

FAMILIES = {"ip": {4}, "ip6": {6}, "inet": {4, 6}, "netdev": {4, 6}}
"""The families of tables that packets of ours pass, and whose packets they see."""

_WITHOUT_VERDICT = ("counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "ct expectation", "flow", "dup")
_VERDICTS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return", "continue": "next"}
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}
_FAMILY_WORDS = {"ipv4": "4", "ipv6": "6", "ip": "4", "ip6": "6"}

Elements = Mapping[str, list[Any]]
"""Name of a verdict map -> its elements."""


def read_items(text: str) -> list[dict[str, Any]]:
    """Read the objects of a listing; none if it is not what nft prints."""
    try:
        found = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def named_maps(items: Iterable[dict[str, Any]]) -> list[str]:
    """Name the verdict maps whose elements are needed: those that are looked up by one interface."""
    found = []
    for item in items:
        for statement in item.get("rule", {}).get("expr", ()):
            match statement:
                case {"vmap": {"key": {"meta": {"key": "iif" | "oif" | "iifname" | "oifname"}}, "data": str(name)}}:
                    found.append(name.removeprefix("@"))
    return list(dict.fromkeys(found))


def elements(items: Iterable[dict[str, Any]]) -> list[Any]:
    """Return the elements of the one map that is listed."""
    return next((list(item["map"].get("elem", ())) for item in items if "map" in item), [])


def read_filter(family: str, bases: tuple[Base, ...], items: Iterable[dict[str, Any]], maps: Elements) -> Filter:
    """Return a table: its base chains are known from elsewhere, as nft's JSON lacks the devices of some."""
    chains: dict[str, list[tuple[list[Any], str]]] = {}
    keeping_out: list[Rule] = []
    for item in items:
        match item:
            case {"rule": {"chain": str(chain), "handle": handle, "expr": list(statements)}}:
                chains.setdefault(chain, []).append((statements, str(handle)))
                if {"drop": None} in statements and any(_is_negated(each) for each in statements):
                    keeping_out += filter(keeps_out, _rules(statements, str(handle), maps))
    read = {name: Rules(raw, lambda rule: _rules(*rule, maps)) for name, raw in chains.items()}
    return Filter(frozenset(FAMILIES.get(family, ())), bases, read, tuple(keeping_out))


def asked(items: Iterable[dict[str, Any]]) -> dict[str, list[tuple[Condition, ...]]]:
    """Return what the rules of each chain ask, but for what iptables alone knows; see saverules.py."""
    found: dict[str, list[tuple[Condition, ...]]] = {}
    for item in items:
        match item:
            case {"rule": {"chain": str(chain), "expr": list(statements)}}:
                found.setdefault(chain, []).append(tuple(_asked(statements)))
    return found


def _asked(statements: list[Any]) -> Iterator[Condition]:
    for statement in statements:
        match statement:
            case {"match": {"op": str(op), "left": left, "right": right}}:
                yield from _conditions(op, left, right)
            case {"vmap": _}:
                yield UNKNOWN


def _is_negated(statement: Any) -> bool:
    match statement:
        case {"match": {"op": "!=", "left": {"meta": _}}}:
            return True
    return False


def _rules(statements: list[Any], handle: str, maps: Elements) -> Iterator[Rule]:
    """Take a rule apart; a verdict map is as many rules as it has elements."""
    conditions: list[Condition] = []
    for statement in statements:
        match statement:
            case {"match": {"op": str(op), "left": left, "right": right}}:
                conditions += _conditions(op, left, right)
            case {"vmap": {"key": key, "data": data}}:
                yield from _looked_up(conditions, key, data, handle, maps)
                return
            case {"jump": {"target": str(chain)}}:
                yield Rule(tuple(conditions), "jump", handle, chain)
                return
            case {"goto": {"target": str(chain)}}:
                yield Rule(tuple(conditions), "goto", handle, chain)
                return
            case dict() if len(statement) == 1:
                name = next(iter(statement))
                if name in _VERDICTS:
                    yield Rule(tuple(conditions), cast("Verdict", _VERDICTS[name]), handle)
                    return
                if name == "xt" and not _is_match(statement[name]):
                    yield Rule((*conditions, UNKNOWN), "accept", handle)  # A target that only iptables knows.
                    return
                if name in ("limit", "quota", "set", "meter", "ct count", "xt"):
                    conditions.append(UNKNOWN)
                elif name not in _WITHOUT_VERDICT:
                    yield Rule(tuple(conditions), "accept", handle)  # It takes the packet elsewhere, or is new to us.
                    return
            case _:
                yield Rule((*conditions, UNKNOWN), "accept", handle)
                return


def _is_match(xt: object) -> bool:
    return isinstance(xt, dict) and xt.get("type") == "match"


def _looked_up(conditions: list[Condition], key: Any, data: Any, handle: str, maps: Elements) -> Iterator[Rule]:
    match data:
        case {"set": list(found)}:
            pairs = found
        case str(name) if name.removeprefix("@") in maps:
            pairs = maps[name.removeprefix("@")]
        case _:
            yield Rule((*conditions, UNKNOWN), "accept", handle)
            return
    for pair in pairs:
        match pair:
            case [{"elem": {"val": value}}, verdict] | [value, verdict]:
                asked = (*conditions, *_conditions("==", key, value))
                for rule in _rules([verdict], handle, maps):
                    yield replace(rule, conditions=asked)
            case _:
                yield Rule((*conditions, UNKNOWN), "accept", handle)


def _conditions(op: str, left: Any, right: Any) -> list[Condition]:
    """Return what a comparison asks: of a header's field also that the packet has such a header."""
    if op not in ("==", "!=", "in"):
        return [UNKNOWN]
    negated, values = op == "!=", _values(right)
    if values is None:
        return [*_header(left), UNKNOWN]
    words = frozenset(map(str, values))
    asks: Interfaces | Addresses | Ports | Words | None = None
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            asks = Interfaces(By.CAME, words)
        case {"meta": {"key": "oifname" | "oif"}}:
            asks = Interfaces(By.LEAVES, words)
        case (
            {"meta": {"key": "l4proto"}}
            | {"payload": {"protocol": "ip", "field": "protocol"}}
            | {"payload": {"protocol": "ip6", "field": "nexthdr"}}
        ):
            asks = Words(Of.PROTOCOL, frozenset(_PROTOCOLS.get(word, word) for word in words))
        case {"meta": {"key": "nfproto" | "protocol"}} | {"payload": {"protocol": "ether", "field": "type"}}:
            asks = Words(Of.FAMILY, frozenset(_FAMILY_WORDS.get(word, word) for word in words))
        case {"payload": {"protocol": "ip" | "ip6", "field": "saddr" | "daddr" as field}}:
            networks = _networks(values)
            side = Side.SOURCE if field == "saddr" else Side.DESTINATION
            asks = None if networks is None else Addresses(side, networks)
        case {"payload": {"protocol": "udp" | "th", "field": "dport"}}:
            ranges = _ranges(values)
            asks = None if ranges is None else Ports(ranges)
        case {"ct": {"key": "state"}}:
            asks = Words(Of.STATE, words)
        case {"ct": {"key": "status"}}:
            asks = Words(Of.STATUS, words)
        case {"fib": {"result": "type", "flags": ["daddr"] | "daddr"}}:
            asks = Words(Of.TYPE, words)
    return [*_header(left), Condition(asks, negated and asks is not None)]


def _header(left: Any) -> list[Condition]:
    """Return what a packet has to be to have the header whose field is asked for."""
    match left:
        case {"payload": {"protocol": "ip" | "ip6" as family}}:
            return [Condition(Words(Of.FAMILY, frozenset((_FAMILY_WORDS[family],))))]
        case {"payload": {"protocol": "icmp" | "icmpv6" | "tcp" | "udp" | "sctp" | "udplite" | "esp" as protocol}}:
            return [Condition(Words(Of.PROTOCOL, frozenset((_PROTOCOLS.get(protocol, protocol),))))]
    return []


def _values(right: Any) -> list[Any] | None:
    """Return what is compared with; None for a set by its name, and for what is computed."""
    match right:
        case str(name) if name.startswith("@"):
            return None
        case str() | int() | {"prefix": _} | {"range": _}:
            return [right]
        case {"set": list(found)} | list(found):
            plain = [each["elem"].get("val") if isinstance(each, dict) and "elem" in each else each for each in found]
            return plain if all(_values(each) is not None for each in plain) else None
    return None


def _networks(values: list[Any]) -> tuple[Network, ...] | None:
    found: list[Network] = []
    try:
        for value in values:
            match value:
                case str():
                    found.append(ip_network(value))
                case {"prefix": {"addr": addr, "len": length}}:
                    found.append(ip_network(f"{addr}/{length}", strict=False))
                case {"range": [low, high]}:
                    found += summarize_address_range(ip_address(low), ip_address(high))
                case _:
                    return None
    except (ValueError, TypeError):
        return None
    return tuple(found)


def _ranges(values: list[Any]) -> tuple[tuple[int, int], ...] | None:
    found: list[tuple[int, int]] = []
    for value in values:
        match value:
            case int():
                found.append((value, value))
            case {"range": [int(low), int(high)]}:
                found.append((low, high))
            case _:
                return None  # A service by its name.
    return tuple(found)
