"""Tell systemd how we are: sd_notify(3), nothing more. Without NOTIFY_SOCKET every call does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Never

from flanneld_py.agent.clock import Clock


class Notifier:
    """The service manager's socket, as named by the environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        self._watchdog = (
            int(microseconds) / 1e6 if for_us and microseconds.isdigit() and int(microseconds) else float("inf")
        )

    def tell(self, **state: str) -> None:
        """Send state such as READY="1", STATUS="…", STOPPING="1"."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in state.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as unix:
                unix.sendto(message.encode(), self._address)
        except OSError:
            pass  # The service manager is not there or busy; networking goes on without its blessing.

    async def keep_watchdog(self, clock: Clock) -> Never:
        """Prove at twice the asked-for rate that the event loop turns."""
        while True:
            if self._watchdog != float("inf"):
                self.tell(WATCHDOG="1")
            await clock.sleep(min(self._watchdog / 2, 3600))
