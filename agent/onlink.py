"""Which hosts are on the underlay interface's own link, as the kernel's routes say: asked, and remembered.

    mark       an address or a route has changed          due    when to ask again
    refresh    ask for every host: who has another verdict than before

The kernel is asked, and nothing is worked out here: it knows all addresses, routes and rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.kernel import Kernel
from flanneld_py.registry.model import Lease

PATIENCE = 1.0
"""Seconds between two rounds of questions: a routing daemon may change routes all the time."""

PORTION = 100
"""How many hosts are asked about before other tasks run: a few milliseconds."""


class OnLinkVerdicts:
    """See the module's docstring. `due` is a time of the clock, in seconds."""

    def __init__(self, kernel: Kernel, interface: str, clock: Clock) -> None:
        self._kernel = kernel
        self._interface = interface
        self._clock = clock
        self._verdicts: dict[IPv4Address, bool] = {}
        self._asked = float("-inf")
        self.due = float("inf")

    def __call__(self, address: IPv4Address) -> bool:
        """Tell whether packets to the address go over the interface without a gateway."""
        verdict = self._verdicts.get(address)
        if verdict is None:
            verdict = self._verdicts[address] = bool(self._kernel.on_link(self._interface, [address.packed]))
        return verdict

    def mark(self) -> None:
        """Look again, soon."""
        self.due = min(self.due, max(self._clock.now(), self._asked + PATIENCE))

    async def refresh(self, leases: Mapping[str, Lease]) -> list[str]:
        """Ask for the host of every lease again; return the keys of those with another verdict."""
        self.due, self._asked = float("inf"), self._clock.now()
        hosts = [lease.attrs.public_ip for lease in leases.values()]
        before, self._verdicts = self._verdicts, {}
        for start in range(0, len(hosts), PORTION):
            portion = set(hosts[start : start + PORTION])
            direct = self._kernel.on_link(self._interface, [address.packed for address in portion])
            self._verdicts.update((address, address.packed in direct) for address in portion)
            await self._clock.sleep(0)
        other = {address for address, verdict in self._verdicts.items() if before.get(address, verdict) is not verdict}
        if other:
            log.info("the underlay's routes have changed", **facts(interface=self._interface, hosts=len(other)))
        return [key for key, lease in leases.items() if lease.attrs.public_ip in other]
