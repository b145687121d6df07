"""Firewall rules under another name than ours: those about our subnet go, everybody else's stay."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_network
from pathlib import Path

import pytest

from flanneld_py.agent.firewall.previous_rules import PreviousRules
from flanneld_py.agent.lock import Held
from flanneld_py.agent.previous_run import PreviousRun
from flanneld_py.encap.firewall.chains import forward_part, masquerade_part, raw_part, rule_text
from flanneld_py.encap.firewall.enforce import Enforcer, Outcome
from flanneld_py.encap.firewall.nft import table_text
from flanneld_py.encap.firewall.policy import Network, Policy, rules
from tests.fakes.clock import ManualClock

NETWORK, SUBNET, EARLIER = (ip_network(text) for text in ("10.5.0.0/16", "10.5.1.0/24", "10.5.7.0/24"))
OURS = Policy(NETWORK, SUBNET, masquerade=True)
NEIGHBOURS = Policy(ip_network("10.6.0.0/16"), ip_network("10.6.1.0/24"), masquerade=True, excluded=(NETWORK,))


class Host:
    """A packet filter whose tools print what is in it, and keep what they are told."""

    def __init__(self, policies: dict[str, Policy]) -> None:
        self._policies = policies
        self.told: list[str] = []

    def has(self, name: str) -> bool:
        return name in ("nft", "iptables", "iptables-save", "iptables-restore")

    async def run(self, *command: str, stdin: str = "") -> str:
        match command:
            case ["nft", "list", "chains"]:
                return "".join(self._table(suffix) for suffix in self._policies) + IN_USE
            case ["nft", "-s", "list", "table", _, name]:
                return self._table(name.removeprefix("flanneld-py"))
            case ["iptables-save"]:
                return self._saved()
            case ["iptables", "--version"]:
                return "iptables v1.8.9 (nf_tables)"
        self.told += stdin.splitlines()
        return ""

    def _table(self, suffix: str) -> str:
        return table_text(rules(self._policies[suffix]), f"flanneld-py{suffix}")

    def _saved(self) -> str:
        lines = []
        for suffix, policy in self._policies.items():
            made = rules(policy)
            for own, chosen in (
                (masquerade_part(suffix), made.masquerade),
                (forward_part(suffix), made.forward),
                (raw_part(suffix), made.raw),
            ):
                lines += [f"*{own.table}", *(f"-A {own.chain} {rule_text(rule, own.label)}" for rule in chosen)]
        return "\n".join(lines)


IN_USE = "table ip filter {\n\tchain FORWARD {\n\t}\n}\ntable ip nat {\n\tchain POSTROUTING {\n\t}\n}\n"


@pytest.mark.parametrize("masquerade", [True, False])
async def test_those_about_our_subnet_go_those_of_a_neighbour_stay(tmp_path: Path, masquerade: bool) -> None:
    there = {
        suffix: Policy(policy.network, policy.subnet, masquerade, device=f"flannel.{suffix[1:] or 1}")
        for suffix, policy in {"": OURS, "-7": OURS, "-flannel0": Policy(NETWORK, EARLIER), "-8": OURS}.items()
    }
    host = Host(there | {"-2": NEIGHBOURS})
    enforcer = Enforcer(host, "auto", "", prefer_nft=False, proc=tmp_path)
    assert await enforcer.choose() is not None
    outcome = await enforcer.remove_former([(NETWORK, SUBNET), (NETWORK, EARLIER)], {"-8"})
    assert outcome == Outcome(changed=True)
    gone = {line for line in host.told if line.startswith(("delete", "-X"))}
    chains = {f"-X FLANNEL-{kind}{suffix}" for kind in ("FWD", "RAW") for suffix in ("-7", "-flannel0")}
    if masquerade:
        chains |= {"-X FLANNEL-POSTRTG-7", "-X FLANNEL-POSTRTG-flannel0"}
    chains |= {"delete table ip flanneld-py-7", "delete table ip flanneld-py-flannel0"}
    assert gone == chains


class Enforces:
    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)
        self.asked: list[tuple[list[tuple[Network, Network]], set[str]]] = []

    async def remove_former(self, pairs: Collection[tuple[Network, Network]], living: Collection[str]) -> Outcome:
        self.asked.append((list(pairs), set(living)))
        return self._outcomes.pop(0)


async def test_it_is_done_once_and_tried_until_it_is(caplog: pytest.LogCaptureFixture) -> None:
    enforces = Enforces(Outcome(False, ("nft hangs",)), Outcome(True))
    held = Held(["device flannel.2", "Network 10.9.0.0/16"])
    former = PreviousRules(enforces, PreviousRun(((NETWORK, EARLIER),), ours=True), lambda: held, ManualClock())
    for _ in range(3):
        await former.remove([OURS])
    assert enforces.asked == [([(NETWORK, EARLIER), (NETWORK, SUBNET)], {"-2", ""})] * 2
    assert "what an earlier configuration left cannot be removed" in caplog.text


async def test_a_file_of_another_network_tells_nothing() -> None:
    enforces = Enforces(Outcome(False))
    await PreviousRules(enforces, PreviousRun(((NETWORK, EARLIER),)), Held, ManualClock()).remove([OURS])
    assert enforces.asked == [([(NETWORK, SUBNET)], set())]
