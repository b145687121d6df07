"""What Netlink does that the fake cannot show: other forms of objects in a real kernel, overflow, and packets.

The ping at the end, through tunnels that Netlink alone has made:

    throw-away namespace                              another
      flannel.1    10.5.1.0 -- p0 10.0.0.1 ---------- p1 10.0.0.2 -- flannel.1    10.5.2.0
      flannel-v6.1 fd05:1:: -- p0 fd00::1  ---------- p1 fd00::2  -- flannel-v6.1 fd05:2::
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network

import pytest

from flanneld_py.encap.datapath.tun import Tun
from flanneld_py.encap.kernel import KernelError, LinkChanged, Lost, Seen
from flanneld_py.encap.netlink import blackhole
from flanneld_py.encap.netlink.netlink import Netlink
from flanneld_py.encap.state import (
    Address,
    Entry,
    FdbEntry,
    ForeignLink,
    Neighbour,
    Nexthop,
    Operation,
    Route,
    TunLink,
    Verb,
)
from tests.contract.kernel_host import (
    DEVICE,
    DEVICE6,
    LINK,
    LINK6,
    Host,
    Linux,
    ask,
    entered,
    ip,
    mac,
    namespace_with_underlay,
    peer,
    run,
    throwaway_namespace,
)


@pytest.fixture
def namespace() -> Iterator[str]:
    with namespace_with_underlay() as name:
        yield name


@pytest.mark.root
async def test_a_queue_that_overflows_is_told_as_lost(namespace: str) -> None:
    kernel, foreigner = Netlink(receive_buffer=4096), Linux()
    host = Host(kernel, foreigner)
    try:
        host.listen()
        await kernel.create_link(LINK)
        await host.settle()
        for number in range(40):
            foreigner.put(Neighbour(DEVICE, ip(f"10.9.{number}.0"), mac(number)))
        await host.heard(lambda events: Lost() in events)
        await host.settle()
        late = Neighbour(DEVICE, ip("10.10.0.0"), mac(99))
        foreigner.put(late)
        await host.heard(lambda events: Seen(late) in events)
        assert len(host.read()) == 41
    finally:
        kernel.close()


@contextmanager
def no_more_files() -> Iterator[None]:
    """Whatever opens a file or socket fails with EMFILE."""
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.root
async def test_without_free_descriptors_everything_fails_so_that_it_is_tried_again(namespace: str) -> None:
    kernel = Netlink()
    there = Address(DEVICE6, ip("fd05:1::"), 128)
    try:
        await kernel.create_link(LINK)
        await kernel.create_link(LINK6)
        kernel.listen([DEVICE], lambda _: None)
        run(f"ip address add fd05:1::/127 dev {DEVICE6}")
        with no_more_files():
            assert kernel.link(DEVICE) == LINK, "this needs none"
            assert kernel.apply([Operation(Verb.ADD, entry) for entry in peer(2, objects=True)]) == [], "nor does this"
            (failure,) = kernel.apply([Operation(Verb.ADD, there)])
            assert failure.errno == errno.EEXIST
            for call in (
                lambda: list(kernel.dump()),
                lambda: kernel.listen([DEVICE], lambda _: None),
                lambda: kernel.devices_in([ip_network("10.5.1.0/24")]),
                lambda: kernel.remove_routes([ip_network("10.5.0.0/16")], ()),
            ):
                with pytest.raises(KernelError, match="Too many open files"):
                    call()
            for coroutine in (
                kernel.delete_link(DEVICE),
                kernel.change_link(LINK, replace(LINK, mtu=1400)),
                kernel.create_link(replace(LINK, name="flannel.2", vni=2)),
                blackhole.put(ip_network("10.5.1.0/24")),
            ):
                with pytest.raises(KernelError, match="Too many open files"):
                    await coroutine
            assert await kernel.why_no_vxlan() == ""
        assert set(peer(2, objects=True)) <= {entry for part in kernel.dump() for entry in part}
    finally:
        kernel.close()


def batch(lines: list[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)


@pytest.mark.root
async def test_a_change_of_ours_waits_for_no_end_of_others_changes(namespace: str) -> None:
    """A routing daemon loads its table: what it does meanwhile is told in portions, between which others run."""
    kernel = Netlink(receive_buffer=64 << 20)
    foreign = [f"route add 198.18.{at // 250}.{at % 250}/32 dev p0 proto 186\n" for at in range(12_000)]
    try:
        kernel.listen([DEVICE], lambda _: None)
        await kernel.create_link(LINK)
        batch(foreign)
        assert kernel.apply([Operation(Verb.ADD, entry) for entry in peer(1, objects=False)]) == []
        assert kernel._listening is not None
        assert kernel._listening[1].socket.recv(1 << 16), "much is still to be told"
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_device_stays_where_its_successor_cannot_be(namespace: str) -> None:
    kernel = Netlink()
    try:
        await kernel.create_link(LINK)
        await kernel.create_link(replace(LINK, name="flannel.9", vni=9, port=4799))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.bind(("", 4790))
            with pytest.raises(KernelError, match=r"flannel\.1 stays as it is: UDP port 4790 is taken by a program"):
                await kernel.delete_link(DEVICE, replace(LINK, port=4790))
        assert kernel.link(DEVICE) == LINK
        for successor in (replace(LINK, vni=7), replace(LINK, port=4790), replace(LINK, port=4799), LINK6):
            await kernel.delete_link(DEVICE, successor)
            assert kernel.link(DEVICE) is None, "free, or shared with a device"
            await kernel.create_link(LINK)
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_nexthop_id_that_others_took_is_not_used(namespace: str) -> None:
    """The next numbers are taken before we can know: another one is found, and no route goes the foreign way."""
    kernel = Netlink()
    try:
        await kernel.create_link(LINK)
        for taken in range(3):
            run(f"ip nexthop add id {0x54000000 + taken} via 10.0.0.7 dev p0")
        entries = peer(1, objects=True)
        assert kernel.apply([Operation(Verb.ADD, entry) for entry in entries]) == []
        assert set(entries) <= Linux().table()
        assert kernel.apply([Operation(Verb.REMOVE, entry) for entry in reversed(entries)]) == []
        assert Linux().table() == set()
        assert len(ask("ip -j nexthop")) == 3
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_later_process_adopts_nexthops_and_routes(namespace: str) -> None:
    entries = [entry for v6 in (False, True) for entry in peer(1, v6=v6, objects=True)]
    first = Netlink()
    await first.create_link(LINK)
    await first.create_link(LINK6)
    assert first.apply([Operation(Verb.ADD, entry) for entry in entries]) == []
    first.close()
    for objects in (True, False):
        second = Netlink(nexthop_objects=objects)
        try:
            second.listen([DEVICE, DEVICE6], lambda events: None)
            found = {entry for part in second.dump() for entry in part}
            assert found == {entry for entry in entries if objects or not isinstance(entry, Nexthop)}
            assert second.apply([Operation(Verb.ADD, entry) for entry in entries if entry in found]) == []
            assert len(ask("ip -j nexthop")) == 2
        finally:
            second.close()
    third = Netlink(nexthop_objects=False)
    try:
        third.listen([DEVICE, DEVICE6], lambda events: None)
        assert third.apply([Operation(Verb.REMOVE, entry) for entry in entries if isinstance(entry, Route)]) == []
        assert not [entry for entry in Linux().table() if isinstance(entry, Route)]
    finally:
        third.close()


@pytest.mark.root
async def test_routes_that_name_only_their_nexthop_object_are_read(namespace: str) -> None:
    run("sysctl -w net.ipv4.nexthop_compat_mode=0")
    kernel, host_entries = Netlink(), [e for v6 in (False, True) for e in peer(1, v6=v6, objects=True)]
    host = Host(kernel, Linux())
    try:
        host.listen()
        await kernel.create_link(LINK)
        await kernel.create_link(LINK6)
        await host.add(*host_entries)
        assert host.read() == set(host_entries)
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_foreign_ipv6_route_with_an_object_survives_our_removal(namespace: str) -> None:
    """IPv6 deletes by device whatever route has an object, on any device."""
    kernel = Netlink()
    try:
        await kernel.create_link(LINK6)
        run("ip nexthop add id 88 via fd00::8 dev p0")
        run("ip -6 route add fd05:1::/64 nhid 88")
        ours = Route(DEVICE6, ip("fd05:1::"), 64, ip("fd05:1::"))
        assert kernel.apply([Operation(Verb.REMOVE, ours)]) == []
        assert [each["nhid"] for each in ask("ip -6 -j route") if each["dst"] == "fd05:1::/64"] == [88]
    finally:
        kernel.close()


@pytest.mark.root
async def test_routes_with_another_metric_are_left_alone(namespace: str) -> None:
    kernel = Netlink()
    host = Host(kernel, Linux())
    try:
        host.listen()
        await kernel.create_link(LINK)
        await host.settle()
        run("ip route add 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink metric 50")
        run("ip route add 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink table 77")
        assert await host.told() == []
        assert host.read() == set()
        ours = Route(DEVICE, ip("10.5.1.0"), 24, ip("10.5.1.0"))
        assert host.apply(Verb.ADD, ours) == host.apply(Verb.REMOVE, ours) == []
        assert [each.get("metric") for each in ask("ip -j route") if each["dst"] == "10.5.1.0/24"] == [50]
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_port_that_leaves_a_bridge_is_no_deleted_device(namespace: str) -> None:
    kernel = Netlink()
    host = Host(kernel, Linux())
    try:
        host.listen()
        await kernel.create_link(LINK)
        await host.settle()
        run("ip link add br0 type bridge")
        run("ip link set p1 master br0")
        run("ip link set p1 nomaster")
        run("ip link set p1 down")  # Before Linux 6.2 only then can it be renamed.
        run("ip link set p1 name q1")
        events = await host.heard(lambda events: LinkChanged("q1", True) in events)
        assert events.index(LinkChanged("p1", False)) > events.index(LinkChanged("p1", True))
        assert events.count(LinkChanged("p1", False)) == 1
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_device_of_another_kind_is_foreign_and_new_ones_are_as_flannels(namespace: str) -> None:
    kernel = Netlink()
    try:
        run(f"ip link add {DEVICE6} type bridge")
        assert kernel.link(DEVICE6) == ForeignLink(DEVICE6, "bridge")
        with pytest.raises(KernelError, match="exists"):
            await kernel.create_link(LINK6)
        await kernel.create_link(replace(LINK, gbp=True))
        (shown,) = ask(f"ip -d -j link show {DEVICE}")
        vxlan = shown["linkinfo"]["info_data"]
        assert (shown["address"], shown["mtu"], shown.get("txqlen", 0)) == ("02:44:22:00:00:01", 1450, 0)
        assert "UP" in shown["flags"]
        assert (vxlan["id"], vxlan["port"], vxlan["local"], vxlan["link"]) == (1, 8472, "10.0.0.1", "p0")
        # A flag is there or not; its value is null since iproute2 6.15.
        assert (vxlan["learning"], vxlan["ttl"], "gbp" in vxlan) == (False, 0, True)
        assert (vxlan["udp_zero_csum6_tx"], vxlan["udp_zero_csum6_rx"]) == (False, False)
        assert run(f"sysctl -n net/ipv6/conf/{DEVICE}/accept_ra").strip() == "0"
    finally:
        kernel.close()


@pytest.mark.root
async def test_a_tun_device_is_made_silent_before_it_is_up(namespace: str) -> None:
    """Else the kernel gives it a link-local address, and asks through it for routers for ever."""
    kernel, tun = Netlink(), Tun(DEVICE, first=True)
    try:
        found = kernel.link(DEVICE)
        assert found == TunLink(DEVICE, 1500, up=False, silent=False)
        want = TunLink(DEVICE, 1400)
        await kernel.change_link(found, want)
        assert kernel.link(DEVICE) == want
        assert run(f"ip -6 address show dev {DEVICE}") == ""
        run(f"ip link set {DEVICE} addrgenmode eui64")
        heard = kernel.link(DEVICE)
        assert heard == replace(want, silent=False)
        await kernel.change_link(heard, want)
        assert kernel.link(DEVICE) == want
        run(f"ip link set {DEVICE} mtu 1000")
        assert kernel.link(DEVICE) == replace(want, mtu=1000), "too narrow for IPv6, which the kernel then leaves alone"
    finally:
        tun.close()
        kernel.close()


async def furnish(own: int, other: int) -> Netlink:
    """Make one end of both tunnels in the current namespace, through Netlink alone."""
    kernel = Netlink()
    devices = (
        (DEVICE, f"10.0.0.{own}", f"10.0.0.{other}", f"10.5.{own}.0", f"10.5.{other}.0", 32, 24),
        (DEVICE6, f"fd00::{own}", f"fd00::{other}", f"fd05:{own}::", f"fd05:{other}::", 128, 64),
    )
    for device, local, remote, here, there, host_length, length in devices:
        like = LINK if device == DEVICE else LINK6
        await kernel.create_link(replace(like, local=ip(local), mac=mac(own), parent=f"p{own - 1}"))
        entries: list[Entry] = [
            Address(device, ip(here), host_length),
            FdbEntry(device, mac(other), ip(remote)),
            Neighbour(device, ip(there), mac(other)),
            Nexthop(device, ip(there)),
            Route(device, ip(there), length, ip(there)),
        ]
        assert kernel.apply([Operation(Verb.ADD, entry) for entry in entries]) == []
    return kernel


@pytest.mark.root
async def test_packets_go_through_the_tunnels(namespace: str) -> None:
    with throwaway_namespace() as second:
        run(f"ip link set p1 netns {second}")
        with entered(second):
            for command in ("address add 10.0.0.2/24 dev p1", "address add fd00::2/64 dev p1 nodad", "link set p1 up"):
                run(f"ip {command}")
            there = await furnish(2, 1)
        here = await furnish(1, 2)
        try:
            run("ping -c 2 -i 0.05 -W 5 -I 10.5.1.0 10.5.2.0")
            run("ping -c 2 -i 0.05 -W 5 -I fd05:1:: fd05:2::")
        finally:
            here.close()
            there.close()


@pytest.mark.root
async def test_routes_of_others_with_another_metric_are_found(namespace: str) -> None:
    kernel, four, six = Netlink(), (ip("10.5.7.0"), 24), (ip("fd05:7::"), 64)
    try:
        await kernel.create_link(LINK)
        await kernel.create_link(LINK6)
        run("ip route add 10.5.7.0/24 dev p0 proto kernel scope link metric 100")
        run("ip route add 10.5.8.0/24 dev p0 proto static metric 50")
        run("ip route add 10.5.9.0/24 dev p0 proto static metric 50 table 100")
        run("ip addr add fd05:7::1/64 dev p0 nodad")
        devices, wanted = {DEVICE, DEVICE6}, {four, six, (ip("10.5.9.0"), 24)}
        found = kernel.routes_beside(wanted, devices)
        assert set(found) == {four, six}
        assert "on p0 (proto kernel, metric 100): ours goes before it" in found[four]
        assert "on p0 (proto kernel, metric 256): it goes before ours" in found[six]
        assert kernel.routes_beside(wanted, {"p0"}) == {}
    finally:
        kernel.close()
