"""What is read of a real host for the choice of the underlay.

throw-away namespace: p0 10.0.0.1, fd00::1 ---- p1, and a VPN's table with a default route of its own
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flanneld_py.agent.underlay.choose import IFA_F_DEPRECATED, SCOPE_LINK
from flanneld_py.agent.underlay.host import read_host
from tests.contract.kernel_host import namespace_with_underlay, run

pytestmark = pytest.mark.root


async def test_interfaces_addresses_and_default_routes_of_the_main_table() -> None:
    with namespace_with_underlay():
        for line in (
            "link add wg0 type veth peer name wg1",
            "link set wg0 up",
            "addr add fd00:9::1/64 dev wg0 nodad",
            "addr add 169.254.7.7/16 dev p0 scope link",
            "addr add 10.0.0.9/24 dev p0 preferred_lft 0 valid_lft 100",
            "-6 route add default via fd00:9::2 dev wg0 metric 1 table 100",
            "-6 route add default via fd00::2 dev p0 metric 2000",
            "route add default via 10.0.0.2 dev p0 metric 100",
        ):
            run(f"ip {line}")
        host = await read_host(ip_address("10.0.0.77"))
        by_name = {interface.name: interface for interface in host.interfaces}
        assert host.defaults == ("p0",)
        assert host.defaults6 == ("p0",), "that of the VPN is in a table of its own"
        assert host.reach == (by_name["p0"].index, ip_address("10.0.0.1"))
        assert by_name["lo"].loopback
        assert not by_name["wg0"].live, "its other end is down"
        found = {entry.address: entry for entry in by_name["p0"].addresses}
        assert found[ip_address("169.254.7.7")].scope == SCOPE_LINK
        assert found[ip_address("10.0.0.9")].flags & IFA_F_DEPRECATED
        assert found[ip_address("10.0.0.1")].broadcast == ip_address("10.0.0.255")
        run("ip -6 route add default metric 5 nexthop via fd00:9::2 dev wg0 nexthop via fd00::2 dev p0")
        run("ip route del default")
        run("ip route add default nexthop via 10.0.0.2 dev p0 nexthop via 10.0.0.3 dev p0")
        host = await read_host(None)
        assert (host.defaults, host.defaults6, host.reach) == (("p0",), ("wg0", "p0"), None)
