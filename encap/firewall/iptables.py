"""One of the host's iptables: our chains (chains.py) brought into it by its commands.

save -> plan -> restore --noflush: each table in one transaction
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from flanneld_py.encap.firewall.chains import (
    Part,
    Table,
    former_suffixes,
    forward_part,
    has_flannels,
    masquerade_part,
    plan,
    raw_part,
    read_save,
    removal,
    rule_text,
    transaction,
)
from flanneld_py.encap.firewall.policy import Network, Rule
from flanneld_py.encap.firewall.tools import FirewallError, Tools

COMMANDS = {4: "iptables", 6: "ip6tables"}
LOCK_SECONDS = 5


class Iptables:
    """One of the host's iptables (`command` is `iptables`, `ip6tables-legacy` ...) with our chains in it."""

    def __init__(self, tools: Tools, command: str, suffix: str = "") -> None:
        self.command = command
        self._tools = tools
        self._suffix = suffix
        self._known: dict[str, tuple[list[str], list[str]]] = {}
        self._waits: bool | None = None
        self._saw_flannels = False

    async def ensure(self, masquerade: Sequence[Rule] | None, forward: Sequence[Rule]) -> bool:
        """Bring our chains to these rules; tell whether they changed. Raises FirewallError.

        No rules: no chain. None: that chain is left as it is.
        """
        parts = {masquerade_part(self._suffix): masquerade, forward_part(self._suffix): forward}
        return await self._bring({part: rules for part, rules in parts.items() if rules is not None})

    async def ensure_raw(self, rules: Sequence[Rule], subnet: Network | None = None) -> bool:
        """Bring our chain in the table `raw` to these rules; tell whether it changed. Raises FirewallError.

        No rules: no chain. What another device of ours had there for the same subnet goes.
        """
        own = raw_part(self._suffix, subnet)
        if not await self._bring({own: rules}):
            return False
        table = (await self._read()).get(own.table, Table())
        table.chains.pop(own.chain, None)
        await self._restore(removal(table, own, f"-d {subnet} "))
        return True

    def take_flannels(self) -> bool:
        """Tell whether rules of flannel's own daemon were there, since this was asked last."""
        seen, self._saw_flannels = self._saw_flannels, False
        return seen

    async def _bring(self, parts: Mapping[Part, Sequence[Rule]]) -> bool:
        await self._ask_version()
        wanted = [(part, [self._text(rule, part.label) for rule in rules]) for part, rules in parts.items()]
        saved = await self._read()
        self._saw_flannels |= any(has_flannels(table) for table in saved.values())
        if not await self._restore(self._script(wanted, saved)):
            return False
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
        saved = await self._read()
        parts = (masquerade_part(""), forward_part(""), raw_part(""))
        return await self._restore("".join(removal(saved.get(part.table, Table()), part) for part in parts))

    async def remove_former(self, pairs: Collection[tuple[Network, Network]], living: Collection[str]) -> bool:
        """Remove our chains of other suffixes, but for `living` ones, that are about these (network, subnet) pairs.

        Tell whether there were any. Raises FirewallError.
        """
        saved = await self._read()
        script = ""
        for suffix in former_suffixes(saved, pairs) - {self._suffix, *living}:
            for part in (masquerade_part(suffix), forward_part(suffix), raw_part(suffix)):
                script += transaction(part.table, plan(saved.get(part.table, Table()), part, [], []))
        return await self._restore(script)

    async def _ask_version(self) -> None:
        if self._waits is None:
            version = await version_of(self._tools, self.command)
            self._waits = version >= (1, 6, 2)  # Of the same age: --random-fully, and --wait for restore.

    async def _restore(self, script: str) -> bool:
        """Do what a script says; tell whether that is anything at all."""
        if script:
            await self._ask_version()
            wait = [f"--wait={LOCK_SECONDS}"] if self._waits else []
            await self._tools.run(f"{self.command}-restore", "--noflush", *wait, stdin=script)
        return bool(script)

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
            script += transaction(part.table, lines)
        return script

    def _text(self, rule: Rule, label: str) -> str:
        text = rule_text(rule, label)
        return text if self._waits else text.removesuffix(" --random-fully")

    async def _read(self) -> dict[str, Table]:
        return read_save(await self._tools.run(f"{self.command}-save"))  # Asked for one table, it may make it.


async def version_of(tools: Tools, command: str) -> tuple[int, ...]:
    """Ask an iptables for its version. Raises FirewallError."""
    said = await tools.run(command, "--version")
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (1, 0, 0)


async def is_legacy(tools: Tools, command: str) -> bool:
    """Tell whether an iptables keeps its rules apart from nftables. Raises FirewallError."""
    return "nf_tables" not in await tools.run(command, "--version")
