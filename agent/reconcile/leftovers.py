"""What an earlier run made, or we over another underlay interface, and nobody wants any more: removed.

    on our device   what an earlier run had there in another Network: its base address, before ours it would be the
                    source of what this host sends, and its neighbours
    devices         with our mark, or of a data-plane process whose socket is in our folder; with an address in a subnet
                    that is ours or was the earlier run's; that no backend of now has: of a family that was turned off,
                    of another Backend.Type or VNI
    routes          with our protocol, into a network that is ours or was the earlier run's; on no device that a backend
                    of their family looks after

By level: nothing but the subnet file tells what an earlier run made, and only if an agent of our network wrote it. So
another network's agent on this host keeps its own, whether it runs or not; what one that runs has is known by its
locks besides, and the network of one that is stopped by its subnet file, if that is in our file's folder. What
cannot be removed is said and tried again, and all else goes on. Not here: `--cleanup` (cleanup.py), firewall rules
(agent/firewall/reconciler.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.datapath.paths import control_socket
from flanneld_py.agent.lock import Held
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.previous_run import PreviousRun
from flanneld_py.agent.reconcile.hostnetwork import HostNetwork
from flanneld_py.encap.family import IPV4
from flanneld_py.encap.kernel import Kernel, KernelError
from flanneld_py.encap.state import Address, Entry, Neighbour, Operation, TunLink, Verb, VxlanLink, describe
from flanneld_py.registry.model import Lease

_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))


class Leftovers:
    """`control` is the folder of the data planes' sockets; `others` tells what other agents have; it raises OSError."""

    def __init__(
        self, kernel: Kernel, control: Path, earlier: PreviousRun, others: Callable[[], Held], clock: Clock, rng: Random
    ) -> None:
        self._kernel = kernel
        self._control = control
        self._earlier = earlier
        self._others = others
        self._clock = clock
        self._backoff = Backoff(1.0, 300.0, rng)
        self._trouble = OnChange(clock)
        self._again, self._cleared = asyncio.Event(), False
        self._latest: list[tuple[HostNetwork, Lease | None]] = []

    async def remove(self, member: HostNetwork, lease: Lease | None) -> None:
        """Remove what these backends with our lease do not want."""
        self._latest = [(member, lease)]
        try:
            await self._remove(member, lease)
        except (KernelError, OSError) as error:
            self._trouble.warn("what an earlier configuration left cannot be removed; all else goes on", error)
            self._again.set()
        else:
            self._trouble.over()
            self._backoff.reset()

    async def run(self) -> Never:
        """Try again for good where something could not be removed."""
        while True:
            await self._clock.wait(self._again, float("inf"))
            await self._clock.sleep(self._backoff.next())
            self._again.clear()
            for member, lease in self._latest:
                await self.remove(member, lease)

    async def _remove(self, member: HostNetwork, lease: Lease | None) -> None:
        others = self._others()
        subnets = [*(lease.subnets.families if lease is not None else ()), *self._earlier.subnets]
        found = [device for device in self._kernel.devices_in(subnets) if device not in others.devices]
        # Routes first, before other tasks run: what they forget of another interface is theirs no more.
        keep = {
            (4 if backend.family is IPV4 else 6, device)
            for backend in member.backends
            for device in (backend.device, backend.parent)
            if device is not None
        }
        # On another device of this mark they are another agent's, be it stopped: on ours they go with it.
        theirs = {*self._kernel.devices_in(_EVERYWHERE), *others.devices} - {*found}
        keep |= {(version, device) for version in (4, 6) for device in theirs}
        networks = [*member.networks, *self._earlier.networks]
        # Those that go by no device of theirs (direct routes) are told by where they lead.
        elsewhere = [*others.networks, *self._earlier.neighbours]
        for route in self._kernel.remove_routes(networks, keep, elsewhere):
            log.info("removed what an earlier configuration left", **facts(what=route))
        self._clear(member, lease)
        for device in found:
            if device not in member.devices:
                await self._remove_device(device)

    def _clear(self, member: HostNetwork, lease: Lease | None) -> None:
        """Remove from our own device what belongs to an earlier network or subnet, whoever's agent had that device."""
        ours = lease.subnets.families if lease is not None else ()
        gone = [subnet for _, subnet in self._earlier.families if subnet not in ours]
        networks = [network for network, _ in self._earlier.families if network not in member.networks]
        if not gone or self._cleared:
            return

        def is_former(entry: Entry) -> bool:
            match entry:
                case Address(device, address, _) if device in member.devices:
                    return any(address == subnet.network_address.packed for subnet in gone)
                case Neighbour(device, address, _) if device in member.devices:
                    return any(ip_address(address) in network for network in networks)
            return False

        found = [entry for part in self._kernel.dump() for entry in part if is_former(entry)]
        for failure in self._kernel.apply([Operation(Verb.REMOVE, entry) for entry in found]):
            raise KernelError(f"{describe(failure.operation.entry)} cannot be removed: {failure.message}")
        self._cleared = True  # There is no other run before ours.
        for entry in found:
            log.info("removed what an earlier configuration left", **facts(what=describe(entry)))

    async def _remove_device(self, device: str) -> None:
        control = control_socket(self._control, device)
        match self._kernel.link(device):
            case VxlanLink():
                await self._kernel.delete_link(device)
            case TunLink() if control.exists():
                from flanneld_py.agent.datapath.client import (  # Most hosts never need it.
                    DatapathError,
                    clear_away,
                    stop_process,
                )

                try:
                    await stop_process(control)
                except DatapathError as error:
                    raise KernelError(str(error)) from error
                clear_away(control)
            case _:
                return
        log.info("removed what an earlier configuration left", **facts(what=f"device {device}"))
