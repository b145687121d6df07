"""One agent's share in the registry, without a kernel: follower, view, claimer and keeper on any store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_network
from random import Random

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.identity import Identity
from flanneld_py.agent.lease.claim import Claimer
from flanneld_py.agent.lease.keep import Keeper
from flanneld_py.agent.lease.sync import LeaseSyncer
from flanneld_py.registry.config import NetworkConfig, parse_config
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.model import Json, Lease, LeaseAttrs, stand_in
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Store
from flanneld_py.registry.view import LeaseView

PREFIX = "/coreos.com/network"
CONFIG = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')


def identity(number: int) -> Identity:
    return Identity(f"host-{number}", f"boot-{number}", f"web-{number}")


class Host:
    """One host; `public_ip` may be an IPv6 address, for a host without IPv4."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        number: int,
        public_ip: str = "",
        margin: float = 3600,
        prefix: str = PREFIX,
        ttl: int = TTL,
        subnet_len: int | None = None,
    ) -> None:
        self.registry = Registry(store, prefix, ttl)
        self.view = LeaseView()
        self.address6 = IPv6Address(public_ip if ":" in public_ip else f"2001:db8::{number:x}")
        self.address = None if ":" in public_ip else IPv4Address(public_ip or f"192.0.2.{number}")
        self.mac = f"02:00:00:00:00:{number:02x}"
        self.lost: list[Lease] = []
        self.followed = LeaseSyncer(self.registry, self.view, clock, Random(number), lambda: self.keeper.mark())
        self.claimer = Claimer(
            self.registry,
            self.view,
            self.followed.list,
            clock,
            Random(number),
            identity(number),
            self.address,
            self.address6,
            subnet_len,
        )
        self.keeper = Keeper(
            self.registry, self.view, self.followed.list, clock, Random(number), self.claimer, margin=margin
        )

    def attrs(self, _: Lease | None) -> LeaseAttrs:
        data: Json = {"VNI": 1, "VtepMAC": self.mac}
        if self.address is None:
            return LeaseAttrs(stand_in(self.address6), self.address6, "vxlan", None, data)
        return LeaseAttrs(self.address, backend_type="vxlan", backend_data=data)

    async def acquire(self, config: NetworkConfig = CONFIG, previous: str = "") -> Lease:
        subnets = tuple(ip_network(subnet) for subnet in previous.split())
        return await self.keeper.acquire(config, self.attrs, subnets)

    @asynccontextmanager
    async def running(self, config: NetworkConfig = CONFIG) -> AsyncIterator[None]:
        async def take_another(lost: Lease) -> None:
            self.lost.append(lost)
            await self.acquire(config)

        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(self.followed.run()), tasks.create_task(self.keeper.keep(take_another))]
            yield
            for task in started:
                task.cancel()

    @property
    def lease(self) -> Lease:
        assert self.keeper._held is not None
        return self.keeper._held.lease

    @property
    def key(self) -> str:
        return self.registry.key(self.lease.subnets)
