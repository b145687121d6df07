"""A packet filter's rules as values, as far as we understand them: the same for nftables and iptables. Pure.

Not here: reading them (nftjson.py, saverules.py), and what becomes of packets (drops.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Literal, TypeVar

from flanneld_py.encap.firewall.policy import Network

Raw = TypeVar("Raw")


class By(Enum):
    """Which interface is asked for."""

    CAME = "came by"
    LEAVES = "leaves by"


class Side(Enum):
    """Which address is asked for."""

    SOURCE = "source"
    DESTINATION = "destination"


class Of(Enum):
    """Which other property is asked for, and in which words: those of nft, but `4` and `6` for the families."""

    FAMILY = "family"
    PROTOCOL = "protocol"
    STATE = "state of the connection"
    STATUS = "translation of the connection"
    TYPE = "type of the destination"


@dataclass(frozen=True, slots=True)
class Interfaces:
    """Names; one that ends in * is for all that begin so."""

    by: By
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Networks, of either family."""

    side: Side
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """Ranges of destination ports, with both ends."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Words:
    """Any of these words."""

    of: Of
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a rule asks of a packet; None for what we do not understand. `negated`: that it is not so."""

    asks: Interfaces | Addresses | Ports | Words | None
    negated: bool = False


UNKNOWN = Condition(None)


Verdict = Literal["drop", "accept", "return", "jump", "goto", "next"]
"""`accept` also for what takes a packet away without dropping it, and for what we do not know."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `name` is what it is found by: its handle in nftables, its text in iptables. `target`: a chain."""

    conditions: tuple[Condition, ...]
    verdict: Verdict
    name: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """A chain that the kernel sends packets through; `drops` by policy. `devices`: those of ingress and egress."""

    chain: str
    hook: str
    drops: bool
    devices: frozenset[str] = frozenset()


class Rules(Generic[Raw]):
    """The rules of a chain, each read when somebody gets there: of long chains that is seldom all."""

    def __init__(self, raw: Sequence[Raw], read: Callable[[Raw], Iterable[Rule]]) -> None:
        self._raw = raw
        self._read = read
        self._next = 0
        self._known: list[Rule] = []

    def __iter__(self) -> Iterator[Rule]:
        """Go through the rules in order."""
        at = 0
        while True:
            while at == len(self._known):
                if self._next == len(self._raw):
                    return
                self._known += self._read(self._raw[self._next])
                self._next += 1
            yield self._known[at]
            at += 1


@dataclass(frozen=True, slots=True)
class Filter:
    """A table: its base chains, and the rules of all its chains. `families` are those whose packets it sees.

    `keeping_out` are rules that drop what comes by any interface but some.
    """

    families: frozenset[int]
    bases: tuple[Base, ...]
    chains: Mapping[str, Iterable[Rule]]
    keeping_out: tuple[Rule, ...] = ()


def keeps_out(rule: Rule) -> bool:
    """Tell whether a rule drops what comes by any interface but some."""
    return rule.verdict == "drop" and any(
        condition.negated and isinstance(condition.asks, Interfaces) for condition in rule.conditions
    )
