"""Routes that others have beside ours, named: once each while they are there. See encap/netlink/competing.py."""

from __future__ import annotations

from flanneld_py.agent.log import facts, log
from flanneld_py.encap.delta import Tracker
from flanneld_py.encap.kernel import Kernel, KernelError
from flanneld_py.encap.netlink.competing import Subnet, describe
from flanneld_py.encap.state import Route

LOOK_EVERY = 200.0
"""Seconds between looks, a little less than between readings of the kernel, with which they come: no event tells."""


class CompetingRoutes:
    """What is beside the routes that a tracker wants."""

    def __init__(self, kernel: Kernel, tracker: Tracker) -> None:
        self._kernel = kernel
        self._tracker = tracker
        self._look_at = float("-inf")
        self._found: dict[Subnet, str] = {}

    @property
    def found(self) -> list[tuple[str, str]]:
        """Our route, in an operator's words, and what is beside it."""
        return [(describe(subnet), words) for subnet, words in self._found.items()]

    def look(self, now: float) -> None:
        """Look, if it is time to."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        routes = [entry for entry in self._tracker.desired.values() if isinstance(entry, Route)]
        subnets = {(route.subnet, route.prefix_length) for route in routes}
        try:
            found = self._kernel.routes_beside(subnets, {route.device for route in routes}) if subnets else {}
        except KernelError:
            return  # The next look will do.
        for subnet, words in found.items():
            if self._found.get(subnet) != words:
                log.warning("another route is beside ours", **facts(entry=describe(subnet), reason=words))
        self._found = found
