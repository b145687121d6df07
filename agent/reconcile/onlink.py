"""Which hosts are on the underlay interface's own link in a family, as the kernel's routes say: asked, and remembered.

    mark       an address or a route has changed          due    when to ask again
    refresh    ask for every host: who has another verdict than before

The kernel is asked, and nothing is worked out here: it knows all addresses, routes and rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.family import Family, IPAddress
from flanneld_py.encap.kernel import Kernel
from flanneld_py.registry.model import Lease

PATIENCE = 1.0
"""Seconds between two rounds of questions: a routing daemon may change routes all the time."""

PORTION = 100
"""How many hosts are asked about before other tasks run: a few milliseconds."""


class OnLinkVerdicts:
    """See the module's docstring. `due` is a time of the clock, in seconds."""

    def __init__(self, kernel: Kernel, interface: str, family: Family, clock: Clock) -> None:
        self._kernel = kernel
        self._interface = interface
        self._family = family
        self._clock = clock
        self._verdicts: dict[IPAddress, bool] = {}
        self._asked = float("-inf")
        self.due = float("inf")

    def __call__(self, address: IPAddress) -> bool:
        """Tell whether packets to the address go over the interface without a gateway."""
        verdict = self._verdicts.get(address)
        if verdict is None:
            verdict = self._verdicts[address] = bool(self._kernel.on_link(self._interface, [address.packed]))
        return verdict

    def follow(self, interface: str) -> None:
        """Ask about another interface from now on."""
        self._interface, self._verdicts = interface, {}
        self.mark()

    def mark(self) -> None:
        """Look again, soon."""
        self.due = min(self.due, max(self._clock.now(), self._asked + PATIENCE))

    async def refresh(self, leases: Mapping[str, Lease]) -> list[str]:
        """Ask for the host of every lease again; return the keys of those with another verdict."""
        self.due, self._asked = float("inf"), self._clock.now()
        by_key = {key: self._family.public(lease.attrs) for key, lease in leases.items()}
        hosts = [address for address in by_key.values() if address is not None]
        before, self._verdicts = self._verdicts, {}
        for start in range(0, len(hosts), PORTION):
            portion = set(hosts[start : start + PORTION])
            direct = self._kernel.on_link(self._interface, [address.packed for address in portion])
            self._verdicts.update((address, address.packed in direct) for address in portion)
            await self._clock.sleep(0)
        other = {address for address, verdict in self._verdicts.items() if before.get(address, verdict) is not verdict}
        if other:
            about = facts(interface=self._interface, family=self._family.name, hosts=len(other))
            log.info("the underlay's routes have changed", **about)
        return [key for key, address in by_key.items() if address in other]
