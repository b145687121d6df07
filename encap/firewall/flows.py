"""Have flows that began without our masquerade begin anew, with it. In portions, between which the event loop runs.

dump of conntrack -> those that the rules would masquerade -> none of the host's own -> deleted
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from flanneld_py.encap.family import IPAddress
from flanneld_py.encap.firewall import conntrack
from flanneld_py.encap.firewall.policy import Policy, rules
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.request import get_route
from flanneld_py.encap.netlink.rtsocket import Interrupted, RequestFailed, RouteSocket

NETLINK_NETFILTER = 12


Pause = Callable[[], Awaitable[None]]
"""Lets other tasks run."""


async def begin_anew(policies: Sequence[Policy], pause: Pause) -> int:
    """Delete such flows from conntrack; return how many. A kernel that cannot tell has none."""
    count = 0
    for policy in policies:
        if policy.masquerade:
            with suppress(OSError, KernelError, RequestFailed, rt.Malformed):
                count += await _of(policy, pause)
    return count


async def _of(policy: Policy, pause: Pause) -> int:
    family = rt.AF_INET if policy.network.version == 4 else rt.AF_INET6
    wanted, found = rules(policy).masquerade, []
    first, mask = int(policy.network.network_address), int(policy.network.netmask)
    with RouteSocket(NETLINK_NETFILTER) as asker, suppress(Interrupted):  # What was read is true all the same.
        for buffer, messages in asker.dump(lambda seq: conntrack.dump(seq, family)):
            for message in messages:
                ends = conntrack.ends(buffer, message.at)
                if ends is not None and all(int.from_bytes(end) & mask != first for end in ends):
                    continue  # Most flows of most hosts.
                flow = conntrack.read_flow(buffer, message.at, message.end)
                if flow is not None and conntrack.lacks_masquerade(flow, wanted):
                    found.append(flow)
            await pause()
    with RouteSocket() as routes, RouteSocket(NETLINK_NETFILTER) as asker:
        host: dict[IPAddress, bool] = {}
        gone = 0
        for flow in found:
            await pause()
            for address in (flow.source, flow.destination):
                if address not in host:
                    host[address] = _is_hosts(routes, address)
            if not (host[flow.source] or host[flow.destination]):
                seq = asker.next_seq()
                gone += not asker.send([(seq, conntrack.delete(seq, flow))])
        return gone


def _is_hosts(routes: RouteSocket, address: IPAddress) -> bool:
    """Tell whether an address is this host's own, or none that packets are forwarded to."""
    try:
        buffer, message = routes.ask(lambda seq: get_route(seq, ip_address(address).packed))
    except RequestFailed:
        return False
    return bool(rt.ROUTE.unpack_from(buffer, message.at)[7] != rt.RTN_UNICAST)
