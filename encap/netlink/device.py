"""Our devices through pyroute2: make, change, delete. Few and slow, so the general library serves.

Every coroutine opens a socket of its own in the network namespace of the calling thread and raises RequestFailed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from errno import EADDRINUSE, ENODEV
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink.rtnetlink import IN6_ADDR_GEN_MODE_NONE
from flanneld_py.encap.netlink.rtsocket import RequestFailed
from flanneld_py.encap.state import DEVICE_MARK, OurLink, TunLink, VxlanLink, text

log = logging.getLogger(__name__)

_NO_LINK_LOCAL = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]}


async def create(want: VxlanLink, parent: int) -> None:
    """Make the device as flannel does: time to live chosen by the kernel, no queue, outer UDP checksums its default.

    The MAC is given from the start: udev's MACAddressPolicy changes only addresses that the kernel chose.
    `parent` is an interface index, 0 for none.
    """
    async with _route() as route:
        gbp = {"vxlan_gbp": True} if want.gbp else {}
        await route.link(
            "add",
            ifname=want.name,
            address=text(want.mac),
            mtu=want.mtu,
            txqlen=0,
            kind="vxlan",
            vxlan_port=want.port,
            **_changeable(want, parent),
            **gbp,
        )
        _refuse_router_advertisements(want.name)
        found = await route.link_lookup(ifname=want.name)
        await route.link("set", index=found[0], ifalias=DEVICE_MARK, state="up" if want.up else "down")


async def ask_for_nothing() -> None:
    """Ask for a VXLAN device without saying which: refused with EINVAL where there are any, else with EOPNOTSUPP.

    Quicker than to make one and delete it, which takes the kernel 30 ms.
    """
    async with _route() as route:
        await route.link("add", ifname="flannel-probe", kind="vxlan")


def require_changeable(have: VxlanLink, want: VxlanLink) -> None:
    """Check that nothing is to change that the kernel does not change on a device. Raises KernelError."""
    for what, old, new in (
        ("VNI", have.vni, want.vni),
        ("port", have.port, want.port),
        ("GBP", have.gbp, want.gbp),
        ("group", have.group, want.group),
        ("local address's family", len(have.local or b""), len(want.local or b"")),
        ("binding to a parent", have.parent is None, want.parent is None),
    ):
        if old != new:
            raise KernelError(f"the {what} of {want.name} cannot be changed; delete the device and create it anew")


async def change(index: int, have: OurLink, want: OurLink, parent: int) -> None:
    """Bring what can be changed in place to what is wanted; both are of the same kind."""
    async with _route() as route:
        if isinstance(have, VxlanLink) and isinstance(want, VxlanLink):
            if (have.local, have.parent, have.learning) != (want.local, want.parent, want.learning):
                await route.link("set", index=index, kind="vxlan", **_changeable(want, parent))
            if not have.marked:
                await route.link("set", index=index, ifalias=DEVICE_MARK)
            if have.mac != want.mac:
                await route.link("set", index=index, address=text(want.mac))
        if isinstance(have, TunLink) and not have.silent:
            await route.link("set", index=index, IFLA_AF_SPEC=_NO_LINK_LOCAL)  # Before it is up: then it is too late.
        if have.mtu != want.mtu:
            await route.link("set", index=index, mtu=want.mtu)
        if have.up != want.up:
            _refuse_router_advertisements(want.name)
            await route.link("set", index=index, state="up" if want.up else "down")


async def delete(index: int) -> None:
    """Delete the device; absent is no error."""
    try:
        async with _route() as route:
            await route.link("del", index=index)
    except RequestFailed as refused:
        if refused.errno != ENODEV:
            raise


def _changeable(want: VxlanLink, parent: int) -> dict[str, Any]:
    source = {} if want.local is None else {f"vxlan_local{'6' if len(want.local) == 16 else ''}": text(want.local)}
    bound = {"vxlan_link": parent} if parent else {}
    return {"vxlan_id": want.vni, "vxlan_learning": want.learning, **source, **bound}


def _refuse_router_advertisements(name: str) -> None:
    # The overlay's hosts are not our routers: one container that sends advertisements would else give every host a
    # default route into the overlay. Kernels without IPv6 have no such file; in a container it may be read-only.
    try:
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(
            "cannot set net.ipv6.conf.%s.accept_ra to 0: %s; set it on the host, or IPv6 forwarding on",
            name,
            error.strerror,
        )


@contextlib.asynccontextmanager
async def _route() -> AsyncIterator[Any]:
    try:
        async with AsyncIPRoute() as route:
            yield route
    except OSError as error:  # No socket to be had.
        raise RequestFailed(error.errno or 0, "") from error
    except NetlinkError as error:
        words = str(error.args[1])
        raise RequestFailed(error.code, "" if words == os.strerror(error.code) else words) from error


def port_is_taken(want: VxlanLink) -> bool:
    """Tell whether a program has the UDP port that a device is to have, over its version of IP."""
    family = socket.AF_INET6 if want.local is not None and len(want.local) == 16 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as tried:
        if family == socket.AF_INET6:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            tried.bind(("", want.port))
        except OSError as error:
            return error.errno == EADDRINUSE
    return False
