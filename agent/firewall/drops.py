"""What drops packets of the overlay and is not ours to change: looked for, and named once.

    somebody changes rules of his own --told--> a pause --look--> Enforcer.obstacles -> log, `found` for /status

A look reads others' tables and costs more than one at our own rules, so there is a pause behind each, the longer the
more it read. Legacy iptables tells nobody of changes: so it is looked for without being told as well.
"""

from __future__ import annotations

from typing import Protocol

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.traffic import Obstacle

SETTLE = 0.3
"""Seconds to let others finish what they write."""

PAUSE, UNTOLD = 3.0, 30.0
"""Seconds between two looks at least: after a change was told, and else."""

SHARE = 20
"""Times as long as a look took is the pause after it."""


class Looks(Protocol):
    """What can look: enforce.Enforcer."""

    async def obstacles(self, policies: tuple[Policy, ...]) -> tuple[Obstacle, ...]:
        """See enforce.Enforcer."""
        ...


class Obstacles:
    """`found` is what drops our packets, as of the last look."""

    def __init__(self, looks: Looks, clock: Clock) -> None:
        self._looks = looks
        self._clock = clock
        self._told = True
        self._free_at = float("-inf")
        self.found: tuple[Obstacle, ...] = ()

    def told(self) -> float:
        """Take in that somebody has changed rules; return when to look."""
        self._told = True
        return max(self._clock.now() + SETTLE, self._free_at)

    async def look(self, policies: tuple[Policy, ...]) -> float:
        """Look, if it is time to; return when it will be, infinity if nobody has asked for it."""
        began = self._clock.now()
        if began < (self._free_at if self._told else self._free_at + UNTOLD - PAUSE):
            return self._free_at if self._told else float("inf")
        self._told = False
        found = await self._looks.obstacles(policies)
        now = self._clock.now()
        self._free_at = now + max(PAUSE, SHARE * (now - began))
        known = {obstacle.do for obstacle in self.found}
        for obstacle in found:
            if obstacle.do not in known:
                log.warning("packets of the overlay are dropped by others", **facts(by=obstacle.by, do=obstacle.do))
        if self.found and not found:
            log.info("packets of the overlay are not dropped by others any more")
        self.found = found
        return self._free_at if self._told else float("inf")
