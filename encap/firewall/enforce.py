"""Which packet filters the host has, which of them carries our rules, and in which order they are brought there.

    masquerade   one place: our nftables table, or our chain in the host's iptables
    forward      every iptables in use (nft's, legacy's): each of them can drop, and none can overrule another
    raw          likewise; in legacy iptables only where somebody has made that table
    tunnel       our nftables table, whatever carries the rest; a host without nft: raw
    mark         our nftables table, where Docker has one of its own

    enforce:  survey -> ours in force -> then only: what is left in the other one, and flannel's, removed

An iptables is in use if its tables exist; one that is not is left so. What drops our packets elsewhere cannot be
overruled by any rule of ours: `obstacles` names it (audit.py), with what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flanneld_py.encap.firewall import flows
from flanneld_py.encap.firewall.audit import Dropped
from flanneld_py.encap.firewall.chains import RAW
from flanneld_py.encap.firewall.iptables import COMMANDS, Iptables, is_legacy
from flanneld_py.encap.firewall.nft import FAMILIES, FLANNELS, Nft, Survey
from flanneld_py.encap.firewall.policy import Network, Policy, Rule, Rules, rules
from flanneld_py.encap.firewall.steps import Work
from flanneld_py.encap.firewall.tools import FirewallError, Tools
from flanneld_py.encap.firewall.traffic import Obstacle

Asked = Literal["auto", "nftables", "iptables", "none"]
"""`--firewall`."""


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """Where masquerade rules go, and why there."""

    kind: Literal["nftables", "iptables"]
    why: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one try. `failures` are the reasons of what was not done; all else was.

    `lacking` are the reasons why the table raw is not as it should be, without which most hosts do well. `flannels`:
    there were rules of flannel's own daemon.
    """

    changed: bool
    failures: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    flannels: bool = False


@dataclass(frozen=True, slots=True)
class _Variant:
    """An iptables of the host: `main` is the one that the plain command means."""

    infix: str
    legacy: bool
    main: bool


class Enforcer:
    """The packet filters of this host. `suffix` tells several networks on one host apart.

    `proc` is where the kernel lists legacy iptables' tables for our network namespace.
    """

    def __init__(
        self, tools: Tools, asked: Asked, suffix: str, *, prefer_nft: bool, proc: Path = Path("/proc/thread-self/net")
    ) -> None:
        self._tools = tools
        self._asked = asked
        self._suffix = suffix
        self._prefer_nft = prefer_nft
        self._proc = proc
        self._nft = Nft(tools, suffix) if tools.has("nft") else None
        self._dropped = Dropped(tools)
        self._variants: tuple[_Variant, ...] = ()
        self._iptables: dict[tuple[int, str], Iptables] = {}

    async def choose(self) -> FilterChoice | None:
        """Find out what the host has and choose; None if it has neither. Raises FirewallError."""
        self._variants = await self._find_variants()
        survey = await self._survey()
        return choose(
            self._asked,
            nft=self._nft is not None,
            iptables=bool(self._variants),
            ours_in_nft=self._nft is not None and self._nft.ours(survey),
            iptables_in_use=any(self._legacy(family) or survey.iptables(family) for family in COMMANDS),
            prefer_nft=self._prefer_nft,
        )

    def unwatched(self) -> bool:
        """Tell whether legacy iptables is in use, whose changes no event tells."""
        return any(self._legacy(family) for family in COMMANDS)

    async def enforce(self, choice: FilterChoice, policies: Sequence[Policy]) -> Outcome:
        """Bring the host to what the policies (one for each family) say. Idempotent."""
        try:
            survey = await self._survey()
        except FirewallError as error:
            return Outcome(False, (str(error),))
        work = Work()
        wanted = [rules(policy) for policy in policies]
        in_nft = [_in_nft_table(each, survey, alone=choice.kind == "nftables") for each in wanted]
        if choice.kind == "nftables":
            assert self._nft is not None
            await work.attempt(self._nft.ensure(in_nft, survey))
        for each in wanted:
            for variant in self._variants:
                here = choice.kind == "iptables" and variant.main
                in_use = self._tables(each.family, variant, survey)
                if here or in_use:
                    forward = each.forward if here or "filter" in in_use else ()
                    # What masquerades elsewhere goes only once this is in force.
                    masquerade = each.masquerade if here else None if work.failures else ()
                    await work.attempt(self._chains(each.family, variant.infix).ensure(masquerade, forward))
                    tunnel = each.tunnel if self._nft is None else ()  # Else it is in our nftables table.
                    raw, make = (*tunnel, *each.raw), here and bool(tunnel)
                    await work.attempt_raw(self._ensure_raw(each.family, variant, raw, each.subnet, make=make))
        await self._sweep({each.family for each in wanted}, survey, work)
        if choice.kind == "iptables" and self._nft is not None and not work.failures:
            await work.attempt(self._nft.ensure(in_nft, survey))
        seen = [each.take_flannels() for each in self._iptables.values()]
        flannels = any(seen) or not survey.tables.isdisjoint(FLANNELS)
        return Outcome(work.changed, tuple(work.failures), tuple(work.lacking), flannels)

    async def begin_anew(self, policies: Sequence[Policy], pause: flows.Pause) -> int:
        """Have flows that began without our masquerade begin anew; return how many."""
        return await flows.begin_anew(policies, pause)

    async def obstacles(self, policies: Sequence[Policy]) -> tuple[Obstacle, ...]:
        """Name what drops packets of ours and is not ours to change."""
        try:
            survey = await self._survey()
        except FirewallError:
            return ()
        in_use = [
            (family, COMMANDS[family] + variant.infix, variant.legacy)
            for family in {policy.network.version for policy in policies}
            for variant in self._variants
            if self._has_any(family, variant, survey) and self._tools.has(f"{COMMANDS[family]}{variant.infix}-save")
        ]
        return await self._dropped.look(policies, survey, in_use)

    async def remove(self) -> Outcome:
        """Remove our tables and chains, of every network, from every packet filter that the host has; nothing else."""
        work = Work()
        try:
            self._variants = await self._find_variants()
            survey = await self._survey()
        except FirewallError as error:
            return Outcome(False, (str(error),))
        if self._nft is not None:
            await work.attempt(self._nft.remove(survey))
        for family in COMMANDS:
            for variant in self._variants:
                if self._in_use(family, variant, survey):
                    await work.attempt(self._remove(family, variant))
        return Outcome(work.changed, tuple(work.failures))

    async def remove_former(self, pairs: Collection[tuple[Network, Network]], living: Collection[str]) -> Outcome:
        """Remove rules about (network, subnet) pairs under suffixes that are not ours and of no `living` agent."""
        work = Work()
        try:
            survey = await self._survey()
        except FirewallError as error:
            return Outcome(False, (str(error),))
        if self._nft is not None:
            await work.attempt(self._nft.remove_former(survey, [subnet for _, subnet in pairs], living))
        for family in COMMANDS:
            for variant in self._variants:
                if self._in_use(family, variant, survey):
                    await work.attempt(self._chains(family, variant.infix).remove_former(pairs, living))
        return Outcome(work.changed, tuple(work.failures))

    async def _remove(self, family: int, variant: _Variant) -> bool:
        changed = await self._chains(family, variant.infix).remove()
        if changed and not variant.legacy:
            await self._remove_empty_raw(family)
        return changed

    async def _sweep(self, families: Collection[int], survey: Survey, work: Work) -> None:
        """Remove our chains of a family that was turned off."""
        for family in COMMANDS.keys() - families:
            for variant in self._variants:
                if not work.failures and self._in_use(family, variant, survey):
                    await work.attempt(self._chains(family, variant.infix).ensure((), ()))
                    await work.attempt_raw(self._ensure_raw(family, variant, ()))

    async def _ensure_raw(
        self,
        family: int,
        variant: _Variant,
        rules: Sequence[Rule],
        subnet: Network | None = None,
        *,
        make: bool = False,
    ) -> bool:
        if variant.legacy and RAW not in self._legacy(family) and not make:
            return False
        changed = await self._chains(family, variant.infix).ensure_raw(rules, subnet)
        if changed and not rules and not variant.legacy:
            await self._remove_empty_raw(family)
        return changed

    async def _remove_empty_raw(self, family: int) -> None:
        """Leave no table behind that nobody else needs: iptables cannot delete one."""
        if self._nft is not None:
            await self._nft.remove_empty(family, RAW)

    def _in_use(self, family: int, variant: _Variant, survey: Survey) -> bool:
        """Tell whether something of ours may be in a kind of iptables."""
        there = self._tables(family, variant, survey) or (not variant.legacy and survey.has_raw(family))
        return bool(there) and self._tools.has(f"{COMMANDS[family]}{variant.infix}-save")

    def _has_any(self, family: int, variant: _Variant, survey: Survey) -> bool:
        """Tell whether a kind of iptables has any table at all, and asking for its rules makes none."""
        if variant.legacy or self._nft is None:
            return bool(self._tables(family, variant, survey))
        return any(kind == FAMILIES[family] for kind, _ in survey.of_iptables)

    def _tables(self, family: int, variant: _Variant, survey: Survey) -> frozenset[str]:
        """Name the tables that a kind of iptables has: it is in use if there are any."""
        return self._legacy(family) if variant.legacy else self._in_nft(family, survey)

    async def _find_variants(self) -> tuple[_Variant, ...]:
        """List the host's kinds of iptables, at most one of nft's and one legacy."""
        found: list[_Variant] = []
        for infix in ("", "-nft", "-legacy"):
            command = f"iptables{infix}"
            if all(self._tools.has(each) for each in (command, f"{command}-save", f"{command}-restore")):
                legacy = await is_legacy(self._tools, command)
                if legacy not in [variant.legacy for variant in found]:
                    found.append(_Variant(infix, legacy, main=not found))
        return tuple(found)

    async def _survey(self) -> Survey:
        return Survey() if self._nft is None else await self._nft.survey()

    def _chains(self, family: int, infix: str) -> Iptables:
        command = COMMANDS[family] + infix
        return self._iptables.setdefault((family, infix), Iptables(self._tools, command, self._suffix))

    def _legacy(self, family: int) -> frozenset[str]:
        """Name legacy iptables' tables that exist: asking the tool itself would make them."""
        try:
            return frozenset((self._proc / f"{FAMILIES[family]}_tables_names").read_text(encoding="ascii").split())
        except OSError:  # The kernel has no legacy iptables, or it is not loaded.
            return frozenset()

    def _in_nft(self, family: int, survey: Survey) -> frozenset[str]:
        # Without nft nobody can tell, but then iptables is all that can be there.
        return frozenset(("filter", "nat")) if self._nft is None else survey.iptables(family)


def _in_nft_table(wanted: Rules, survey: Survey, *, alone: bool) -> Rules:
    """Return what of a family's rules stands in our nftables table; `alone`: masquerade as well, and no iptables'."""
    marked = wanted.raw if survey.has_docker(wanted.family) else ()
    rest = (wanted.masquerade, wanted.closed) if alone else ((), ())
    return replace(wanted, masquerade=rest[0], closed=rest[1], raw=marked)


def choose(
    asked: Asked, *, nft: bool, iptables: bool, ours_in_nft: bool, iptables_in_use: bool, prefer_nft: bool
) -> FilterChoice | None:
    """Choose where masquerade rules go, None if there is no tool for it: with the rules that the host has already."""
    match asked:
        case "nftables":
            return FilterChoice("nftables", "as asked for") if nft else None
        case "iptables":
            return FilterChoice("iptables", "as asked for") if iptables else None
        case "none":
            return None
    if not nft:
        return FilterChoice("iptables", "nft is not installed") if iptables else None
    if not iptables:
        return FilterChoice("nftables", "iptables is not installed")
    if prefer_nft:
        return FilterChoice("nftables", "EnableNFTables in the network config")
    if ours_in_nft:
        return FilterChoice("nftables", "our rules are there already")
    if iptables_in_use:
        return FilterChoice("iptables", "the host has iptables rules")
    return FilterChoice("nftables", "the host has no iptables rules")
