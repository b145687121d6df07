"""The underlay followed: whatever changes about it, the network goes on over what there is now.

    kernel events, a timer -> look again -> settle -> find (host.py, interface.py) -> another one? -> move
                                                        | none that would do
                                                        +--> everything stays as it is, said once

Level-triggered: an event says "look again", and what is found then is what a start would choose, except that an address
that still does is kept. Not here: what a move means for lease, devices and data plane (agent.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Never

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.interface import Network, NoInterface
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.encap.backend import Underlay
from flanneld_py.encap.kernel import Event, HostChanged, LinkChanged, Lost
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig

Find = Callable[[NetworkConfig, Sequence[Network], Underlay | None], Awaitable[Underlay]]
"""Choose the underlay for a network config. What has an address in these subnets is the overlay, and no underlay; of
addresses that do equally, those of the underlay given stay. Raises NoInterface, OSError."""

SETTLE = 1.0
"""Seconds without a further change before we look: a DHCP client takes an address away and gives another."""

SETTLE_MOST = 5.0
"""Seconds after which we look all the same: an interface that flaps does not keep us from following it."""

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
        self._wake = asyncio.Event()
        self._wake.set()  # It may have changed between the choice and the first event that we hear.

    def on_events(self, events: Sequence[Event]) -> None:
        """Look again if it may be another one now. Other devices come and go with containers, and are none of it."""
        for event in events:
            match event:
                case HostChanged() | Lost():
                    self._wake.set()
                case LinkChanged(name) if self._missing or name == self._underlay.interface:
                    self._wake.set()

    async def run(self) -> Never:
        """Follow for good."""
        while True:
            await self._clock.wait(self._wake, self._clock.now() + LOOK_EVERY * self._rng.uniform(0.75, 1.25))
            await self._settle()
            await self._look()

    async def _settle(self) -> None:
        latest = self._clock.now() + SETTLE_MOST
        while self._wake.is_set() and self._clock.now() < latest:
            self._wake.clear()
            await self._clock.wait(self._wake, min(latest, self._clock.now() + SETTLE))
        self._wake.clear()

    async def _look(self) -> None:
        self._missing = True
        try:
            found = await self._find()
            self._missing = False
            if found != self._underlay:
                log.warning("the underlay has changed", **facts(old=self._underlay, new=found))
                await self._move(found)
                self._underlay = found
        except NoInterface as error:
            self._trouble.warn("the underlay is gone; everything stays as it is until there is one again", error)
        except OSError as error:
            self._trouble.warn("the underlay cannot be looked at; everything stays as it is", error)
        except ConfigInvalid as error:
            self._trouble.warn("the network cannot be carried over the new underlay; everything stays as it is", error)
        else:
            if self._trouble.over():
                log.info("the underlay is there", **facts(underlay=found))
