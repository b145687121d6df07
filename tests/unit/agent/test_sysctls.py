"""Which kernel settings are complained of, and when."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.sysctls import EVERY, Sysctls, complaints
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.hostgw import HostGw
from flanneld_py.encap.backends.vxlan import Vxlan
from flanneld_py.encap.family import IPV4, IPV6
from flanneld_py.encap.peers import Own
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.model import Subnets
from tests.fakes.clock import ManualClock

CONFIG = (
    b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd42::/48",'
    b' "Backend": {"Type": "vxlan", "DirectRouting": %s}}'
)
ADDRESS, ADDRESS6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
UNDERLAY = Underlay("eth0.7", 1500, ADDRESS, ADDRESS, ADDRESS6, ADDRESS6)
OWN = Own("k", Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd42:0:0:1::/64")), ADDRESS, ADDRESS)
RIGHT = {
    "sys/net/ipv4/ip_forward": "1",
    "sys/net/ipv4/conf/all/rp_filter": "0",
    "sys/net/ipv4/conf/flannel.1/rp_filter": "2",
    "sys/net/ipv4/conf/eth0.7/rp_filter": "0",
    "sys/net/ipv4/conf/flannel.1/forwarding": "1",
    "sys/net/ipv4/conf/eth0.7/forwarding": "1",
    "sys/net/ipv6/conf/all/forwarding": "1",
    "sys/net/ipv6/conf/eth0.7/accept_ra": "1",
    "net/if_inet6": "fe80000000000000000000fffe000001 02 40 20 80   eth0.7\n"
    "20010db8000000000000000000000001 02 40 00 80   eth0.7\n20010db8000000000000000000000009 03 40 00 00     eth8",
}
LEARNED = "20010db8000000000000000000000001 02 40 00 00   eth0.7"


def host(*, direct: bool = False) -> tuple[Desired, ...]:
    config = parse_config(CONFIG % str(direct).lower().encode())
    backends = [Vxlan(config, UNDERLAY, lambda _: False, family, nexthop_objects=True) for family in (IPV4, IPV6)]
    return tuple(Desired(config, backend, OWN, None, None) for backend in backends)


def said(wanted: tuple[Desired, ...], **settings: str) -> list[str]:
    there = RIGHT | {path.replace("__", "/").replace("_D_", "."): value for path, value in settings.items()}
    return [do for do, _ in complaints(wanted, there.get).items()]


def test_a_host_that_is_right_hears_nothing() -> None:
    assert said(host()) == said(host(direct=True)) == []
    assert complaints(host(direct=True), lambda _: None) == {}, "no /proc/sys, as in some containers"
    assert complaints((), RIGHT.get) == {}


def test_forwarding() -> None:
    assert said(host(), sys__net__ipv4__ip_forward="0", sys__net__ipv4__conf__eth0_D_7__forwarding="0") == [
        "sysctl -w net.ipv4.ip_forward=1"
    ]
    assert said(host(), sys__net__ipv4__conf__eth0_D_7__forwarding="0") == [
        "sysctl -w net.ipv4.conf.eth0/7.forwarding=1"
    ]
    assert said(host(), sys__net__ipv6__conf__all__forwarding="0") == [
        "sysctl -w net.ipv6.conf.eth0/7.accept_ra=2, or a default route by router advertisement is lost;"
        " then sysctl -w net.ipv6.conf.all.forwarding=1"
    ]
    assert said(host(), sys__net__ipv6__conf__all__forwarding="0", sys__net__ipv6__conf__eth0_D_7__accept_ra="2") == [
        "sysctl -w net.ipv6.conf.all.forwarding=1"
    ]
    assert said(host(), net__if_inet6=LEARNED) == ["sysctl -w net.ipv6.conf.eth0/7.accept_ra=2"]
    assert said(host(), net__if_inet6=LEARNED, sys__net__ipv6__conf__eth0_D_7__accept_ra="2") == []
    assert said(host(), net__if_inet6=LEARNED, sys__net__ipv6__conf__eth0_D_7__accept_ra="0") == [], "networkd does it"
    assert said(host()[:1], sys__net__ipv6__conf__all__forwarding="0") == [], "IPv6 is off"


@pytest.mark.parametrize(
    "strict", ["sys__net__ipv4__conf__all__rp_filter", "sys__net__ipv4__conf__eth0_D_7__rp_filter"]
)
def test_a_strict_reverse_path_filter_matters_where_there_are_two_ways(strict: str) -> None:
    assert said(host(direct=True), **{strict: "1"}) == ["sysctl -w net.ipv4.conf.all.rp_filter=2"]
    assert said(host(), **{strict: "1"}) == []
    config = parse_config(CONFIG.replace(b"vxlan", b"host-gw") % b"false")
    alone = (Desired(config, HostGw(config, UNDERLAY, lambda _: True), OWN, None, None),)
    assert said(alone, **{strict: "1"}) == []


async def test_what_is_turned_off_while_it_runs_is_named_once_and_its_end_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "flanneld-py")
    clock, there, wanted = ManualClock(), dict(RIGHT), list[Desired]()
    sysctls = Sysctls(lambda: wanted, clock, there.get)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(sysctls.run())
        await clock.run_for(60)
        wanted += host()
        await clock.run_for(60)
        assert not caplog.records
        there["sys/net/ipv4/ip_forward"] = "0"
        await clock.run_until(lambda: bool(sysctls.found), EVERY)
        await clock.run_for(600)
        there["sys/net/ipv4/ip_forward"] = "1"
        await clock.run_until(lambda: not sysctls.found, EVERY)
        life.cancel()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
