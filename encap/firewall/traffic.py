"""The packets of the overlay that somebody's rules may drop on this host, and what lets them pass. Pure.

    tunnel     in:   ingress of the underlay interface -> prerouting -> input
               out:  output -> postrouting -> egress of the underlay interface
    container  in:   ingress of the device -> prerouting -> forward -> postrouting -> egress of the bridge
               out:  ingress of the bridge -> prerouting -> forward -> postrouting -> egress of the device

Without a tunnel (host-gw, DirectRouting) the underlay interface is in the place of the device. Each is the first packet
of a connection between this host and any other one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from flanneld_py.encap.firewall import dockerbridges
from flanneld_py.encap.firewall.drops import Drop, Kind
from flanneld_py.encap.firewall.nft import FAMILIES
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.ruleset import Of

_NEW = frozenset(("new", "untracked"))
_NOT_TRANSLATED: frozenset[str] = frozenset()


def kinds(policy: Policy, bridge: str | None) -> tuple[Kind, ...]:
    """List the kinds of packets of a network; `bridge` is the one that has our subnet, None if there is none yet."""
    found = list(_tunnel(policy))
    for way in (policy.device, policy.underlay if policy.direct else None):
        if way is not None:
            found += _containers(policy, way, bridge)
    return tuple(found)


def _tunnel(policy: Policy) -> Iterable[Kind]:
    if policy.port is None or policy.underlay is None:
        return
    family, by, port = policy.network.version, policy.underlay, policy.port
    host = None if policy.host is None else ip_network(policy.host)
    states = _NEW | {"established"} if policy.answered else _NEW
    words = {Of.PROTOCOL: frozenset(("udp",)), Of.STATUS: _NOT_TRANSLATED}
    tracked = words | {Of.STATE: states}
    coming = tracked | {Of.TYPE: frozenset(("local",))}
    yield Kind("ingress", family, False, at=by, came_by=by, destination=host, port=port, words=words)
    for hook in ("prerouting", "input"):
        yield Kind(hook, family, False, came_by=by, destination=host, port=port, words=coming)
    for hook in ("output", "postrouting"):
        yield Kind(hook, family, False, leaves_by=by, source=host, port=port, words=tracked)
    yield Kind("egress", family, False, at=by, leaves_by=by, source=host, port=port, words=words)


def _containers(policy: Policy, way: str, bridge: str | None) -> Iterable[Kind]:
    family, network, subnet = policy.network.version, policy.network, policy.subnet
    words = {Of.STATE: _NEW, Of.STATUS: _NOT_TRANSLATED, Of.TYPE: frozenset(("unicast",))}
    for came, leaves, source, destination in ((way, bridge, network, subnet), (bridge, way, subnet, network)):
        plain = Kind("", family, True, source=source, destination=destination)
        tracked = replace(plain, words=words)
        if came is not None:
            yield replace(plain, hook="ingress", at=came, came_by=came)
        yield replace(tracked, hook="prerouting", came_by=came)
        yield replace(tracked, hook="forward", came_by=came, leaves_by=leaves)
        yield replace(tracked, hook="postrouting", leaves_by=leaves)
        if leaves is not None:
            yield replace(plain, hook="egress", at=leaves, leaves_by=leaves)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What drops packets of ours and is not ours to change: `by` whom, and what the operator can `do`."""

    by: str
    do: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a drop was found: a table of nftables (`tool` nft) or of an iptables (`tool` is its command)."""

    tool: str
    family: str
    table: str
    managed_by: str = ""

    def obstacle(self, drop: Drop, text: str, policies: Iterable[Policy]) -> Obstacle:
        """Say what drops, `text` being the rule in the tool's words, and what to do about it."""
        rule = text if drop.rule is not None else "its policy, drop"
        table = f"{self.family} {self.table}" if self.tool == "nft" else self.table
        shown = rule if self.tool == "nft" or drop.rule is None else f"-A {drop.chain} {rule}"
        where = f"{self.tool}, table {table}, chain {drop.chain}: {shown}"
        narrow = drop.kind.destination not in (None, *(each for p in policies for each in (p.subnet, p.network)))
        if drop.kind.inside and narrow and self.table in ("raw", dockerbridges.TABLE):
            where += " (Docker has one such for each container)"
        return Obstacle(where, self._do(drop, list(policies)))

    def _do(self, drop: Drop, policies: list[Policy]) -> str:
        kind, port = drop.kind, drop.kind.port
        if self.table == dockerbridges.TABLE:
            return dockerbridges.REMEDY
        if not kind.inside and self.managed_by == "firewalld":
            zone = f"--zone=$(firewall-cmd --get-zone-of-interface={kind.came_by or kind.leaves_by})"
            return f"firewall-cmd --permanent {zone} --add-port={port}/udp && firewall-cmd --reload"
        if not kind.inside and self.managed_by == "ufw" and kind.hook == "input":
            return f"ufw allow proto udp to any port {port}"
        return "; ".join(self._accepts(drop, next(p for p in policies if p.network.version == kind.family)))

    def _accepts(self, drop: Drop, policy: Policy) -> list[str]:
        """Write commands that let packets pass before anything else is asked in that base chain."""
        kind = drop.kind
        came, leaves = (None, None) if kind.at is not None else (kind.came_by, kind.leaves_by)
        if not kind.inside:
            return [self._accept(drop, (came, leaves, None, None, kind.port))]
        if kind.hook == "forward":
            ways = ((policy.network, None), (None, policy.network))
            return [self._accept(drop, (None, None, source, destination, None)) for source, destination in ways]
        inward = kind.destination is not None and kind.destination.subnet_of(policy.subnet)  # type: ignore[arg-type]
        source, destination = (None, policy.subnet) if inward else (policy.subnet, policy.network)
        return [self._accept(drop, (came, leaves, source, destination, None))]

    def _accept(self, drop: Drop, asked: tuple[object, ...]) -> str:
        """Write one: interfaces in and out, source, destination and port are asked for, if they are not None."""
        if self.tool == "nft":
            ip = FAMILIES[drop.kind.family]
            words = ("iifname", "oifname", f"{ip} saddr", f"{ip} daddr", "udp dport")
            begin, end = f"nft insert rule {self.family} {self.table} {drop.base.chain}", "accept"
        else:
            words = ("-i", "-o", "-s", "-d", "-p udp --dport")
            command = self.tool if self.table == "filter" else f"{self.tool} -t {self.table}"
            begin, end = f"{command} -I {drop.base.chain}", "-j ACCEPT"
        shown = (f"{word} {value}" for word, value in zip(words, asked, strict=True) if value is not None)
        return " ".join([begin, *shown, end])
