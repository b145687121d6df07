"""Flows that began while our masquerade rules were not there begin anew, once these are in force
(encap/firewall/flows.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.firewall.flows import Pause
from flanneld_py.encap.firewall.policy import Policy, Rule, rules

SHARE = 20
"""Times as long as a look took is the pause after it: a busy host follows some 100 000 flows, 10 us each."""

BeginAnew = Callable[[tuple[Policy, ...], Pause], Awaitable[int]]


class FlowRestart:
    """When to look for such flows: after our rules were made, changed or repaired, and at a start, which may follow
    an end in between.
    """

    def __init__(self, begin_anew: BeginAnew, clock: Clock) -> None:
        self._begin_anew = begin_anew
        self._clock = clock
        self._for: tuple[tuple[Rule, ...], ...] | None = None
        self._wanted = False
        self._free_at = float("-inf")

    async def look(self, policies: tuple[Policy, ...], *, repaired: bool) -> float:
        """Take in that the rules are in force; return when to look again, infinity if there is no need."""
        now, masquerade = self._clock.now(), tuple(rules(policy).masquerade for policy in policies)
        self._wanted |= repaired or masquerade != self._for
        self._for = masquerade
        if not self._wanted or not any(masquerade):
            return float("inf")
        if now < self._free_at:
            return self._free_at
        self._wanted = False
        flows = await self._begin_anew(policies, lambda: self._clock.sleep(0))
        self._free_at = self._clock.now() + SHARE * (self._clock.now() - now)
        if flows:
            log.info("flows that had begun without masquerade begin anew", **facts(flows=flows))
        return float("inf")
