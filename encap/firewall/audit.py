"""Look through the host's packet filters for what drops packets of the overlay and is not ours. Changes nothing.

    nft list chains (Survey) -> each table of somebody's with a base chain where ours pass: nft -j list table
    iptables-save            -> its tables but nat
    both -> drops.py -> Obstacle: which rule, and what lets our packets pass

What cannot be read is left out: the next look may.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from flanneld_py.encap.firewall import dockerbridges, nftjson, saverules
from flanneld_py.encap.firewall.chains import Table, read_save
from flanneld_py.encap.firewall.drops import Drop, Kind, drops
from flanneld_py.encap.firewall.nft import FAMILIES, FLANNELS, OURS, WHILE_FIREWALLD_RELOADS, Survey, TableName
from flanneld_py.encap.firewall.policy import Network, Policy
from flanneld_py.encap.firewall.tools import FirewallError, Tools
from flanneld_py.encap.firewall.traffic import Obstacle, Place, kinds
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.request import get_route
from flanneld_py.encap.netlink.rtsocket import RequestFailed, RouteSocket, find_link

MOST_TEXT = 4_000_000
"""Characters of one table that are looked at: reading takes some 10 ms for a million."""

MOST_MAPS = 20

FIREWALLD = "firewalld"
_OUR_CHAINS = re.compile(r"FLANNEL-(POSTRTG|FWD|RAW)")


class Dropped:
    """The look; `tools` are the host's."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def look(
        self, policies: Sequence[Policy], survey: Survey, iptables: Iterable[tuple[int, str, bool]]
    ) -> tuple[Obstacle, ...]:
        """Name what drops packets of these networks.

        `iptables` are those in use: the family, the command, and whether it keeps its rules apart from nftables.
        """
        ours = tuple(kind for policy in policies for kind in kinds(policy, bridge_of(policy.subnet)))
        found: list[Obstacle] = []
        read: set[TableName] = set()
        for family, command, legacy in iptables:
            for name, table in (await self._saved(command)).items():
                found += await self._in_iptables(Place(command, FAMILIES[family], name), table, ours, policies, legacy)
                if not legacy:
                    read.add((FAMILIES[family], name))
        for nft_table in sorted(survey.bases.keys() - read):
            if not _is_known(nft_table):
                found += await self._in_nft(nft_table, survey, ours, policies)
        for policy in policies:
            found += await self._lacking(policy, survey)
        by_remedy: dict[str, Obstacle] = {}
        for obstacle in found:
            by_remedy.setdefault(obstacle.do, obstacle)
        return tuple(by_remedy.values())

    async def _in_nft(
        self, table: TableName, survey: Survey, ours: tuple[Kind, ...], policies: Sequence[Policy]
    ) -> list[Obstacle]:
        hooks = {kind.hook for kind in ours}
        bases = tuple(base for base in survey.bases[table] if base.hook in hooks)
        if not bases or table[0] not in nftjson.FAMILIES:
            return []
        try:
            listed = await self._tools.run("nft", "-j", "-t", "list", "table", *table)
            if len(listed) > MOST_TEXT:
                return []
            items = nftjson.read_items(listed)
            maps = {}
            for name in nftjson.named_maps(items)[:MOST_MAPS]:
                one = await self._tools.run("nft", "-j", "list", "map", *table, name)
                maps[name] = nftjson.elements(nftjson.read_items(one))
            # In a thread, as long rulesets take longer than the event loop may stand still.
            found = await asyncio.to_thread(lambda: drops(nftjson.read_filter(table[0], bases, items, maps), ours))
            if table[1] == FIREWALLD:
                # Where it drops what is forwarded, its zones are told: see `_lacking`.
                found = [drop for drop in found if not drop.kind.inside]
            texts = await self._texts(table) if found else {}
        except FirewallError:  # Somebody is just changing it; or this nft has no JSON.
            return []
        if texts is None:
            return []
        place = Place("nft", *table, managed_by=table[1])
        return [place.obstacle(drop, texts.get(_name(drop), "a rule"), policies) for drop in found]

    async def _texts(self, table: TableName) -> dict[str, str] | None:
        """Return a table's rules by their handles; None if it is dormant, so that no packet passes it."""
        listed = await self._tools.run("nft", "-a", "-s", "-t", "list", "table", *table)
        if re.search(r"^\tflags .*\bdormant\b", listed, re.MULTILINE):  # Some releases' JSON shows flags wrongly.
            return None
        return {handle: rule for rule, handle in re.findall(r"^\s*(.+?) # handle (\d+)$", listed, re.MULTILINE)}

    async def _saved(self, command: str) -> dict[str, Table]:
        """Read the tables of an iptables in which packets may be dropped; without those that nft alone can show."""
        try:
            listed = await self._tools.run(f"{command}-save")
        except FirewallError:
            return {}
        tables = read_save(listed) if len(listed) <= MOST_TEXT else {}
        return {name: table for name, table in tables.items() if name != "nat" and table.readable}

    async def _in_iptables(
        self, place: Place, table: Table, ours: tuple[Kind, ...], policies: Sequence[Policy], legacy: bool
    ) -> list[Obstacle]:
        family = 4 if place.family == FAMILIES[4] else 6

        async def find(seen: saverules.Seen | None) -> list[Drop]:
            found = await asyncio.to_thread(lambda: drops(saverules.read_filter(family, table, seen), ours))
            return [drop for drop in found if not _OUR_CHAINS.match(drop.chain)]

        found = await find(None)
        if found and not legacy and self._tools.has("nft"):
            try:
                listed = await self._tools.run("nft", "-j", "-t", "list", "table", place.family, place.table)
            except FirewallError:
                return []
            found = await find(nftjson.asked(nftjson.read_items(listed)))
        managed = replace(place, managed_by="ufw" if "ufw-user-input" in table.chains else "")
        return [managed.obstacle(drop, _name(drop), policies) for drop in found]

    async def _lacking(self, policy: Policy, survey: Survey) -> list[Obstacle]:
        """Say what Docker's nftables backend and firewalld have to be told; they write their tables themselves."""
        family, network = FAMILIES[policy.network.version], str(policy.network)
        if not policy.forward:
            return []
        found = []
        try:
            if survey.has_docker(policy.network.version):
                listed = await self._tools.run("nft", "list", "table", family, dockerbridges.TABLE)
                if do := dockerbridges.advice(listed, policy.subnet):
                    found.append(Obstacle(f"Docker's nftables table {family} {dockerbridges.TABLE}", do))
            for table in survey.bases:
                if table[1] != FIREWALLD or table[0] not in (family, "inet"):
                    continue
                forwards = any(base.hook == "forward" for base in survey.bases[table])
                # If it has a rule about the network, then somebody has followed the advice.
                if forwards and network not in await self._tools.run("nft", "list", "table", *table):
                    zone = f"firewall-cmd --permanent --zone=trusted --add-source={network}"
                    found.append(Obstacle("firewalld", f"{zone} && firewall-cmd --reload"))
        except FirewallError:  # It is just being written: there is an event.
            pass
        return found


def _is_known(table: TableName) -> bool:
    """Tell whether a table is ours, flannel's, or nobody's to write to."""
    name = table[1]
    return name in (OURS, WHILE_FIREWALLD_RELOADS) or name.startswith(f"{OURS}-") or table in FLANNELS


def _name(drop: Drop) -> str:
    return "" if drop.rule is None else drop.rule.name


def bridge_of(subnet: Network) -> str | None:
    """Name the interface that has a subnet, or a part of it; None if there is none, or the kernel cannot be asked."""
    with suppress(KernelError), RouteSocket() as asker:
        for number in (2, 3, 1):  # One of these may be the bridge's own address.
            packed = (subnet.network_address + number).packed
            try:
                buffer, message = asker.ask(lambda seq, packed=packed: get_route(seq, packed))  # type: ignore[misc]
            except RequestFailed:
                continue
            ifindex, length = (
                rt.read_direct(buffer, message.at, message.end),
                rt.ROUTE.unpack_from(buffer, message.at)[1],
            )
            link = find_link(asker, ifindex) if ifindex and length >= subnet.prefixlen else None
            if link is not None:
                return link.name
    return None
