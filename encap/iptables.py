"""The rules in iptables: chains of our own (flannel's names), and one jump to each from where packets pass.

    nat     POSTROUTING             -j FLANNEL-POSTRTG     masquerade
    filter  DOCKER-USER or FORWARD  -j FLANNEL-FWD         accept

    save -> plan (pure) -> restore --noflush: each table in one transaction

A jump comes after everybody's special rules, and before whatever ends the chain for all packets (a bare DROP, REJECT,
RETURN): where flannel puts it, at the end, unless nothing would get there. Docker drops in chains of its own, so where
it has made its chain for others, DOCKER-USER, ours is in there. A chain's policy (DROP, with Docker) comes last anyway.

Nobody else's rule is written: `plan` makes, fills and deletes our chains, and the jumps to them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from flanneld_py.encap.command import FirewallError, Tools
from flanneld_py.encap.firewall import KUBE_MARK, In, Match, NotIn, Rule, Verdict

COMMANDS = {4: "iptables", 6: "ip6tables"}
LOCK_SECONDS = 5
DOCKERS = "DOCKER-USER"

_VERDICTS = {
    Verdict.RETURN: "RETURN",
    Verdict.ACCEPT: "ACCEPT",
    Verdict.MASQUERADE: "MASQUERADE",
    Verdict.MASQUERADE_RANDOM: "MASQUERADE --random-fully",
}
_ENDS = ("ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "SNAT", "NETMAP")


@dataclass(slots=True)
class Table:
    """A table as saved: chain -> its rules, each without `-A <chain>`. `readable` False: not in this tool's terms."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """One chain of ours: the table it is in, the chain that it hangs in, what its rules are labelled with.

    The name is flannel's, so that what its daemon left is taken over; the label tells whose the rules are now.
    """

    table: str
    chain: str
    parent: str
    label: str


def masquerade_part(suffix: str) -> Part:
    """Return the chain for masquerade rules; `suffix` tells several networks on one host apart."""
    return Part("nat", f"FLANNEL-POSTRTG{suffix}", "POSTROUTING", "flanneld-py masq")


def forward_part(suffix: str) -> Part:
    """Return the chain for forward rules."""
    return Part("filter", f"FLANNEL-FWD{suffix}", "FORWARD", "flanneld-py forward")


def read_save(text: str) -> dict[str, Table]:
    """Read what iptables-save prints: table -> chains -> rules."""
    tables: dict[str, Table] = {}
    table = Table()
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:], Table())
        elif line.startswith(":"):
            table.chains[line[1:].partition(" ")[0]] = []
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            table.chains.setdefault(chain, []).append(rule)
        elif found := re.match(r"# Table `(\w+)' is incompatible", line):
            tables[found[1]] = Table(readable=False)
    return tables


def rule_text(rule: Rule, label: str) -> str:
    """Write a rule as iptables-save prints it."""
    mark = [f"-m mark --mark 0x{KUBE_MARK:x}/0x{KUBE_MARK:x}"] if rule.marked else []
    sides = [_side("-s", rule.source), _side("-d", rule.destination)]
    comment = f'-m comment --comment "{label}"'
    return " ".join([*filter(None, sides), *mark, comment, f"-j {_VERDICTS[rule.verdict]}"])


def _side(option: str, side: Match | None) -> str:
    match side:
        case In(network):
            return f"{option} {network}"
        case NotIn(network):
            return f"! {option} {network}"
        case None:
            return ""


def plan(table: Table, part: Part, rules: list[str], known: list[str]) -> list[str]:
    """Return the lines for iptables-restore that make our chain and its jump right; none if they are.

    No rules: no chain. `known` is how this tool prints the rules, which may differ from `rules`.
    """
    chains, own = table.chains, part.chain
    jumps = [(chain, rule) for chain, found in chains.items() for rule in found if target(rule) == own]
    delete_jumps = [f"-D {chain} {rule}" for chain, rule in jumps]
    if not rules:
        return [f":{own} - [0:0]", *delete_jumps, f"-X {own}"] if own in chains else []
    parent = DOCKERS if part.parent == "FORWARD" and _has_dockers(chains) else part.parent
    others = [rule for rule in chains.get(parent, ()) if target(rule) != own]
    place = end(chains, others)
    lines = []
    if own not in chains or chains[own] not in (rules, known):
        lines = [f":{own} - [0:0]", *(f"-A {own} {rule}" for rule in rules)]
    placed = [chains[parent].index(rule) for chain, rule in jumps if chain == parent]
    if len(jumps) != 1 or not placed or placed[0] > place:
        jump = f'-m comment --comment "{part.label}" -j {own}'
        at = f"-I {parent} {place + 1}" if place < len(others) else f"-A {parent}"
        lines += [*delete_jumps, f"{at} {jump}"]
    return lines


def end(chains: Mapping[str, Sequence[str]], rules: Sequence[str]) -> int:
    """Return the index of the first rule behind which no packet gets; their number, if there is none such."""
    for index, rule in enumerate(rules):
        words = _bare(rule)
        if not words or words[0] not in ("-j", "-g"):
            continue
        if words[0] == "-g" or words[1] in _ENDS or _swallows(chains, words[1]):
            return index
    return len(rules)


def _swallows(chains: Mapping[str, Sequence[str]], chain: str) -> bool:
    """Tell whether a chain of somebody's lets no packet come back."""
    rules = chains.get(chain, ())
    last = end(chains, rules)
    return last < len(rules) and "RETURN" not in _bare(rules[last])


def _has_dockers(chains: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether forwarded packets go through the chain that Docker keeps for rules of others."""
    forward = chains.get("FORWARD", ())
    return DOCKERS in chains and any(_bare(rule) == ["-j", DOCKERS] for rule in forward[: end(chains, forward)])


def target(rule: str) -> str:
    """Return where a rule sends packets; nothing for one that only counts."""
    found = re.search(r"(?:^| )-[jg] (\S+)", rule)
    return found[1] if found else ""


def _bare(rule: str) -> list[str]:
    """Return a rule's words without its comment: a rule without conditions then begins with -j."""
    if not rule.startswith(("-j", "-g", "-m comment")):
        return []  # Most rules have conditions, and hosts have many rules.
    words = shlex.split(rule)
    while words[:2] == ["-m", "comment"]:
        del words[:4]
    return words


class Iptables:
    """One of the host's iptables (`command` is `iptables`, `ip6tables-legacy` ...) with our chains in it."""

    def __init__(self, tools: Tools, command: str, suffix: str = "") -> None:
        self.command = command
        self._tools = tools
        self._parts = (masquerade_part(suffix), forward_part(suffix))
        self._known: dict[str, tuple[list[str], list[str]]] = {}
        self._waits: bool | None = None

    async def ensure(self, masquerade: Sequence[Rule] | None, forward: Sequence[Rule]) -> bool:
        """Bring our chains to these rules; tell whether they changed. Raises FirewallError.

        No rules: no chain. None: that chain is left as it is.
        """
        await self._ask_version()
        wanted = [
            (part, [self._text(rule, part.label) for rule in rules])
            for part, rules in zip(self._parts, (masquerade, forward), strict=True)
            if rules is not None
        ]
        script = self._script(wanted, await self._read())
        if not script:
            return False
        await self._restore(script)
        saved = await self._read()
        for part, rules in wanted:
            listed = saved.get(part.table, Table()).chains.get(part.chain, [])
            if len(listed) == len(rules):
                self._known[part.chain] = (rules, listed)
        return True

    async def remove(self) -> bool:
        """Remove our chains, of whatever network, if the rules in them are ours; tell whether there were any.

        Raises FirewallError.
        """
        script, saved = "", await self._read()
        for part in (masquerade_part(""), forward_part("")):
            table = saved.get(part.table, Table())
            for chain, rules in table.chains.items():
                if chain.startswith(part.chain) and any(f'"{part.label}"' in rule for rule in rules):
                    lines = plan(table, replace(part, chain=chain), [], [])
                    script += "\n".join([f"*{part.table}", *lines, "COMMIT", ""])
        if script:
            await self._ask_version()
            await self._restore(script)
        return bool(script)

    async def _ask_version(self) -> None:
        if self._waits is None:
            version = await version_of(self._tools, self.command)
            self._waits = version >= (1, 6, 2)  # Of the same age: --random-fully, and --wait for restore.

    async def _restore(self, script: str) -> None:
        wait = [f"--wait={LOCK_SECONDS}"] if self._waits else []
        await self._tools.run(f"{self.command}-restore", "--noflush", *wait, stdin=script)

    def _script(self, wanted: Sequence[tuple[Part, list[str]]], saved: Mapping[str, Table]) -> str:
        script = ""
        for part, rules in wanted:
            table = saved.get(part.table, Table())
            if rules and not table.readable:
                raise FirewallError(
                    f"{self.command} cannot read table {part.table}: somebody filled it with nft; remove those rules"
                    f" (nft list table {'ip6' if '6' in self.command else 'ip'} {part.table}), or use --firewall none"
                )
            written, listed = self._known.get(part.chain, ([], []))
            lines = plan(table, part, rules, listed if written == rules else rules)
            if lines:
                script += "\n".join([f"*{part.table}", *lines, "COMMIT", ""])
        return script

    def _text(self, rule: Rule, label: str) -> str:
        text = rule_text(rule, label)
        return text if self._waits else text.removesuffix(" --random-fully")

    async def _read(self) -> dict[str, Table]:
        return read_save(await self._tools.run(f"{self.command}-save"))


async def version_of(tools: Tools, command: str) -> tuple[int, ...]:
    """Ask an iptables for its version. Raises FirewallError."""
    said = await tools.run(command, "--version")
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (1, 0, 0)


async def is_legacy(tools: Tools, command: str) -> bool:
    """Tell whether an iptables keeps its rules apart from nftables. Raises FirewallError."""
    return "nf_tables" not in await tools.run(command, "--version")
