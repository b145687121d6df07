"""Keep the firewall rules: bring them there at start, and back whenever somebody else took them away.

    choose (once) -> enforce -> wait: a change in nftables (an event) or a turn of the clock -> enforce ...

- nftables and iptables-nft tell of changes: repaired at once. Legacy iptables tells nobody: looked at every
  `--iptables-resync` seconds, and only while it has tables. Everything is looked at every five minutes as well.
- A step that fails leaves the old rules in force, is said once for each reason, and is tried again with a backoff. A
  host without nft and iptables has no rules, says so once, and everything else works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import Never, Protocol

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.firewall.drops import Looks, Obstacles
from flanneld_py.agent.firewall.previous_rules import PreviousRules
from flanneld_py.agent.firewall.restart_flows import FlowRestart
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.reconcile.repairs import Repairs
from flanneld_py.agent.settings import FirewallSettings
from flanneld_py.encap.firewall import dockerbridges
from flanneld_py.encap.firewall.chains import DOCKERS, RAW, forward_part, masquerade_part, raw_part
from flanneld_py.encap.firewall.enforce import FilterChoice, Outcome
from flanneld_py.encap.firewall.flows import Pause
from flanneld_py.encap.firewall.nft import FLANNELS, HOOKS, OURS
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.tools import FirewallError
from flanneld_py.encap.firewall.traffic import Obstacle

SETTLE = 0.01
"""Seconds to let changes that belong together arrive: a transaction tells each of its rules."""

FIRST_LOOK = 2.0
"""Seconds that the subnet file waits for the first look; it takes some 50 ms."""

HOSTS_PAUSE = 1.0
"""Seconds between two changes of the hosts that send without a tunnel: many come at once, and are written at once."""

LOOK_EVERY = 300.0
"""Seconds between looks that nothing asked for, jittered."""


def policies(settings: FirewallSettings, wanted: Sequence[Desired], neighbours: Neighbours) -> tuple[Policy, ...]:
    """Return what the settings mean for a host with this network and these subnets of it, for each family."""
    return tuple(_policy(settings, each, neighbours) for each in wanted)


def _policy(settings: FirewallSettings, wanted: Desired, neighbours: Neighbours) -> Policy:
    backend = wanted.backend
    subnet = backend.family.subnet(wanted.own.subnets)
    assert subnet is not None
    switches = (settings.masquerade, settings.forward, settings.random_fully, settings.excluded)
    interfaces = (backend.device, backend.parent, neighbours.hosts(backend.family))
    network, host = backend.family.network(wanted.config), wanted.own.address
    return Policy(network, subnet, *switches, *interfaces, settings.own_only, host, backend.port, backend.userspace)


FIND_OUT = "find out who it is: nft monitor"
END_FLANNEL = "end flannel's own daemon, whose rules come back: systemctl disable --now flanneld"

Watch = Callable[[Callable[[], None], Callable[[], None]], AbstractContextManager[None]]
"""Calls what it is given at every change in nftables that may be about our rules, and at every other; see watch.py."""


class Enforces(Looks, Protocol):
    """What brings rules to the host: enforce.Enforcer."""

    async def choose(self) -> FilterChoice | None:
        """See enforce.Enforcer."""
        ...

    def unwatched(self) -> bool:
        """See enforce.Enforcer."""
        ...

    async def enforce(self, choice: FilterChoice, policies: tuple[Policy, ...]) -> Outcome:
        """See enforce.Enforcer."""
        ...

    async def begin_anew(self, policies: tuple[Policy, ...], pause: Pause) -> int:
        """See enforce.Enforcer."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """The rules as they are: where they go, whether they were right at the last look, what came in between.

    `repairs` counts how often others had changed them. Times are seconds ago, None for never; `error` outlasts its end.
    """

    choice: FilterChoice | None
    in_force: bool
    repairs: int
    repaired_ago: float | None
    error: str | None
    failed_ago: float | None
    obstacles: tuple[Obstacle, ...]
    lacking: tuple[str, ...] = ()


def names_of_interest(suffix: str) -> frozenset[str]:
    """List the tables and chains whose changes may concern us; `suffix` as in enforce.Enforcer."""
    parts = (masquerade_part(suffix), forward_part(suffix), raw_part(suffix))
    ours = (OURS + suffix, *HOOKS, *(part.chain for part in parts))
    iptables = ("nat", "filter", RAW, *(part.parent for part in parts), DOCKERS)
    return frozenset((*ours, *(name for _, name in FLANNELS), *iptables, dockerbridges.TABLE, "raw-PREROUTING"))


class FirewallReconciler:
    """The rules of one network. `looked` is set after the first try, whatever came of it."""

    def __init__(
        self,
        enforcer: Enforces,
        watch: Watch,
        options: FirewallSettings,
        wanted: tuple[Desired, ...],
        neighbours: Neighbours,
        clock: Clock,
        rng: Random,
        former: PreviousRules,
    ) -> None:
        self._enforcer = enforcer
        self._former = former
        self._watch = watch
        self._options = options
        self._wanted = wanted
        self._neighbours = neighbours
        self._policies: tuple[Policy, ...] = ()
        self._clock = clock
        self._rng = rng
        self._wake = asyncio.Event()
        neighbours.changed = self._wake.set
        self._backoff = Backoff(0.1, 60.0, rng)
        self._trouble = OnChange(clock)
        self._obstacles, self._anew = Obstacles(enforcer, clock), FlowRestart(enforcer.begin_anew, clock)
        self._lacking: frozenset[str] = frozenset()
        self._repairs = Repairs("the host's firewall rules")
        self._retry_at = float("inf")
        self._look_at = 0.0
        self._in_force = False
        self._choice: FilterChoice | None = None
        self._times_repaired, self._repaired_at, self._failed_at = 0, float("-inf"), float("-inf")
        self._error: str | None = None
        self._own_change = True
        self._urgent = False
        self._hosts_at = float("-inf")
        self.masquerades = options.masquerade
        """Whether masquerading is our business; not so on a host without any tool for it."""
        self.looked = asyncio.Event()

    async def wait_looked(self) -> None:
        """Wait until the rules were looked at, but not for a tool that hangs: containers do without them so long."""
        await self._clock.wait(self.looked, self._clock.now() + FIRST_LOOK)

    def mark(self) -> None:
        """Look again: something has changed in the packet filter."""
        self._urgent = True
        self._obstacles.told()
        self._wake.set()

    def mark_others(self) -> None:
        """Look soon for what drops our packets: somebody has changed rules of his own."""
        self._look_at = min(self._look_at, self._obstacles.told())
        self._wake.set()

    def want(self, wanted: tuple[Desired, ...]) -> None:
        """Change what is wanted: our subnet is another one."""
        self._wanted, self._urgent = wanted, True
        self._wake.set()

    def report(self) -> Report:
        """Tell how the rules are."""
        now, never = self._clock.now(), float("-inf")
        repaired, failed = (None if at == never else round(now - at, 1) for at in (self._repaired_at, self._failed_at))
        in_force = self._in_force and self._retry_at == float("inf")
        lacking = tuple(sorted(self._lacking))
        state = (self._choice, in_force, self._times_repaired, repaired, self._error, failed)
        return Report(*state, self._obstacles.found, lacking)

    async def run(self) -> Never:
        """Keep the rules for good."""
        choice = self._choice = await self._choose()
        if choice is None:
            self.looked.set()
            await self._clock.wait(asyncio.Event(), float("inf"))
            raise AssertionError("unreachable")
        await self._neighbours.known()  # Rules for hosts that are only not known yet are not to be removed.
        with self._watch(self.mark, self.mark_others):
            while True:
                await self._enforce(choice)
                self.looked.set()
                if self._in_force:
                    await self._former.remove(self._policies)
                self._look_at = min(self._look_at, await self._obstacles.look(self._policies))
                await self._next()

    async def _choose(self) -> FilterChoice | None:
        """Choose the packet filter, once it can be looked at."""
        while True:
            try:
                choice = await self._enforcer.choose()
                break
            except FirewallError as error:
                self._fail("the packet filter cannot be read, trying again", error)
                self.looked.set()
            await self._clock.sleep(self._backoff.next())
        self._trouble.over()
        self._backoff.reset()
        self.masquerades = choice is not None and self._options.masquerade
        if choice is not None:
            log.info(f"firewall rules go to {choice.kind}", **facts(because=choice.why))
        elif self._options.masquerade or self._options.forward:
            missing = {"auto": "nft or iptables", "nftables": "nft"}.get(self._options.asked, "iptables")
            log.warning(
                f"no firewall rules: this host has no {missing}; install it and start again, or say --firewall none",
                **facts(masquerade=False, forward=False),
            )
        return choice

    async def _enforce(self, choice: FilterChoice) -> None:
        policies = self._work_out()
        if policies != self._policies:
            self._policies, self._own_change, self._hosts_at = policies, True, self._clock.now()
        outcome = await self._enforcer.enforce(choice, policies)
        now = self._clock.now()
        self._look_at = now + LOOK_EVERY * self._rng.uniform(0.75, 1.25)
        for reason in outcome.lacking:
            if reason not in self._lacking:
                log.warning("iptables' raw table is left as it is; everything else goes on", **facts(reason=reason))
        self._lacking = frozenset(outcome.lacking)
        if outcome.failures:
            self._fail("firewall rules cannot be changed, trying again", "; ".join(outcome.failures))
            self._retry_at = now + self._backoff.next()
            return
        self._retry_at = float("inf")
        self._backoff.reset()
        repaired = outcome.changed and not self._own_change
        if self._trouble.over() or (self._own_change and not self._in_force):
            log.info("firewall rules are in force", **facts(changed=outcome.changed))
        elif repaired:
            self._repairs.note(1, now, END_FLANNEL if outcome.flannels else FIND_OUT)
            self._times_repaired, self._repaired_at = self._times_repaired + 1, now
        self._in_force, self._own_change = True, False
        self._look_at = min(self._look_at, await self._anew.look(policies, repaired=repaired))

    def _work_out(self) -> tuple[Policy, ...]:
        return policies(self._options, self._wanted, self._neighbours)

    def _fail(self, what: str, why: object) -> None:
        self._trouble.warn(what, why)
        self._error, self._failed_at = str(why), self._clock.now()

    async def _next(self) -> None:
        """Wait until it is time to look again."""
        while True:
            due = min(self._retry_at, self._look_at)
            poll = self._clock.now() + self._options.resync if self._options.resync else due
            await self._clock.wait(self._wake, min(due, poll))
            now = self._clock.now()
            if not self._wake.is_set() or self._urgent:
                if self._urgent or now >= due or self._enforcer.unwatched():
                    break
                continue
            await self._clock.sleep(max(0.0, self._hosts_at + HOSTS_PAUSE - now))
            self._wake.clear()
            if self._urgent or self._work_out() != self._policies:
                break
        await self._clock.sleep(max(SETTLE, self._repairs.patience))
        self._wake.clear()
        self._urgent = False
