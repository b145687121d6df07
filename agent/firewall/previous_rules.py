"""The firewall rules of the run before ours, under another name since VNI or backend changed: removed.

Left, they would go on masquerading by what was true then: once this host has another subnet, its containers towards
other hosts. Ours are in force before they go. Whose they are is told by the subnet in them; those of another network's
agent, which runs or is stopped, are not about a subnet of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.lock import Held
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.previous_run import PreviousRun
from flanneld_py.encap.firewall.enforce import Outcome
from flanneld_py.encap.firewall.policy import Network, Policy


class RemovesPreviousRules(Protocol):
    """What takes rules away: enforce.Enforcer."""

    async def remove_former(self, pairs: Collection[tuple[Network, Network]], living: Collection[str]) -> Outcome:
        """See enforce.Enforcer."""
        ...


class PreviousRules:
    """`others` tells what other agents have, and raises OSError."""

    def __init__(
        self, enforcer: RemovesPreviousRules, earlier: PreviousRun, others: Callable[[], Held], clock: Clock
    ) -> None:
        self._enforcer = enforcer
        self._earlier = list(earlier.families) if earlier.ours else []
        self._others = others
        self._trouble = OnChange(clock)
        self._gone = False

    async def remove(self, policies: Sequence[Policy]) -> None:
        """Remove them, if that is not done yet; what cannot be is tried again when this is called again."""
        if self._gone:
            return
        pairs = [*self._earlier, *((policy.network, policy.subnet) for policy in policies)]
        try:
            others = self._others()
        except OSError as error:
            self._fail(error)
            return
        outcome = await self._enforcer.remove_former(pairs, others.suffixes)
        if outcome.changed:
            log.info("removed what an earlier configuration left", **facts(what="firewall rules"))
        self._gone = not outcome.failures
        if outcome.failures:
            self._fail("; ".join(outcome.failures))

    def _fail(self, reason: object) -> None:
        self._trouble.warn("what an earlier configuration left cannot be removed; all else goes on", reason)
