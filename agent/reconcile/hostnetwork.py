"""What a network config makes of this host over one underlay: what it publishes, and what it wants here. Pure but for
a look at our own device, whose MAC is kept.

Not here: getting a lease (agent/lease/claim.py), and bringing about what is wanted (reconciler.py,
agent/datapath/supervise.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flanneld_py.agent.log import facts, log
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.encap.backends import table
from flanneld_py.encap.backends.base import Backend, Found, Underlay
from flanneld_py.encap.family import Network
from flanneld_py.encap.kernel import Kernel
from flanneld_py.encap.peers import Own
from flanneld_py.registry.config import NetworkConfig
from flanneld_py.registry.model import Lease, LeaseAttrs


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """Config, underlay, and what was made of both: a backend for each family that is on, IPv4's first."""

    config: NetworkConfig
    underlay: Underlay
    backends: tuple[Backend, ...]

    @property
    def devices(self) -> list[str]:
        """The devices of our own."""
        return [backend.device for backend in self.backends if backend.device]

    @property
    def networks(self) -> list[Network]:
        """The network of each family."""
        return [backend.family.network(self.config) for backend in self.backends]

    @property
    def exclusive(self) -> list[str]:
        """What only one agent of a host can have, in an operator's words: the devices, without any the networks."""
        networks = [f"Network {network}" for network in self.networks]
        return [f"device {device}" for device in self.devices] or networks

    def tell(self) -> None:
        """Say in the log who carries the packets, and why."""
        for backend in self.backends:
            carrier = "in userspace" if backend.userspace else "by the kernel"
            about = facts(backend=self.config.backend_type, device=backend.device, reason=backend.why)
            log.info(f"packets are carried {carrier}", **about)

    def attrs(self, identity: str, had: Lease | None, leases: Iterable[Lease], kernel: Kernel) -> LeaseAttrs:
        """Work out what to publish, given the lease that we have so far and all that there are."""
        ours = had.subnets if had is not None else None
        others = [lease for lease in leases if lease.subnets != ours]

        def found(backend: Backend) -> Found:
            return Found(identity, had, kernel.link(backend.device) if backend.device else None, others)

        return table.published([(backend, found(backend)) for backend in self.backends])

    def wanted(self, key: str, lease: Lease, workers: int) -> tuple[Desired, ...]:
        """Work out what our lease, at a key, means on this host, for each family."""

        def wanted(backend: Backend) -> Desired:
            address, public_ip = self.underlay.addresses(backend.family)
            own = Own(key, lease.subnets, public_ip, address, self.underlay.broadcasts)
            datapath = backend.datapath(lease)
            if datapath is not None:
                datapath = replace(datapath, workers=workers)
            return Desired(self.config, backend, own, backend.link(lease), datapath)

        return tuple(map(wanted, self.backends))
