"""Keep the blackhole route of our own subnet: made, looked at now and then, moved when the subnet changes.

Which subnet is ours is what the subnet file says; while it is gone, what it said. No event tells that the route was
deleted; as in flannel, it is looked at every `--iptables-resync` seconds, by trying to make it, which costs next to
nothing. An earlier run's is removed without the flag, or if it is for another subnet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, IPv6Network

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.encap.kernel import KernelError

Network = IPv4Network | IPv6Network
Change = Callable[[Network], Awaitable[bool]]
"""Make or remove the route; tell whether that changed anything. Raises KernelError."""


class Blackhole:
    """`ours` tells our subnets, `earlier` are those of the earlier run; `every` in seconds."""

    def __init__(
        self,
        ours: Callable[[], tuple[Network, ...]],
        earlier: tuple[Network, ...],
        put: Change,
        remove: Change,
        clock: Clock,
        every: float,
    ) -> None:
        self._ours = ours
        self._put = put
        self._remove = remove
        self._clock = clock
        self._every = every
        self._held = earlier
        self._trouble = OnChange(clock)

    async def run(self, *, wanted: bool) -> None:
        """Keep the route for good; if it is not wanted, only see that there is none."""
        if not wanted:
            await self._keep((), tuple({*self._held, *self._ours()}))
            return
        while True:
            subnets = self._ours() or self._held
            await self._keep(subnets, tuple(former for former in self._held if former not in subnets))
            self._held = subnets
            await self._clock.sleep(self._every)

    async def _keep(self, subnets: tuple[Network, ...], formers: tuple[Network, ...]) -> None:
        try:
            for former in formers:
                if await self._remove(former):
                    log.info("blackhole route removed", **facts(subnet=former))
            for subnet in subnets:
                if await self._put(subnet):
                    log.info("blackhole route made", **facts(subnet=subnet))
        except KernelError as error:
            self._trouble.warn("the blackhole route cannot be changed", error)
        else:
            self._trouble.over()
