"""Who carries the packets, as the Reconciler sees it: told which peers there are, and to hold or release them.

The kernel needs no telling: its entries say it. The userspace data plane has a table of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.datapath.paths import control_socket
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.hold import Holder
from flanneld_py.encap.family import Family
from flanneld_py.encap.peers import Peer

if TYPE_CHECKING:
    from flanneld_py.agent.datapath.supervise import Supervisor

Changes = Iterable[tuple[str, Peer | None]]
"""Peers by key, None for one that is not used any more."""


class PeerSink(Holder, Protocol):
    """See the module's docstring."""

    def update(self, changes: Changes) -> None:
        """Take in which peers are used now, or not any more."""
        ...


class KernelSink:
    """Nothing to be told."""

    def update(self, changes: Changes) -> None:
        """See PeerSink."""

    def hold(self) -> int:
        """See Holder."""
        return 0

    def release(self) -> None:
        """See Holder."""


class UserspaceSink:
    """The data-plane process of one family, by way of its Supervisor."""

    def __init__(self, supervisor: Supervisor, family: Family) -> None:
        self._supervisor = supervisor
        self._family = family
        self.hold = supervisor.hold
        self.release = supervisor.release

    def update(self, changes: Changes) -> None:
        """See PeerSink."""
        from flanneld_py.encap.datapath.control import messages  # Most hosts never need it.

        def entry(key: str, peer: Peer) -> messages.Peer:
            subnet, address = self._family.subnet(peer.lease.subnets), self._family.public(peer.lease.attrs)
            assert subnet is not None
            assert address is not None
            base, length = subnet.network_address.packed, subnet.prefixlen
            return messages.Peer(key, base, length, address.packed, peer.vtep or bytes(6))

        self._supervisor.update((key, entry(key, peer) if peer else None) for key, peer in changes)


def make_supervisors(
    wanted: Iterable[Desired],
    control: Path,
    start: Callable[[Path], Awaitable[None]],
    prepared: Callable[[], Awaitable[None]],
    clock: Clock,
    rng: Random,
) -> Iterator[tuple[Family, Supervisor]]:
    """Make what keeps the userspace data planes running, one for each family; none if the kernel carries."""
    for each in wanted:
        if each.datapath is not None:
            from flanneld_py.agent.datapath.supervise import Supervisor  # Most hosts never need it.

            socket = control_socket(control, each.datapath.device)
            yield each.backend.family, Supervisor(socket, start, prepared, each.datapath, clock, rng)
