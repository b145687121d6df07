"""The blackhole route for our own subnet: packets to containers that are not there end here (`--ip-blackhole-route`).

Without it they would follow the default route, where every container has a route of its own and none covers the subnet.
It has the worst metric there is and our protocol number: any other route to the subnet, a bridge's say, goes before it.
"""

from __future__ import annotations

from errno import EEXIST, ESRCH
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.state import FORMER_PROTOCOL, MARKS, ROUTE_PROTOCOL

WORST = 0xFFFFFFFF


async def put(subnet: IPv4Network | IPv6Network) -> bool:
    """Make the route; tell whether it was not there, or with our former protocol. Raises KernelError."""
    if await _change("add", subnet, ROUTE_PROTOCOL, done_already=EEXIST):
        return True
    if not await _change("del", subnet, FORMER_PROTOCOL, done_already=ESRCH):
        return False
    await _change("add", subnet, ROUTE_PROTOCOL, done_already=EEXIST)
    return True


async def remove(subnet: IPv4Network | IPv6Network) -> bool:
    """Remove the route; tell whether it was there. Raises KernelError."""
    removed = [await _change("del", subnet, protocol, done_already=ESRCH) for protocol in MARKS]
    return any(removed)


async def _change(
    what: Literal["add", "del"], subnet: IPv4Network | IPv6Network, protocol: int, *, done_already: int
) -> bool:
    try:
        async with AsyncIPRoute() as route:
            await route.route(what, dst=str(subnet), type="blackhole", proto=protocol, priority=WORST)
    except OSError as error:
        raise KernelError(f"cannot {what} blackhole route {subnet}: {error.strerror}") from error
    except NetlinkError as error:
        if error.code == done_already:
            return False
        raise KernelError(f"cannot {what} blackhole route {subnet}: {error.args[1]}") from error
    return True
