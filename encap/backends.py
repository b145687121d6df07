"""The backends there are: from the network config to the one it names. Nothing else knows them all."""

from __future__ import annotations

from typing import Literal

from flanneld_py.encap import udp, vxlan
from flanneld_py.encap.backend import Backend, Underlay
from flanneld_py.encap.kernel import Kernel
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig

Choice = Literal["auto", "kernel", "userspace"]
"""Who carries the packets, as the operator wants it (`--datapath`)."""


async def make(config: NetworkConfig, underlay: Underlay, kernel: Kernel, choice: Choice) -> Backend:
    """Make the backend that the config names. Raises ConfigInvalid if it cannot be had."""
    if config.ipv4 is None or config.ipv6 is not None:
        raise ConfigInvalid("IPv6 is not supported yet: EnableIPv6 must be false and EnableIPv4 true")
    match config.backend_type:
        case vxlan.BACKEND_TYPE:
            why = "--datapath userspace" if choice == "userspace" else ""
            if choice == "auto" and (lacking := await kernel.why_no_vxlan()):
                why = f"the kernel has no VXLAN devices: {lacking}"
            return vxlan.Vxlan(config, underlay, nexthop_objects=kernel.nexthop_objects, why_userspace=why)
        case udp.BACKEND_TYPE:
            if choice == "kernel":
                raise ConfigInvalid(
                    "Backend.Type is 'udp', which no kernel carries, and --datapath is 'kernel': "
                    "set --datapath to 'auto' or 'userspace', or Backend.Type to 'vxlan'"
                )
            return udp.Udp(config, underlay)
        case other:
            raise ConfigInvalid(f"Backend.Type is {other!r}: supported are 'vxlan' and 'udp'")
