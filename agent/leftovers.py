"""What an earlier run made, or we over another underlay interface, and nobody wants any more: removed.

    devices   with our mark, or of a data-plane process whose socket is in our folder; with an address in a subnet that
              is ours or was the earlier run's; that no backend of now has: of a family that was turned off, of another
              Backend.Type or VNI
    routes    with our protocol, into a network that is ours or was the earlier run's; on no device that a backend of
              their family looks after

By level: nothing but the subnet file tells what an earlier run made. So another network's agent on this host keeps its
own, whether it runs or not. What cannot be removed is said, and all else goes on. Not here: `--cleanup` (cleanup.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flanneld_py.agent.log import facts, log
from flanneld_py.agent.membership import Membership
from flanneld_py.agent.settings import control_socket
from flanneld_py.encap.family import IPV4, Network
from flanneld_py.encap.kernel import Kernel, KernelError
from flanneld_py.encap.state import TunLink, VxlanLink
from flanneld_py.registry.model import Lease


class Leftovers:
    """`control` is the folder of the data planes' sockets, `earlier` network and subnet of each family back then."""

    def __init__(self, kernel: Kernel, control: Path, earlier: Sequence[tuple[Network, Network]]) -> None:
        self._kernel = kernel
        self._control = control
        self._earlier = earlier

    async def remove(self, member: Membership, lease: Lease | None) -> None:
        """Remove what these backends with our lease do not want."""
        subnets = lease.subnets.families if lease is not None else ()
        try:
            # Routes first, before other tasks run: what they forget of another interface is theirs no more.
            keep = {
                (4 if backend.family is IPV4 else 6, device)
                for backend in member.backends
                for device in (backend.device, backend.parent)
                if device is not None
            }
            networks = [*member.networks, *(network for network, _ in self._earlier)]
            for route in self._kernel.remove_routes(networks, keep):
                log.info("removed what an earlier configuration left", **facts(what=route))
            for device in self._kernel.devices_in([*subnets, *(subnet for _, subnet in self._earlier)]):
                if device not in member.devices:
                    await self._remove_device(device)
        except (KernelError, OSError) as error:
            _cannot(error)

    async def _remove_device(self, device: str) -> None:
        control = control_socket(self._control, device)
        match self._kernel.link(device):
            case VxlanLink():
                await self._kernel.delete_link(device)
            case TunLink() if control.exists():
                from flanneld_py.agent.line import DatapathError, clear_away, stop_process  # Most hosts never need it.

                try:
                    await stop_process(control)
                except DatapathError as error:
                    _cannot(error)
                    return
                clear_away(control)
            case _:
                return
        log.info("removed what an earlier configuration left", **facts(what=f"device {device}"))


def _cannot(error: Exception) -> None:
    log.warning("what an earlier configuration left cannot be removed; all else goes on", **facts(reason=error))
