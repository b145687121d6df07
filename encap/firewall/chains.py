"""The rules in iptables' words, and where they go: chains of our own (flannel's names), and one jump to each. Pure.

    nat     POSTROUTING             -j FLANNEL-POSTRTG     masquerade
    filter  DOCKER-USER or FORWARD  -j FLANNEL-FWD         accept
    raw     PREROUTING              -j FLANNEL-RAW         accept; without nft, what containers send to the tunnel: drop

A jump comes after everybody's special rules, and before whatever ends the chain for all packets (a bare DROP, REJECT,
RETURN): where flannel puts it, at the end, unless nothing would get there. Docker drops in chains of its own, so where
it has made its chain for others, DOCKER-USER, ours is in there. A chain's policy (DROP, with Docker) comes last anyway.
In raw Docker appends `-d <container> ! -i <bridge> -j DROP` for each container; the jump is before the first of these.

Nobody else's rule is written: `plan` makes, fills and deletes our chains, and the jumps to them. Not here: running the
commands (iptables.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from flanneld_py.encap.firewall.policy import KUBE_MARK, In, Match, Network, NotIn, Rule, Verdict

DOCKERS = "DOCKER-USER"
RAW = "raw"

_VERDICTS = {
    Verdict.RETURN: "RETURN",
    Verdict.ACCEPT: "ACCEPT",
    Verdict.DROP: "DROP",
    Verdict.MASQUERADE: "MASQUERADE",
    Verdict.MASQUERADE_RANDOM: "MASQUERADE --random-fully",
}
_ENDS = ("ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "SNAT", "NETMAP")


@dataclass(slots=True)
class Table:
    """A table as saved: chain -> its rules, each without `-A <chain>`. `readable` False: not in this tool's terms.

    `policies` are those of the chains that the kernel sends packets through.
    """

    chains: dict[str, list[str]] = field(default_factory=dict)
    readable: bool = True
    policies: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One chain of ours: the table it is in, the chain that it hangs in, what its rules are labelled with.

    The name is flannel's, so that what its daemon left is taken over; the label tells whose the rules are now.
    The jump goes before what keeps others than a bridge of this host from `subnet`.
    """

    table: str
    chain: str
    parent: str
    label: str
    subnet: Network | None = None


def masquerade_part(suffix: str) -> Part:
    """Return the chain for masquerade rules; `suffix` tells several networks on one host apart."""
    return Part("nat", f"FLANNEL-POSTRTG{suffix}", "POSTROUTING", "flanneld-py masq")


def forward_part(suffix: str) -> Part:
    """Return the chain for forward rules."""
    return Part("filter", f"FLANNEL-FWD{suffix}", "FORWARD", "flanneld-py forward")


def raw_part(suffix: str, subnet: Network | None = None) -> Part:
    """Return the chain for what is let through to our subnet before anything else; flannel has none such."""
    return Part(RAW, f"FLANNEL-RAW{suffix}", "PREROUTING", "flanneld-py raw", subnet)


def read_save(text: str) -> dict[str, Table]:
    """Read what iptables-save prints: table -> chains -> rules."""
    tables: dict[str, Table] = {}
    table = Table()
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:], Table())
        elif line.startswith(":"):
            chain, policy, *_ = [*line[1:].split(" "), ""]
            table.chains[chain] = []
            table.policies[chain] = policy
        elif line.startswith("-A "):
            _, chain, *rule = line.split(" ", 2)  # One that asks nothing and does nothing is its chain alone.
            table.chains.setdefault(chain, []).append("".join(rule))
        elif found := re.match(r"# Table `(\w+)' is incompatible", line):
            tables[found[1]] = Table(readable=False)
    return tables


def rule_text(rule: Rule, label: str) -> str:
    """Write a rule as iptables-save prints it."""
    mark = [f"-m mark --mark 0x{KUBE_MARK:x}/0x{KUBE_MARK:x}"] if rule.marked else []
    ways = [f"-i {rule.came_by}" if rule.came_by else "", f"-o {rule.leaves_by}" if rule.leaves_by else ""]
    sides = [_side("-s", rule.source), _side("-d", rule.destination), *ways]
    port = [f"-p udp -m udp --dport {rule.port}"] if rule.port is not None else []
    comment = f'-m comment --comment "{label}"'
    return " ".join([*filter(None, sides), *port, *mark, comment, f"-j {_VERDICTS[rule.verdict]}"])


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
    if part.subnet is not None:
        place = next((at for at, rule in enumerate(others[:place]) if keeps_out(rule, part.subnet)), place)
    lines = []
    if own not in chains or chains[own] not in (rules, known):
        lines = [f":{own} - [0:0]", *(f"-A {own} {rule}" for rule in rules)]
    placed = [chains[parent].index(rule) for chain, rule in jumps if chain == parent]
    if len(jumps) != 1 or not placed or placed[0] > place:
        jump = f'-m comment --comment "{part.label}" -j {own}'
        at = f"-I {parent} {place + 1}" if place < len(others) else f"-A {parent}"
        lines += [*delete_jumps, f"{at} {jump}"]
    return lines


def removal(table: Table, part: Part, about: str = "") -> str:
    """Return what removes our chains of a part, of whatever network; only those that say something about `about`."""
    lines = []
    for chain, rules in table.chains.items():
        said = "\n".join(rules)
        if chain.startswith(part.chain) and f'"{part.label}"' in said and about in said:
            lines += plan(table, replace(part, chain=chain), [], [])
    return transaction(part.table, lines)


def former_suffixes(saved: Mapping[str, Table], pairs: Collection[tuple[Network, Network]]) -> set[str]:
    """Find the suffixes of our chains that are about these (network, subnet) pairs of ours.

    Another network's agent may have our Network among those that it masquerades nothing to, but not our subnet.
    """
    found = set()
    about = {
        masquerade_part(""): [f"-s {subnet} " for _, subnet in pairs],
        forward_part(""): [f"-s {network} " for network, _ in pairs] + [f"-s {subnet} " for _, subnet in pairs],
        raw_part(""): [f"-d {subnet} " for _, subnet in pairs],
    }
    for part, words in about.items():
        for chain, rules in saved.get(part.table, Table()).chains.items():
            said = "\n".join(rules)
            if chain.startswith(part.chain) and f'"{part.label}"' in said and any(word in said for word in words):
                found.add(chain.removeprefix(part.chain))
    return found


def transaction(table: str, lines: Sequence[str]) -> str:
    """Write lines for iptables-restore as one change of a table; no lines, no change."""
    return "\n".join([f"*{table}", *lines, "COMMIT", ""]) if lines else ""


def end(chains: Mapping[str, Sequence[str]], rules: Sequence[str]) -> int:
    """Return the index of the first rule behind which no packet gets; their number, if there is none such."""
    for index, rule in enumerate(rules):
        words = _bare(rule)
        if not words or words[0] not in ("-j", "-g"):
            continue
        if words[0] == "-g" or words[1] in _ENDS or _swallows(chains, words[1]):
            return index
    return len(rules)


def keeps_out(rule: str, subnet: Network) -> bool:
    """Tell whether a rule drops what comes to an address of a subnet by another interface than one that it names.

    Docker's do (28.2 and later: one for each container; before that one for each published port). A rule that looks at
    who sends is somebody's own.
    """
    if " ! -i " not in rule or not rule.endswith("-j DROP") or rule.startswith(("-s ", "! -s ")):
        return False
    found = re.match(r"-d (\S+) ", rule)
    try:
        return found is not None and subnet.overlaps(ip_network(found[1]))
    except (TypeError, ValueError):  # Another family's, or not an address.
        return False


def has_flannels(table: Table) -> bool:
    """Tell whether rules of flannel's own daemon are in a table: its chains have the names of ours, its labels not.

    Its jumps are taken over as they are.
    """
    ours = (rules for chain, rules in table.chains.items() if chain.startswith("FLANNEL-"))
    return any(' --comment "flanneld ' in rule for rules in ours for rule in rules)


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
