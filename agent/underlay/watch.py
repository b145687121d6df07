"""The underlay followed: whatever changes about it, the network goes on over what there is now.

    kernel events, a timer -> settle for a moment -> find (host.py, choose.py) -> the same interface -> move
                                ^                      | another interface, or none that would do
                                +---- settle longer <--+
                                                       | still so -> move; or everything stays as it is, said once

Level-triggered: an event says "look again", and what is found then is what a start would choose, except that an address
that still does is kept. Not here: what a move means for lease, devices and data plane (agent.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.underlay.choose import Network, NoInterface
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.kernel import Event, HostChanged, KernelError, LinkChanged, Lost
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig

Find = Callable[[NetworkConfig, Sequence[Network], Underlay | None], Awaitable[Underlay]]
"""Choose the underlay for a network config. What has an address in these subnets is the overlay, and no underlay; of
addresses that do equally, those of the underlay given stay. Raises NoInterface, OSError."""

SOON = 0.2
"""Seconds without a further change before we look: an address is changed in several steps."""

SETTLE = 1.0
"""Seconds without a further change before we leave our interface, or move again: a DHCP client takes an address
away, with it the default route, and gives another."""

SETTLE_MOST = 5.0
"""Seconds after which we move all the same: an interface that flaps is followed, but not more often than that."""

ELSEWHERE = 10.0
"""Seconds between looks for the sake of other interfaces' addresses: those of containers come and go all the time."""

LOOK_EVERY = 300.0
"""Seconds between looks that nothing asked for, jittered: what no event told is found then."""


class UnderlayWatch:
    """See the module's docstring.

    `find` chooses the underlay as it is now and raises NoInterface or OSError; `move` goes over to another one and
    raises ConfigInvalid if the network cannot be carried over it.
    """

    def __init__(
        self,
        underlay: Underlay,
        find: Callable[[], Awaitable[Underlay]],
        move: Callable[[Underlay], Awaitable[None]],
        clock: Clock,
        rng: Random,
    ) -> None:
        self._underlay = underlay
        self._find = find
        self._move = move
        self._clock = clock
        self._rng = rng
        self._trouble = OnChange(clock)
        self._missing = False
        self._moved = self._looked = float("-inf")
        self._again = float("inf")
        self._backoff = Backoff(1.0, 60.0, rng)
        self._wake, self._poke = asyncio.Event(), asyncio.Event()
        self._wake.set()  # It may have changed between the choice and the first event that we hear.

    def on_events(self, events: Sequence[Event]) -> None:
        """Look again if it may be another one now. Other devices come and go with containers, and are none of it."""
        for event in events:
            match event:
                case HostChanged(device) if device not in (None, self._underlay.interface) and not self._missing:
                    # Mostly it is none of ours; but a flag may name an address that has just come.
                    self._again = min(self._again, self._looked + ELSEWHERE)
                case HostChanged() | Lost():
                    self._wake.set()
                case LinkChanged(name) if self._missing or name == self._underlay.interface:
                    self._wake.set()
                case _:
                    continue
            self._poke.set()

    async def run(self) -> Never:
        """Follow for good."""
        while True:
            await self._something()
            latest, settled = self._clock.now() + SETTLE_MOST, False
            while True:
                await self._quiet(SOON, latest)
                if await self._look(settled=settled):
                    break
                await self._clock.wait(self._wake, min(latest, self._clock.now() + SETTLE))
                settled = not self._wake.is_set() or self._clock.now() >= latest

    async def _something(self) -> None:
        """Wait until it is time to look."""
        due = self._clock.now() + LOOK_EVERY * self._rng.uniform(0.75, 1.25)
        while not self._wake.is_set() and self._clock.now() < min(due, self._again):
            await self._clock.wait(self._poke, min(due, self._again))
            self._poke.clear()
        self._again = float("inf")

    async def _quiet(self, seconds: float, latest: float) -> None:
        while self._wake.is_set() and self._clock.now() < latest:
            self._wake.clear()
            await self._clock.wait(self._wake, min(latest, self._clock.now() + seconds))
        self._wake.clear()

    def _far(self, found: Underlay) -> bool:
        """Tell whether to go over to it only when all has settled: another interface, or we have just moved."""
        lately = self._clock.now() < self._moved + SETTLE_MOST
        return found != self._underlay and (lately or found.interface != self._underlay.interface)

    async def _look(self, *, settled: bool) -> bool:
        """Go over to what is found now; False if that is for when all has settled."""
        self._missing, self._looked = True, self._clock.now()
        try:
            found = await self._find()
            self._missing = False
            if not settled and self._far(found):
                return False
            if found != self._underlay:
                log.warning("the underlay has changed", **facts(old=self._underlay, new=found))
                await self._move(found)
                self._underlay, self._moved = found, self._clock.now()
        except NoInterface as error:
            if not settled:
                return False
            self._trouble.warn("the underlay is gone; everything stays as it is until there is one again", error)
        except (KernelError, OSError) as error:
            self._trouble.warn("the underlay cannot be looked at; everything stays as it is", error)
            self._look_again()
        except ConfigInvalid as error:
            self._trouble.warn("the network cannot be carried over the new underlay; everything stays as it is", error)
            self._look_again()
        else:
            self._backoff.reset()
            if self._trouble.over():
                log.info("the underlay is there", **facts(underlay=found))
        return True

    def _look_again(self) -> None:
        self._again = self._clock.now() + self._backoff.next()
