"""Wait for a network config that can be used, and an underlay for it. What is in the way is said once, and may be
mended at any time.

config in the registry -> checked -> made use of by the caller, who may refuse it -> that
  ^                                                                            |
  +------------ wait: none there, not readable, of no use to this host --------+
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import OnChange
from flanneld_py.agent.underlay.choose import NoInterface
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import RegistryError

T = TypeVar("T")


async def wait_for_network(
    registry: Registry,
    use: Callable[[NetworkConfig], Awaitable[T]],
    clock: Clock,
    rng: Random,
    say: Callable[[str], None],
) -> T:
    """Return what `use` makes of the network config.

    Where it raises RegistryError, wait for a better config; where NoInterface or OSError, for a better underlay.
    """
    backoff = Backoff(0.2, 5.0, rng)
    trouble = OnChange(clock)
    while True:
        try:
            return await use(await registry.config())
        except RegistryError as error:
            trouble.warn("no network config that can be used yet, waiting for one", error)
            say(f"waiting for a network config: {error}")
        except (NoInterface, OSError) as error:
            trouble.warn("no underlay interface yet, waiting for one", error)
            say(f"waiting for an underlay interface: {error}")
        await clock.sleep(backoff.next())
