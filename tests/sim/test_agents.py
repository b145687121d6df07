"""What a cluster does, in one process and without root; the same stories on real hosts are in tests/netns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from errno import EINVAL
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flanneld_py.agent.agent import Agent
from flanneld_py.agent.errors import FatalError
from flanneld_py.encap.state import (
    RTPROT_BOOT,
    Entry,
    FdbEntry,
    ForeignLink,
    Key,
    Neighbour,
    Operation,
    Route,
    Verb,
)
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.lifetime import TTL
from flanneld_py.registry.store import Unavailable
from tests.sim.cluster import CONFIG, DEVICE, PREFIX, Cluster, device, entries, on_device


@pytest.fixture
async def cluster(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path)
    await cluster.configure()
    return cluster


async def test_hosts_find_each_other(cluster: Cluster, tmp_path: Path) -> None:
    async with cluster.agent(1) as one, cluster.agent(2) as two, cluster.agent(3) as three:
        for agent in (one, two, three):
            await cluster.settle(agent)
        leases = one.view.leases()
        assert len(leases) == 3
        for number in (1, 2, 3):
            others = [lease for lease in leases.values() if str(lease.attrs.public_ip) != f"192.0.2.{number}"]
            assert on_device(cluster.kernel(number)) == entries(others[0]) | entries(others[1])
            assert "FLANNEL_MTU=1450" in (tmp_path / f"{number}.env").read_text()


async def test_on_a_kernel_that_tells_twice_an_agent_gets_ready_and_rests(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    kernel = cluster.kernel(1)
    kernel.tells_twice = True
    async with cluster.agent(1) as agent:
        await cluster.clock.run_until(agent.ready.is_set, 1)
        await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
        await cluster.settle(agent)
        assert len(on_device(kernel)) == 8
        assert kernel.applied == 1 + 8
        kernel.meddle_flush("fdb", DEVICE)
        await cluster.settle(agent)
        assert len(on_device(kernel)) == 8
        assert kernel.applied == 1 + 8 + 2


async def test_without_a_config_an_agent_waits_and_touches_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(60)
        assert not agent.ready.is_set()
        assert not cluster.kernel(1).links
        for wrong in (b"{", b'{"Network": "10.5.0.0/33"}', CONFIG.replace(b"vxlan", b"wireguard")):
            await cluster.configure(wrong)
            await cluster.clock.run_for(20)
            assert not agent.ready.is_set()
        await cluster.configure()
        await cluster.settle(agent)


async def test_a_kernel_without_vxlan_means_userspace_unless_told_otherwise(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)  # Without a config the agent waits, and only the choice is looked at.
    async with cluster.agent(1) as agent:
        config = parse_config(CONFIG), agent._underlay
        assert not (await agent._membership(*config)).backends[0].userspace
        cluster.kernel(1).has_vxlan = False
        assert "no VXLAN devices" in (await agent._membership(*config)).backends[0].why


async def test_nothing_is_deleted_before_the_registry_is_in_sync(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    before = on_device(cluster.kernel(1))
    await cluster.delete("10.5.9.0-24")
    cluster.store.fail(20, Unavailable("no endpoint answers"))
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(10)
        assert not agent.ready.is_set()
        assert on_device(cluster.kernel(1)) == before
        await cluster.settle(agent, 300)
        assert on_device(cluster.kernel(1)) == {}


async def test_one_refused_entry_delays_no_other_and_is_tried_again(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    bad = bytes([10, 5, 8, 0])
    kernel.fail(lambda operation: operation.entry.key[2] == bad, EINVAL, times=6)
    async with cluster.agent(1) as agent:
        await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
        await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
        await cluster.clock.run_until(agent.ready.is_set, 1)
        assert ("route", DEVICE, bytes([10, 5, 9, 0]), 24) in kernel.tables
        assert ("route", DEVICE, bad, 24) not in kernel.tables
        await cluster.clock.run_until(lambda: ("route", DEVICE, bad, 24) in kernel.tables, 60)


WARNING = "somebody else keeps changing"


async def contested(agent: Agent) -> tuple[int, list[str]]:
    found = (await agent.describe())["contested_entries"]
    assert isinstance(found, dict)
    return found["count"], found["entries"]


@pytest.mark.parametrize("at", range(4))
async def test_who_undoes_one_entry_at_once_and_always_holds_up_nothing_else(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    caplog.set_level("INFO", "flanneld-py")
    kernel, base = cluster.kernel(1), bytes([10, 5, 8, 0])
    lease = "10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08"
    key = ("fdb", "neighbour", "nexthop", "route")[at], DEVICE, (bytes.fromhex("020000000008"), *3 * [base])[at]

    def undo(operation: Operation) -> None:
        if operation.entry.key[:3] == key and operation.verb is not Verb.REMOVE:
            kernel.meddle_remove(operation.entry.key)

    kernel.opponent = undo
    await cluster.put(*lease)
    async with cluster.agent(1) as agent:
        await cluster.clock.run_until(agent.ready.is_set, 1)
        await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
        await cluster.clock.run_until(lambda: ("route", DEVICE, bytes([10, 5, 9, 0]), 24) in kernel.tables, 0.02)
        await cluster.clock.run_for(60)
        before = kernel.applied
        await cluster.clock.run_for(600)
        assert kernel.applied - before < 40 * (2 if at == 2 else 1), "a nexthop object takes its route along"
        assert len(on_device(kernel)) == 7
        assert [record.levelname for record in caplog.records if WARNING in record.message] == ["WARNING"]
        count, (entry,) = await contested(agent)
        assert count == 1
        assert entry in caplog.text

        kernel.opponent = None
        await cluster.clock.run_until(lambda: len(on_device(kernel)) == 8, 60)
        await cluster.clock.run_for(90)
        assert await contested(agent) == (0, [])
        assert "nobody changes our kernel entries any more" in caplog.text
        kernel.meddle_flush("route", DEVICE)
        await cluster.clock.run_until(lambda: len(on_device(kernel)) == 8, 0.02)


async def test_who_puts_back_what_we_remove_is_not_fought_without_pause(cluster: Cluster) -> None:
    kernel = cluster.kernel(1)
    await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        kernel.opponent = lambda operation: kernel.meddle_set(operation.entry)
        await cluster.delete("10.5.8.0-24")
        await cluster.settle(agent)
        before = kernel.applied
        await cluster.clock.run_for(600)
        assert kernel.applied - before < 4 * 40
        assert (await contested(agent))[0] == 3, "the route goes with its nexthop object"
        kernel.opponent = None
        await cluster.clock.run_until(lambda: not on_device(kernel), 60)


async def test_a_kernel_that_calls_everything_gone_right_after_it_was_made_is_not_believed_for_ever(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2, 100):
        await cluster.put(f"10.5.{number}.0-24", f"198.51.100.{number}", f"02:00:00:00:00:{number:02x}")
    kernel = cluster.kernel(1)
    kernel.opponent = lambda operation: kernel.meddle_falsely(operation.entry.key)
    async with cluster.agent(1) as agent:
        await cluster.clock.run_until(agent.ready.is_set, 5)
        await cluster.settle(agent)
        assert kernel.applied < 10 * 4 * 98
        assert len(on_device(kernel)) == 4 * 98
        assert len([record for record in caplog.records if WARNING in record.message]) == 11
        before = kernel.applied
        await cluster.clock.run_for(600)
        assert kernel.applied == before, "a reading shows that all is there"
        assert await contested(agent) == (0, [])


@pytest.mark.parametrize("deleted", [False, True])
async def test_who_undoes_what_we_do_to_the_device_is_not_fought_without_pause(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    kernel, done = cluster.kernel(1), 0

    def undo(work: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def undone(*arguments: Any) -> None:
            nonlocal done
            done += 1
            await work(*arguments)
            if deleted:
                kernel.meddle_delete_link(DEVICE)
            else:
                kernel.meddle_create_link(replace(device(kernel), mtu=1300))

        return undone

    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        as_made, before = device(kernel), on_device(kernel)
        with monkeypatch.context() as opponent:
            for name in ("create_link", "change_link"):
                opponent.setattr(kernel, name, undo(getattr(kernel, name)))
            kernel.meddle_delete_link(DEVICE)
            await cluster.clock.run_for(60)
            assert done < 30
            await cluster.clock.run_for(600)
            assert done < 30 + 40
            if not deleted:
                await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
                await cluster.clock.run_for(0.1)
                assert len(on_device(kernel)) == 8
                await cluster.delete("10.5.8.0-24")
        assert [record.levelname for record in caplog.records if "device" in record.message] == ["ERROR"]
        await cluster.clock.run_until(lambda: kernel.links.get(DEVICE) == as_made and on_device(kernel) == before, 60)
        await cluster.clock.run_for(60)
        kernel.meddle_delete_link(DEVICE)
        await cluster.clock.run_until(lambda: kernel.links.get(DEVICE) == as_made and on_device(kernel) == before, 0.2)


async def test_what_is_undone_now_and_then_is_back_at_once_each_time(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        for _ in range(30):
            kernel.meddle_flush("route", DEVICE)
            await cluster.clock.run_until(lambda: len(on_device(kernel)) == 4, 0.02)
            await cluster.clock.run_for(1.5)
        assert WARNING not in caplog.text


async def test_the_sentence_for_people_is_true_after_each_change(cluster: Cluster) -> None:
    async def sentence(agent: Agent) -> str:
        await cluster.clock.run_for(1)
        return str((await agent.describe())["state"])

    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert await sentence(agent) == "0 peers, 0 leases not used, registry connected"
        await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
        assert await sentence(agent) == "1 peers, 0 leases not used, registry connected"
        await cluster.put_raw("10.5.8.0-24", b"garbage")
        assert await sentence(agent) == "1 peers, 1 leases not used, registry connected"
        await cluster.delete("10.5.9.0-24")
        assert await sentence(agent) == "0 peers, 1 leases not used, registry connected"


async def test_the_sentence_for_people_says_what_is_waited_for(cluster: Cluster) -> None:
    cluster.kernel(1).fail_links("UDP port 8472 is taken", times=10)
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(3)
        assert (await agent.describe())["state"] == (
            "waiting for the device, its entries and the packet filter: UDP port 8472 is taken"
        )
        await cluster.settle(agent)
        assert str((await agent.describe())["state"]).startswith("0 peers")


async def test_the_sentence_for_people_says_why_there_is_no_lease(cluster: Cluster) -> None:
    await cluster.configure(b'{"Network": "10.5.0.0/28", "SubnetLen": 30, "Backend": {"Type": "vxlan"}}')
    for number in (0, 4, 8, 12):
        await cluster.put(f"10.5.0.{number}-30", f"192.0.2.{90 + number}", f"02:00:00:00:00:{number:02x}")
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(30)
        state = str((await agent.describe())["state"])
        assert state.startswith("waiting for a lease: ")
        assert "subnet" in state


async def test_who_keeps_setting_the_device_down_is_a_warning_and_no_line_for_each_time(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flanneld-py")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        for _ in range(200):
            kernel.meddle_down(DEVICE)
            await cluster.clock.run_until(lambda: device(kernel).up, 0.2)
            await cluster.clock.run_for(3)
    about = [record for record in caplog.records if "device" in record.message]
    assert [record.levelname for record in about].count("WARNING") == 1
    assert len(about) < 15


async def test_events_that_are_lost_again_and_again_do_not_mean_reading_without_pause(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    kernel, readings = cluster.kernel(1), 0
    read = kernel.dump

    def dump() -> Iterator[Sequence[Entry]]:
        nonlocal readings
        readings += 1
        return read()

    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        monkeypatch.setattr(kernel, "dump", dump)
        for _ in range(6000):
            kernel.meddle_overflow()
            await cluster.clock.run_for(0.01)
        assert 3 < readings < 20
        await cluster.clock.run_for(60)
        before, readings = on_device(kernel), 0
        for key in before:
            kernel.meddle_silently(key)
        kernel.meddle_overflow()
        await cluster.clock.run_until(lambda: on_device(kernel) == before, 0.1)
        assert readings == 1, "one that comes after a calm is read at once"


async def test_an_entry_that_fails_is_counted_where_the_kernel_is_brought_up_to_date(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "flanneld-py")
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    cluster.kernel(1).fail(lambda operation: isinstance(operation.entry, Route), EINVAL, times=10_000)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    told = [record for record in caplog.records if record.message == "kernel brought up to date"]
    assert {getattr(record, "facts")["failing"] for record in told} == {1}  # noqa: B009


async def test_a_device_that_cannot_be_made_is_tried_again(cluster: Cluster) -> None:
    cluster.kernel(1).fail_links("eth0 does not exist", times=3)
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(0.05)
        assert not agent.ready.is_set()
        await cluster.settle(agent)


async def test_a_foreign_device_of_our_name_is_left_alone(cluster: Cluster) -> None:
    cluster.kernel(1).meddle_create_link(ForeignLink(DEVICE, "bridge"))
    async with cluster.agent(1) as agent:
        await cluster.clock.run_for(120)
        assert not agent.ready.is_set()
        assert cluster.kernel(1).links == {DEVICE: ForeignLink(DEVICE, "bridge")}
        cluster.kernel(1).meddle_delete_link(DEVICE)
        await cluster.settle(agent)


async def test_a_hold_ends_for_leases_that_a_restored_registry_has(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        agent.view.distrust()
        await agent._syncer.list()
        await cluster.settle(agent)
        await cluster.delete("10.5.9.0-24")
        await cluster.settle(agent)
        assert on_device(cluster.kernel(1)) == {}


@pytest.mark.parametrize("running", [True, False])
async def test_another_subnet_is_said_whether_it_came_while_running_or_not(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, *, running: bool
) -> None:
    """Its containers have the addresses of another host's."""
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        (had,) = agent.view.leases().values()
        name = str(had.subnets.v4).replace("/", "-")
        if running:
            await cluster.take_over(name, "192.0.2.77", "02:00:00:00:00:77")
            await cluster.settle(agent)
    if not running:
        await cluster.take_over(name, "192.0.2.77", "02:00:00:00:00:77")
        async with cluster.agent(1) as agent:
            await cluster.settle(agent)
    (said,) = [record for record in caplog.records if "the subnet of this host has changed" in record.message]
    assert said.levelname == "ERROR"
    assert str(had.subnets.v4) in str(said.__dict__["facts"]["old"])
    caplog.clear()
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    assert not [record for record in caplog.records if "has changed" in record.message]


async def test_another_mtu_is_said_at_a_start(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    underlay = cluster.underlays[1]
    assert underlay is not None
    cluster.underlays[1] = replace(underlay, mtu=1400)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    (said,) = [record for record in caplog.records if "the containers' MTU has changed" in record.message]
    assert (said.__dict__["facts"]["old"], said.__dict__["facts"]["new"]) == (1450, 1350)


async def test_turning_ipv6_on_is_no_change_of_the_subnet(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    dual = b'{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}'
    await cluster.configure(dual)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    assert "the subnet of this host has changed" not in caplog.text


async def test_a_deleted_device_comes_back_with_mac_and_peers(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = device(kernel), dict(kernel.tables)
        kernel.meddle_delete_link(DEVICE)
        await cluster.clock.run_until(lambda: (kernel.links.get(DEVICE), kernel.tables) == before, 0.2)


async def test_a_deleted_device_is_no_flood_in_the_log(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Entries are told to be gone before the device is; putting them back one by one fails, each of them."""
    for number in range(2, 200):
        await cluster.put(f"10.5.{number}.0-24", f"198.51.100.{number}", f"02:00:00:00:00:{number:02x}")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = dict(kernel.tables)
        caplog.clear()
        kernel.meddle_delete_link(DEVICE, told=False)
        await cluster.clock.run_for(0.01)
        kernel.meddle_overflow()
        await cluster.clock.run_until(lambda: kernel.tables == before, 0.2)
        assert len(caplog.records) < 5


async def test_refused_entries_are_no_flood_in_the_log(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2, 200):
        await cluster.put(f"10.5.{number}.0-24", f"198.51.100.{number}", f"02:00:00:00:00:{number:02x}")
    cluster.kernel(1).fail(lambda _: True, EINVAL, times=500)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert len(caplog.records) < 30
        assert len(on_device(cluster.kernel(1))) == 4 * 198


async def test_what_no_event_tells_is_found_by_reading(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = dict(kernel.tables)
        kernel.meddle_silently(("route", DEVICE, bytes([10, 5, 9, 0]), 24))
        await cluster.clock.run_until(lambda: kernel.tables == before, 400)


async def test_a_device_of_an_earlier_run_is_changed_in_place(cluster: Cluster) -> None:
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    kernel = cluster.kernel(1)
    as_made = device(kernel)
    kernel.meddle_create_link(replace(as_made, mtu=1300, learning=True, up=False))
    marker = Neighbour(DEVICE, bytes([192, 168, 0, 1]), bytes(5) + b"\x01")
    kernel.meddle_set(marker)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert device(kernel) == as_made
        assert marker.key in kernel.tables, "the device was not made anew"


async def test_an_emptied_registry_deletes_nothing_for_a_day(cluster: Cluster) -> None:
    for number in (8, 9):
        await cluster.put(f"10.5.{number}.0-24", f"192.0.2.{number}", f"02:00:00:00:00:0{number}")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = on_device(kernel)
        assert len(before) == 8
        cluster.store.replace()
        await cluster.settle(agent)
        assert len(agent.view.leases()) == 1, "our own lease is back"
        assert on_device(kernel) == before
        await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
        await cluster.settle(agent)
        await cluster.delete("10.5.9.0-24")
        await cluster.settle(agent)
        assert len(on_device(kernel)) == 4, "a peer that came back and left is an ordinary one"
        await cluster.clock.run_until(lambda: not on_device(kernel), TTL + 60)


async def test_a_replaced_registry_that_others_have_come_back_to_deletes_nothing(cluster: Cluster) -> None:
    for number in (8, 9):
        await cluster.put(f"10.5.{number}.0-24", f"192.0.2.{number}", f"02:00:00:00:00:0{number}")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        before = on_device(kernel)
        cluster.store.replace()
        await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
        await cluster.settle(agent)
        assert on_device(kernel) == before


async def test_of_a_restored_registry_only_what_it_lacks_is_held(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        restore = cluster.store.snapshot()
        await cluster.put("10.5.8.0-24", "192.0.2.8", "02:00:00:00:00:08")
        await cluster.settle(agent)
        restore()
        await cluster.settle(agent)
        assert len(on_device(kernel)) == 8
        held = entries(agent.view.leases()[f"{PREFIX}/subnets/10.5.9.0-24"])
        await cluster.delete("10.5.9.0-24")
        await cluster.settle(agent)
        assert not held.keys() & on_device(kernel).keys(), "it was there unchanged, and left in order"
        assert len(on_device(kernel)) == 4, "what the registry has lost stays"


async def test_a_restart_finds_an_empty_registry_and_deletes_nothing(cluster: Cluster) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
    before = on_device(cluster.kernel(1))
    cluster.store.replace()
    await cluster.configure()
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        assert on_device(cluster.kernel(1)) == before


async def test_a_lost_subnet_means_a_new_one_everywhere(cluster: Cluster, tmp_path: Path) -> None:
    kernel = cluster.kernel(1)
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        ((key, lease),) = agent.view.leases().items()
        await cluster.take_over(key.rpartition("/")[2], "192.0.2.77", "02:00:00:00:00:77")
        await cluster.settle(agent)
        (mine,) = [other for other in agent.view.leases().values() if str(other.attrs.public_ip) == "192.0.2.1"]
        assert mine.subnets != lease.subnets
        assert f"FLANNEL_SUBNET={mine.subnets.v4[1]}/24" in (tmp_path / "1.env").read_text()
        assert on_device(kernel) == entries(agent.view.leases()[key])
        addresses = [entry for entry in kernel.tables.values() if entry.key[0] == "address"]
        assert [entry.key[2] for entry in addresses] == [mine.subnets.v4.network_address.packed]


async def test_a_host_that_comes_back_to_its_lease_is_believed_over_a_newer_one_of_its_vtep(cluster: Cluster) -> None:
    """It ran over another network card meanwhile, and left a lease with that card's address."""
    async with cluster.agent(1) as one:
        await cluster.settle(one)
        (lease,) = one.view.leases().values()
    async with cluster.agent(2) as two:
        await cluster.put("10.5.250.0-24", "10.0.2.15", str(device(cluster.kernel(1)).mac.hex(":")))
        await cluster.settle(two)
        assert not entries(lease).items() <= on_device(cluster.kernel(2)).items()
        async with cluster.agent(1) as one:
            await cluster.settle(one)
            assert on_device(cluster.kernel(2)) == entries(lease)


async def test_a_subnet_file_that_cannot_be_written_ends_the_agent(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "1.env").mkdir()
    with pytest.raises(ExceptionGroup) as caught:
        async with cluster.agent(1) as agent:
            await cluster.clock.run_until(agent.ready.is_set, 10)
    assert caught.group_contains(FatalError, match="--subnet-file")


# The master property

NUMBERS = st.integers(2, 5)
PAUSES = st.sampled_from([0.0, 0.0, 0.001, 0.01, 1.0])
"""Seconds between steps: none at all, while the agent works, and long enough to be done."""
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NUMBERS, st.integers(0, 3)),
        st.tuples(st.just("delete"), NUMBERS, st.just(0)),
        st.tuples(st.just("garble"), NUMBERS, st.just(0)),
        st.tuples(st.just("cut"), st.just(0), st.just(0)),
        st.tuples(st.just("compact"), st.just(0), st.just(0)),
        st.tuples(st.just("unavailable"), st.integers(1, 4), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
        st.tuples(st.just("meddle"), NUMBERS, st.integers(0, 3)),
        st.tuples(st.just("remove"), NUMBERS, st.sampled_from([0, 1, 2, 3])),
        st.tuples(st.just("flush"), st.just(0), st.sampled_from([0, 1, 2, 3])),
        st.tuples(st.just("device"), st.just(0), st.integers(0, 3)),
        st.tuples(st.just("refuse"), NUMBERS, st.integers(1, 3)),
    ).flatmap(lambda step: st.tuples(st.just(step), PAUSES)),
    max_size=25,
)
KINDS = ("neighbour", "fdb", "nexthop", "route")
FOREIGN: tuple[Entry, ...] = (
    Neighbour(DEVICE, bytes([192, 168, 0, 1]), bytes(5) + b"\x01"),
    Route(DEVICE, bytes([192, 168, 0, 0]), 16, None, RTPROT_BOOT),
    Route("eth0", bytes([10, 5, 99, 0]), 24, bytes([192, 0, 2, 254]), RTPROT_BOOT),
)


def base(number: int) -> bytes:
    return bytes([10, 5, number, 0])


def mac(number: int, variant: int = 0) -> bytes:
    return bytes([2, 0, 0, 0, variant, number])


async def act(cluster: Cluster, what: str, number: int, variant: int) -> None:
    """Do one step of a history to registry or kernel."""
    kernel = cluster.kernel(1)
    match what:
        case "put":
            address = f"192.0.2.{10 * number + variant}"
            await cluster.put(f"10.5.{number}.0-24", address, mac(number, variant).hex(":"))
        case "delete":
            await cluster.delete(f"10.5.{number}.0-24")
        case "garble":
            await cluster.put_raw(f"x{number}", b"garbage")
        case "cut":
            cluster.store.cut_watches()
        case "compact":
            cluster.store.cut_watches()
            cluster.store.compact(cluster.store.revision)
        case "unavailable":
            cluster.store.fail(number)
            cluster.store.cut_watches()
        case "meddle" if DEVICE in kernel.links:
            kernel.meddle_set(Neighbour(DEVICE, base(number), mac(number, 99)))
            kernel.meddle_set(FdbEntry(DEVICE, mac(number, variant), bytes([192, 0, 2, 250])))
        case "remove":
            kind = KINDS[variant]
            at = mac(number) if kind == "fdb" else base(number)
            kernel.meddle_remove((kind, DEVICE, at, 24 if kind == "route" else 0))
        case "flush":
            for key in [key for key in kernel.tables if key[:2] == (KINDS[variant], DEVICE)]:
                if kernel.tables[key] not in FOREIGN:
                    kernel.meddle_remove(key)
        case "device" if DEVICE in kernel.links:
            match variant:
                case 0:
                    kernel.meddle_down(DEVICE)
                case 1:
                    kernel.meddle_down(DEVICE)
                    kernel.meddle_up(DEVICE)
                case 2:
                    kernel.meddle_delete_link(DEVICE)
                case 3:
                    kernel.meddle_overflow()
        case "refuse":
            kernel.fail(lambda operation: operation.entry.key[2] == base(number), EINVAL, times=variant)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(STEPS)
def test_any_history_ends_with_the_kernel_as_the_registry_says(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[tuple[str, int, int], float]]
) -> None:
    """Updates lost, repeated, cut, compacted; entries deleted, changed, refused; restarts: it all ends the same."""

    async def story() -> None:
        cluster = Cluster(tmp_path_factory.mktemp("sim"))
        await cluster.configure()
        # A reservation far from the others, so that the random choice of our own subnet cannot meet them.
        await cluster.put("10.5.200.0-24", "192.0.2.1", "02:00:00:00:00:01")
        kernel = cluster.kernel(1)
        remaining = list(history)
        while True:
            async with cluster.agent(1) as agent:
                while remaining:
                    (what, number, variant), pause = remaining.pop(0)
                    await cluster.clock.run_for(pause)
                    if what == "restart":
                        break
                    await act(cluster, what, number, variant)
                else:
                    cluster.store.recover()
                    await cluster.settle(agent, 30)
                    for entry in FOREIGN:
                        kernel.meddle_set(entry)
                    await cluster.settle(agent, 30)
                    wanted: dict[Key, Entry] = {}
                    for key, lease in agent.view.leases().items():
                        if key != f"{PREFIX}/subnets/10.5.200.0-24":
                            wanted |= entries(lease)
                    stored = [page async for page in cluster.store.pages(f"{PREFIX}/subnets/10.5.")]
                    assert {entry.key for entry in stored[0].entries} == set(agent.view.leases())
                    ours = {key: entry for key, entry in on_device(kernel).items() if entry not in FOREIGN}
                    assert ours == wanted
                    assert all(kernel.tables.get(entry.key) == entry for entry in FOREIGN)
                    return

    asyncio.run(story())


async def test_a_key_that_covers_every_subnet_keeps_nobody_out_and_is_named(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.put("0.0.0.0-1", "192.0.2.77", "02:00:00:00:00:77")
    async with cluster.agent(1) as one, cluster.agent(2) as two:
        await cluster.settle(one)
        await cluster.settle(two)
        assert on_device(cluster.kernel(1))
        assert on_device(cluster.kernel(2))
        rejected = (await one.describe())["rejected_leases"]
    assert rejected == [
        {"key": f"{PREFIX}/subnets/0.0.0.0-1", "reason": "subnet 0.0.0.0/1 is outside Network 10.5.0.0/16"}
    ]
    assert "lease is not used" in caplog.messages


async def test_a_route_of_others_beside_ours_is_named(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    await cluster.put("10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09")
    subnet = (bytes([10, 5, 9, 0]), 24)
    cluster.kernel(1).beside = {subnet: "there is another route on eth1", (bytes(4), 24): "not ours"}
    async with cluster.agent(1) as agent:
        await cluster.settle(agent)
        failing = (await agent.describe())["failing_entries"]
        assert failing == [{"entry": "route 10.5.9.0/24", "reason": "there is another route on eth1"}]
        cluster.kernel(1).beside = {}
        await cluster.clock.run_for(400)
        assert (await agent.describe())["failing_entries"] == []
    assert caplog.text.count("another route is beside ours") == 1
