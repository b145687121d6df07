"""Which hosts of the overlay send to us without a tunnel: told by who programs the routes, asked by who lets them in.

They are those that we send to without a tunnel: the gateways of our routes on the underlay interface. Asked and not
kept, so they are always those of now; also while the registry has lost its leases, and right after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.encap.family import Family, IPAddress


class Neighbours:
    """Of each family that may have any. `changed` is called when they may be others."""

    def __init__(self, wanted: Iterable[Desired]) -> None:
        self._asked: dict[Family, Callable[[], frozenset[IPAddress]]] = {}
        self._awaited = {each.backend.family: asyncio.Event() for each in wanted if each.backend.asks_on_link}
        self.changed: Callable[[], None] = lambda: None

    def tell(self, family: Family, hosts: Callable[[], frozenset[IPAddress]]) -> None:
        """Take in whom to ask; they may be others than before."""
        self._asked[family] = hosts
        if family in self._awaited:
            self._awaited[family].set()
        self.changed()

    async def known(self) -> None:
        """Wait until it is known which there are in every family."""
        for told in self._awaited.values():
            await told.wait()

    def hosts(self, family: Family) -> frozenset[IPAddress]:
        """Return their underlay addresses."""
        return self._asked[family]() if family in self._asked else frozenset()
