"""What signals mean to the agent:

SIGTERM, SIGINT, SIGQUIT   end; a second one ends the process at once, as it does flannel's
SIGHUP, SIGUSR1, SIGUSR2   nothing, which is said: systemd takes a death by SIGHUP for a wanted end, and nobody
                           would start the agent again
"""

from __future__ import annotations

import asyncio
import signal
from typing import Never

from flanneld_py.agent.log import facts, log

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
MEAN_NOTHING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """A signal asked us to stop."""


async def stop_on_signal() -> Never:
    """Raise Stopped at a signal that ends us."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in ENDS:
        loop.add_signal_handler(number, stop.put_nowait, number)
    for number in MEAN_NOTHING:
        loop.add_signal_handler(number, _say, number)
    told = await stop.get()
    for number in ENDS:
        loop.remove_signal_handler(number)
    log.info("stopping; device, routes and lease stay, traffic goes on", **facts(signal=told.name))
    raise Stopped


def _say(number: signal.Signals) -> None:
    log.info(
        "this signal changes nothing; settings are read at a start, and SIGTERM ends the agent",
        **facts(signal=number.name),
    )
