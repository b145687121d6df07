"""The backends there are: from the network config to the one it names. Nothing else knows them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from flanneld_py.encap.backends import alloc, hostgw, udp, vxlan
from flanneld_py.encap.backends.base import Backend, Found, OnLink, Underlay
from flanneld_py.encap.family import IPV4, IPV6, Family
from flanneld_py.encap.kernel import Kernel
from flanneld_py.registry.config import ConfigInvalid, NetworkConfig
from flanneld_py.registry.model import LeaseAttrs

DatapathChoice = Literal["auto", "kernel", "userspace"]
"""Who carries the packets, as the operator wants it (`--datapath`)."""


def published(parts: Sequence[tuple[Backend, Found]]) -> LeaseAttrs:
    """Return what the host publishes with its lease: what each family's backend does, IPv4's first."""
    attrs, *others = (backend.attrs(found) for backend, found in parts)
    for other in others:
        attrs = replace(attrs, public_ip6=other.public_ip6, backend_v6_data=other.backend_v6_data)
    return attrs


async def make(
    config: NetworkConfig, underlay: Underlay, kernel: Kernel, choice: DatapathChoice, on_link: Mapping[Family, OnLink]
) -> tuple[Backend, ...]:
    """Make the backend that the config names, for each family that is on. Raises ConfigInvalid if it cannot be had."""
    families = [family for family in (IPV4, IPV6) if family.config(config) is not None]
    match config.backend_type:
        case vxlan.BACKEND_TYPE:
            userspace, why = choice == "userspace", f"--datapath {choice}"
            if choice == "auto" and (lacking := await kernel.why_no_vxlan()):
                userspace, why = True, f"the kernel has no VXLAN devices: {lacking}"
            objects = kernel.nexthop_objects
            return tuple(
                vxlan.Vxlan(
                    config, underlay, on_link[family], family, nexthop_objects=objects, userspace=userspace, why=why
                )
                for family in families
            )
        case hostgw.BACKEND_TYPE:
            return tuple(hostgw.HostGw(config, underlay, on_link[family], family) for family in families)
        case alloc.BACKEND_TYPE:
            return tuple(alloc.Alloc(config, underlay, family) for family in families)
        case udp.BACKEND_TYPE:
            if choice == "kernel":
                raise ConfigInvalid(
                    "Backend.Type is 'udp', which no kernel carries, and --datapath is 'kernel': "
                    "set --datapath to 'auto' or 'userspace', or Backend.Type to 'vxlan'"
                )
            return tuple(udp.Udp(config, underlay, on_link[family], family) for family in families)
        case other:
            raise ConfigInvalid(f"Backend.Type is {other!r}: supported are 'vxlan', 'host-gw', 'udp' and 'alloc'")
