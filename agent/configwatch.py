"""See whether the network config has changed since this agent read it, and say so once: only a start takes it up.

Read every few minutes and not watched: it changes a few times in a cluster's life, and a watch is one more for each of
ten thousand hosts.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Never

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig
from flanneld_py.registry.registry import ConfigMissing, Registry
from flanneld_py.registry.store import RegistryError

EVERY = 300.0
"""Seconds, jittered."""


class ConfigWatch:
    """Compare what the registry has with `used`, the config that this agent runs with."""

    def __init__(self, registry: Registry, used: NetworkConfig, clock: Clock, rng: Random) -> None:
        self._registry = registry
        self._used = _meaning(used)
        self._clock = clock
        self._rng = rng
        self._said: object = self._used

    async def run(self) -> Never:
        """Look now and then, for good."""
        while True:
            await self._clock.sleep(EVERY * self._rng.uniform(0.75, 1.25))
            await self._look()

    async def _look(self) -> None:
        found: object
        try:
            found = _meaning(await self._registry.config())
        except (ConfigMissing, ConfigInvalid) as error:
            found = str(error)
        except RegistryError:
            return  # Who follows the leases says it.
        if found == self._said:
            return
        self._said = found
        if found == self._used:
            log.info("the network config is again the one that this agent runs with")
        elif isinstance(found, str):
            log.warning(
                "the network config cannot be used any more; this agent goes on, one that starts would wait",
                **facts(reason=found),
            )
        else:
            log.warning("the network config has changed: restart the agents, one after the other, to have it taken up")


def _meaning(config: NetworkConfig) -> NetworkConfig:
    """Return a config that is equal to all that say the same: the case of the backend's type is of no account."""
    return replace(config, backend={**config.backend, "type": config.backend_type})
