"""Steps on the packet filters, one after the other: one that fails does not keep the others from being done."""

from __future__ import annotations

from collections.abc import Awaitable

from flanneld_py.encap.firewall.tools import FirewallError


class Work:
    """What has been done and what has failed so far."""

    def __init__(self) -> None:
        self.changed = False
        self.failures: list[str] = []
        self.lacking: list[str] = []

    async def attempt(self, step: Awaitable[bool]) -> None:
        """Do a step; a failure is kept."""
        try:
            self.changed |= await step
        except FirewallError as error:
            self.failures.append(str(error))

    async def attempt_raw(self, step: Awaitable[bool]) -> None:
        """Do a step in the table raw, which nothing else waits for."""
        try:
            self.changed |= await step
        except FirewallError as error:
            self.lacking.append(str(error))
