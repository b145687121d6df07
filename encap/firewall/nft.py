"""The rules in nftables: one table of ours for each address family, replaced in one transaction.

    table ip flanneld-py                                                                         and ip6 likewise
      chain postrouting     masquerade
      chain forward         what is to be dropped, where it is no iptables that does it
      chain docker-mark     what Docker's nftables backend is to let pass (dockerbridges.py)
      chain tunnel-port     no container speaks to the hosts' tunnel; also where all else is in iptables

    survey    nft list chains               which tables there are, and whose chains packets go through
    ensure    nft list table -> compare -> nft -f -: old table out, new one in, at once -> leftovers out

Nothing outside our tables is written, and flannel's two (flannel-ipv4, flannel-ipv6) are removed once ours are in
force. No accept for forwarded packets stands here: an accept in one table does not keep another table from dropping, so
they go where the drop is (iptables.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flanneld_py.encap.firewall import dockerbridges
from flanneld_py.encap.firewall.policy import KUBE_MARK, In, Match, Network, NotIn, Rule, Rules, Verdict
from flanneld_py.encap.firewall.ruleset import Base
from flanneld_py.encap.firewall.tools import FirewallError, Tools

FAMILIES = {4: "ip", 6: "ip6"}
OURS = "flanneld-py"
FLANNELS = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))

IPTABLES_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
"""By these a table of iptables is told from an operator's own that is called `filter` or `nat` as well."""

_VERDICTS = {
    Verdict.RETURN: "return",
    Verdict.ACCEPT: "accept",
    Verdict.DROP: "drop",
    Verdict.MASQUERADE: "masquerade",
    Verdict.MASQUERADE_RANDOM: "masquerade fully-random",
}

_EMPTY = re.compile(r"table \w+ \w+ \{ chain (\w+) \{ type \w+ hook \w+ priority \w+; policy accept; \} \}")

TableName = tuple[str, str]
"""Family and name, as in `table ip nat`."""

WHILE_FIREWALLD_RELOADS = "firewalld_policy_drop"
"""What firewalld puts before its own table for the moment in which that is made anew; nobody's to write to."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is in nftables, ours and everybody's."""

    tables: frozenset[TableName] = frozenset()
    bases: Mapping[TableName, tuple[Base, ...]] = field(default_factory=dict)
    of_iptables: frozenset[TableName] = frozenset()
    with_nat: frozenset[TableName] = frozenset()

    def iptables(self, family: int) -> frozenset[str]:
        """Name the tables of iptables-nft that exist for a family and tell that the host uses it: raw may be ours."""
        kind = FAMILIES[family]
        return frozenset(name for name in ("filter", "nat") if (kind, name) in self.of_iptables)

    def has_docker(self, family: int) -> bool:
        """Tell whether Docker has a table of its own."""
        return (FAMILIES[family], dockerbridges.TABLE) in self.tables

    def has_raw(self, family: int) -> bool:
        """Tell whether iptables-nft has the table raw."""
        return (FAMILIES[family], "raw") in self.of_iptables


def read_survey(text: str) -> Survey:
    """Read `nft list chains`."""
    tables: list[TableName] = []
    of_iptables: set[TableName] = set()
    with_nat: set[TableName] = set()
    bases: dict[TableName, tuple[Base, ...]] = {}
    chain = ""
    for line in text.splitlines():
        match line.split():
            case ["table", family, name, "{"]:
                tables.append((family, name))
            case ["chain", name, "{"]:
                chain = name
                if name in IPTABLES_CHAINS:
                    of_iptables.add(tables[-1])
            case ["type", "nat", "hook", "postrouting", *_]:
                with_nat.add(tables[-1])
            case ["type", "filter" | "route", "hook", hook, *_]:
                devices = re.search(r"devices? (?:= )?(\{[^}]*\}|\S+) priority", line)
                names = frozenset(re.findall(r'[^\s{},"]+', devices[1])) if devices else frozenset()
                base = Base(chain, hook, "policy drop" in line, names)
                bases[tables[-1]] = (*bases.get(tables[-1], ()), base)
    return Survey(frozenset(tables), bases, frozenset(of_iptables), frozenset(with_nat))


HOOKS = {
    "postrouting": "nat hook postrouting priority srcnat",
    "forward": "filter hook forward priority filter",
    "docker-mark": "filter hook prerouting priority -350",
    "tunnel-port": "filter hook prerouting priority raw",
}
"""The chains of our tables. What is marked is so before Docker looks, at -300 (raw)."""


def table_text(rules: Rules, name: str) -> str:
    """Write a family's rules as nft lists them; nothing without any."""
    family = FAMILIES[rules.family]
    chains = {
        "postrouting": [_rule(rule, family) for rule in rules.masquerade],
        "forward": [_rule(rule, family) for rule in rules.closed],
        "docker-mark": _marks(rules, family),
        "tunnel-port": [_rule(rule, family) for rule in rules.tunnel],
    }
    lines = []
    for chain, found in chains.items():
        if found:
            head = [f"\tchain {chain} {{", f"\t\ttype {HOOKS[chain]}; policy accept;"]
            lines += [*head, *(f"\t\t{rule}" for rule in found), "\t}"]
    return "\n".join([f"table {family} {name} {{", *lines, "}"]) + "\n" if lines else ""


def _marks(rules: Rules, family: str) -> list[str]:
    """Mark what Docker is to accept, and drop what it would drop if it were not told to leave that to others."""
    if not rules.raw:
        return []
    mark = f"meta mark set meta mark | 0x{dockerbridges.MARK:08x} accept"
    found = [_rule(rule, family, mark if rule.verdict is Verdict.ACCEPT else "") for rule in rules.raw]
    if rules.underlay is not None:
        found.append(f'iifname "{rules.underlay}" {family} daddr {rules.subnet} fib daddr type != local drop')
    return found


def _rule(rule: Rule, family: str, verdict: str = "") -> str:
    mark = [f"meta mark & 0x{KUBE_MARK:08x} == 0x{KUBE_MARK:08x}"] if rule.marked else []
    ways = [
        f'{which} "{interface}"'
        for which, interface in (("iifname", rule.came_by), ("oifname", rule.leaves_by))
        if interface is not None
    ]
    source = [f"{family} saddr {_side(rule.source)}"] if rule.source else []
    destination = [f"{family} daddr {_side(rule.destination)}"] if rule.destination else []
    port = [f"udp dport {rule.port}"] if rule.port is not None else []
    return " ".join([*mark, *ways, *source, *destination, *port, verdict or _VERDICTS[rule.verdict]])


def _side(side: Match) -> str:
    network = side.network
    # A single address is listed without its length.
    shown = str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
    match side:
        case In():
            return shown
        case NotIn():
            return f"!= {shown}"


class Nft:
    """Our tables; `suffix` tells the tables of several networks on one host apart."""

    def __init__(self, tools: Tools, suffix: str = "") -> None:
        self._tools = tools
        self._name = OURS + suffix
        self._leftovers = () if suffix else FLANNELS
        self._listed: dict[str, str] = {}

    async def survey(self) -> Survey:
        """Look at what there is. Raises FirewallError."""
        return read_survey(await self._tools.run("nft", "list", "chains"))

    def ours(self, survey: Survey) -> bool:
        """Tell whether a table of ours masquerades."""
        return any(name == self._name for _, name in survey.with_nat)

    async def ensure(self, wanted: Sequence[Rules], survey: Survey) -> bool:
        """Bring our tables to what is wanted, then remove flannel's; tell whether ours changed. Raises FirewallError.

        All changes of our tables are one transaction: until it is complete, the old rules are in force.
        """
        texts = {FAMILIES[rules.family]: table_text(rules, self._name) for rules in wanted}
        script = ""
        for family in FAMILIES.values():
            there = (family, self._name) in survey.tables
            text = texts.get(family, "")
            if there and not text:
                script += f"delete table {family} {self._name}\n"
            elif text and not (there and self._same(text, await self._list(family))):
                # Added first, because deleting what is not there is an error.
                script += f"add table {family} {self._name}\ndelete table {family} {self._name}\n{text}"
        if script:
            await self._tools.run("nft", "-f", "-", stdin=script)
            for family, text in texts.items():
                if text:
                    self._learn(text, await self._list(family))
        left = sorted(survey.tables.intersection(self._leftovers))
        if left:
            await self._tools.run("nft", "-f", "-", stdin="".join(f"delete table {f} {n}\n" for f, n in left))
        return bool(script)

    async def remove(self, survey: Survey) -> bool:
        """Remove our tables, of whatever network; tell whether there were any. Raises FirewallError."""
        ours = sorted((family, name) for family, name in survey.tables if name == OURS or name.startswith(f"{OURS}-"))
        if ours:
            await self._tools.run("nft", "-f", "-", stdin="".join(f"delete table {f} {n}\n" for f, n in ours))
        return bool(ours)

    async def remove_former(self, survey: Survey, subnets: Collection[Network], living: Collection[str]) -> bool:
        """Remove our tables of other suffixes, but for `living` ones, that are about these subnets.

        Tell whether there were any. Raises FirewallError.
        """
        keep = {self._name, *(OURS + suffix for suffix in living)}
        script = ""
        for family, name in sorted(survey.tables):
            if name not in keep and (name == OURS or name.startswith(f"{OURS}-")):
                listed = await self._list(family, name)
                if any(f" {subnet} " in listed for subnet in subnets):
                    script += f"delete table {family} {name}\n"
        if script:
            await self._tools.run("nft", "-f", "-", stdin=script)
        return bool(script)

    async def remove_empty(self, family: int, table: str) -> None:
        """Remove a table of iptables that has nothing in it but a chain without rules. Raises FirewallError."""
        kind = FAMILIES[family]
        found = _EMPTY.fullmatch(_plain(await self._list(kind, table)))
        if found is not None:
            # If somebody writes into the chain meanwhile, it cannot be deleted, and so the table is not.
            script = f"delete chain {kind} {table} {found[1]}\ndelete table {kind} {table}\n"
            await self._tools.run("nft", "-f", "-", stdin=script)

    async def _list(self, family: str, table: str = "") -> str:
        try:
            return await self._tools.run("nft", "-s", "list", "table", family, table or self._name)
        except FirewallError as error:
            if "No such file or directory" in str(error):
                return ""
            raise

    def _same(self, text: str, listed: str) -> bool:
        return _plain(listed) in (_plain(text), self._listed.get(text))

    def _learn(self, text: str, listed: str) -> None:
        """Remember how this nft lists what we wrote: another version may say the same in other words."""
        if listed.count("\n") == text.count("\n"):
            self._listed = {text: _plain(listed)} | {t: seen for t, seen in self._listed.items() if t != text}


def _plain(listed: str) -> str:
    return re.sub(r"\s+", " ", listed).strip()
