"""Which rule of somebody's drops packets of ours for certain. Pure; what nftables and iptables have in common.

    nft -j list table -> nftjson.py,   iptables-save -> saverules.py   Filter: chains of rules that we understand
    Policy            -> traffic.py                                      Kind: packets of ours that are alike, at a hook

A Kind goes along a chain. Rules that every packet of it fits decide; rules that none fits are passed by; where only
some may fit, or we cannot tell, it is taken to pass if the rule lets packets pass, and to go on if it drops. So what is
named does drop; what may only drop is not named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flanneld_py.encap.firewall.policy import Network
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
    Words,
)

Fits = bool | None
"""Every packet of a kind, none, or perhaps some."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Packets of ours that are alike, at one hook. What is None may be anything.

    `at` is the interface that a chain at ingress or egress is for. `words` are all that packets of the kind may have.
    `inside`: it is containers' own packets, not the tunnel's.
    """

    hook: str
    family: int
    inside: bool
    at: str | None = None
    came_by: str | None = None
    leaves_by: str | None = None
    source: Network | None = None
    destination: Network | None = None
    port: int | None = None
    words: Mapping[Of, frozenset[str]] = field(default_factory=dict)

    def fits(self, conditions: tuple[Condition, ...]) -> Fits:
        """Tell whether packets of this kind have all that is asked."""
        answers = [self._fits(condition) for condition in conditions]
        return False if False in answers else None if None in answers else True

    def _fits(self, condition: Condition) -> Fits:
        match condition.asks:
            case Interfaces(by, names):
                answer = _named(self.came_by if by is By.CAME else self.leaves_by, names)
            case Addresses(side, networks):
                answer = _within(self.source if side is Side.SOURCE else self.destination, self.family, networks)
            case Ports(ranges):
                answer = None if self.port is None else any(low <= self.port <= high for low, high in ranges)
            case Words(Of.FAMILY, words):
                answer = str(self.family) in words
            case Words(of, words):
                have = self.words.get(of)
                answer = None if have is None else False if not have & words else True if have <= words else None
            case None:
                return None
        return answer if answer is None else answer != condition.negated


def _named(interface: str | None, names: frozenset[str]) -> Fits:
    if interface is None:
        # Our packets are never the host's to itself.
        return False if names == {"lo"} else True if names == {"*"} else None
    return any(interface == name or (name.endswith("*") and interface.startswith(name[:-1])) for name in names)


def _within(addresses: Network | None, family: int, networks: tuple[Network, ...]) -> Fits:
    same = [network for network in networks if network.version == family]
    if not same:
        return False
    if addresses is None:
        return True if any(network.prefixlen == 0 for network in same) else None
    if any(addresses.subnet_of(network) for network in same):  # type: ignore[arg-type]
        return True
    return None if any(addresses.overlaps(network) for network in same) else False


@dataclass(frozen=True, slots=True)
class Drop:
    """What drops a kind: a rule, in a chain that is reached from a base chain; no rule: the base chain's policy."""

    kind: Kind
    base: Base
    chain: str
    rule: Rule | None


def drops(table: Filter, kinds: tuple[Kind, ...]) -> list[Drop]:
    """Find what drops packets of ours: for each kind and base chain, one at most."""
    found = []
    for base in table.bases:
        for kind in kinds:
            if kind.hook != base.hook or kind.family not in table.families:
                continue
            if base.devices and kind.at not in base.devices:
                continue
            walk = _Walk(table, base)
            narrow = [replace(kind, destination=network) for network in _kept_out(table, kind)]
            found += list(filter(None, map(walk.dropped, (kind, *narrow))))[:1]
    return found


MANY = 3
"""Of rules that are alike but for the container, the first few are looked at."""


def _kept_out(table: Filter, kind: Kind) -> list[Network]:
    """List containers that a rule keeps from all that do not come by a certain interface, as Docker's do.

    A rule that looks at the sender as well is somebody's own, and so is one for a container that asks for no interface.
    """
    if (
        not kind.inside
        or kind.destination is None
        or kind.source is None
        or not _is_part(kind.destination, kind.source)
    ):
        return []  # Not on its way to a container of this host.
    found: list[Network] = []
    for rule in table.keeping_out:
        for asks in (condition.asks for condition in rule.conditions):
            if isinstance(asks, Addresses) and asks.side is Side.DESTINATION:
                found += [each for each in asks.networks if _is_part(each, kind.destination)]
        if len(found) >= MANY:
            break
    return found[:MANY]


def _is_part(network: Network, whole: Network) -> bool:
    return network.version == whole.version and network != whole and network.subnet_of(whole)  # type: ignore[arg-type]


class _Walk:
    """The way of packets through a table, from one base chain."""

    def __init__(self, table: Filter, base: Base) -> None:
        self._table = table
        self._base = base
        self._known: dict[tuple[str, Network | None], Drop | bool] = {}

    def dropped(self, kind: Kind) -> Drop | None:
        """Find what drops all packets of a kind."""
        found = self._end(self._base.chain, kind)
        if found is False and self._base.drops:
            return Drop(kind, self._base, self._base.chain, None)
        return found if isinstance(found, Drop) else None

    def _end(self, chain: str, kind: Kind) -> Drop | bool:
        """Tell how a chain ends for a kind: what drops it, True if it may pass, False if it comes back."""
        key = chain, kind.destination
        if key not in self._known:
            self._known[key] = True  # Chains do not lead back into themselves; should they, nobody is blamed.
            self._known[key] = self._follow(chain, kind)
        return self._known[key]

    def _follow(self, chain: str, kind: Kind) -> Drop | bool:
        for rule in self._table.chains.get(chain, ()):
            fits = kind.fits(rule.conditions)
            if fits is False or rule.verdict == "next":
                continue
            match rule.verdict:
                case "drop":
                    end: Drop | bool = Drop(kind, self._base, chain, rule)
                case "accept":
                    return True
                case "return":
                    return not fits
                case _:
                    end = self._end(rule.target, kind)
            if end is True:
                return True
            if fits and end is not False:
                return end
            if rule.verdict == "goto" and end is False:
                return not fits
        return False
