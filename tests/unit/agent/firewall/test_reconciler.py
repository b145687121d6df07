"""The guard on a packet filter that is a fake: at once where told, now and then where not, patient with faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest

from flanneld_py.agent.firewall.previous_rules import PreviousRules
from flanneld_py.agent.firewall.reconciler import LOOK_EVERY, FirewallReconciler, Report, policies
from flanneld_py.agent.lock import Held
from flanneld_py.agent.log import TextFormatter
from flanneld_py.agent.previous_run import PreviousRun
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.reconcile.neighbours import Neighbours
from flanneld_py.agent.settings import FirewallSettings
from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.vxlan import Vxlan
from flanneld_py.encap.family import IPV4, IPAddress
from flanneld_py.encap.firewall.enforce import FilterChoice, Outcome
from flanneld_py.encap.firewall.flows import Pause
from flanneld_py.encap.firewall.policy import Network, Policy, name_suffix
from flanneld_py.encap.firewall.tools import FirewallError
from flanneld_py.encap.firewall.traffic import Obstacle
from flanneld_py.encap.peers import Own
from flanneld_py.encap.state import TunLink
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.model import Subnets
from tests.fakes.clock import ManualClock

CONFIG = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}')
ADDRESS = IPv4Address("192.0.2.1")
BACKEND = Vxlan(CONFIG, Underlay("eth0", 1500, ADDRESS, ADDRESS), nexthop_objects=True, on_link=lambda _: False)
OPTIONS = FirewallSettings(masquerade=True, resync=5)
TABLE_MINE = Obstacle("nft, table inet mine, chain input: its policy, drop", "nft insert rule inet mine input ...")
NFTABLES = FilterChoice("nftables", "a test says so")


def wanted(subnet: str = "10.5.1.0/24") -> tuple[Desired, ...]:
    own = Own("k/" + subnet.replace("/", "-"), Subnets(IPv4Network(subnet)), ADDRESS, ADDRESS)
    return (Desired(CONFIG, BACKEND, own, TunLink(BACKEND.device, BACKEND.mtu), None),)


class Filter:
    """A packet filter: what is in it, what goes wrong with it, and whether it is one that tells nobody of changes."""

    def __init__(self, choice: FilterChoice | None = NFTABLES) -> None:
        self.choice = choice
        self.there: tuple[Policy, ...] = ()
        self.failures: tuple[str, ...] = ()
        self.in_the_way: tuple[Obstacle, ...] = ()
        self.looks = self.begun = 0
        self.lacking: tuple[str, ...] = ()
        self.direct: set[IPAddress] = set()
        self.neighbours = Neighbours(wanted())
        self.unreadable = self.flannels = False
        self.legacy = False
        self.tries = 0
        self.former_removed: list[tuple[Network, Network]] | None = None
        self.changed: Callable[[], None] | None = None
        self.others_changed: Callable[[], None] = lambda: None

    @contextmanager
    def watch(self, changed: Callable[[], None], others: Callable[[], None]) -> Iterator[None]:
        self.changed, self.others_changed = changed, others
        yield
        self.changed = None

    async def begin_anew(self, policies: tuple[Policy, ...], pause: Pause) -> int:
        assert policies == self.there, "the rules are in force"
        self.begun += 1
        await pause()
        return 3

    async def obstacles(self, policies: tuple[Policy, ...]) -> tuple[Obstacle, ...]:
        self.looks += 1
        return self.in_the_way

    def flush(self) -> None:
        self.there = ()
        if self.changed is not None and not self.legacy:
            self.changed()

    async def choose(self) -> FilterChoice | None:
        if self.unreadable:
            raise FirewallError("`nft list chains` failed: Operation not permitted")
        return self.choice

    def unwatched(self) -> bool:
        return self.legacy

    async def enforce(self, choice: FilterChoice, policies: tuple[Policy, ...]) -> Outcome:
        self.tries += 1
        if self.failures:
            return Outcome(False, self.failures)
        changed, self.there = self.there != policies, policies
        return Outcome(changed, (), self.lacking, self.flannels)

    async def remove_former(self, pairs: Collection[tuple[Network, Network]], living: Collection[str]) -> Outcome:
        self.former_removed = list(pairs)
        return Outcome(False)


@asynccontextmanager
async def guarded(
    host: Filter, clock: ManualClock, options: FirewallSettings = OPTIONS
) -> AsyncIterator[FirewallReconciler]:
    host.neighbours.tell(IPV4, lambda: frozenset(host.direct))
    former = PreviousRules(host, PreviousRun(), Held, clock)
    guard = FirewallReconciler(host, host.watch, options, wanted(), host.neighbours, clock, Random(1), former)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(guard.run())
        try:
            await clock.run_until(guard.looked.is_set)
            yield guard
        finally:
            life.cancel()


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(TextFormatter(timestamps=False).format(record) for record in caplog.records)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def _everything_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flanneld-py")


async def test_rules_are_brought_and_it_is_said_which_and_why(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        assert host.there == policies(OPTIONS, wanted(), Neighbours(()))
        assert guard.masquerades
        await clock.run_for(1)
    text = said(caplog)
    assert 'firewall rules go to nftables because="a test says so"' in text
    assert text.count("firewall rules are in force") == 1


async def test_former_rules_go_once_ours_are_in_force(clock: ManualClock) -> None:
    host = Filter()
    host.failures = ("`nft -f -` failed: no memory",)
    async with guarded(host, clock):
        await clock.run_for(1)
        assert host.former_removed is None
        host.failures = ()
        await clock.run_for(120)
        assert host.former_removed == [(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.1.0/24"))]


async def test_what_was_taken_away_is_back_at_once(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    host = Filter()
    async with guarded(host, clock):
        before = clock.now()
        host.flush()
        await clock.run_until(lambda: host.there != (), 0.1)
        assert clock.now() - before < 0.1
    assert "somebody else changed the host's firewall rules; they are right again" in said(caplog)


async def test_its_report_tells_repairs_errors_and_who_drops(clock: ManualClock) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        assert guard.report() == Report(NFTABLES, True, 0, None, None, None, ())
        host.flush()
        await clock.run_for(30)
        assert guard.report() == Report(NFTABLES, True, 1, 30.0, None, None, ())
        host.failures, host.in_the_way = ("`nft -f -` failed: no memory",), (TABLE_MINE,)
        host.flush()
        await clock.run_for(1)
        assert (guard.report().in_force, guard.report().error) == (False, "`nft -f -` failed: no memory")
        assert guard.report().obstacles == (TABLE_MINE,)
        host.failures = ()
        await clock.run_for(100)
        report = guard.report()
        assert (report.in_force, report.error) == (True, "`nft -f -` failed: no memory")
        assert report.failed_ago is not None
        assert 1 < report.failed_ago < 101


async def test_a_change_that_tells_nobody_is_found(clock: ManualClock) -> None:
    host = Filter()
    host.legacy = True
    async with guarded(host, clock):
        host.flush()
        await clock.run_until(lambda: host.there != (), OPTIONS.resync * 1.1)
        host.legacy = False
        host.there = ()
        tries = host.tries
        await clock.run_for(LOOK_EVERY / 2)
        assert host.tries == tries, "nobody looks where changes are told"
        await clock.run_until(lambda: host.there != (), LOOK_EVERY)


async def test_a_fault_is_said_once_and_tried_again_with_patience(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    host.failures = ("`nft -f -` failed: no memory",)
    async with guarded(host, clock) as guard:
        assert guard.looked.is_set(), "everything else goes on"
        await clock.run_for(600)
        assert 5 < host.tries < 30
        assert said(caplog).count("no memory") == 1
        host.failures = ("another reason",)
        await clock.run_for(120)
        assert said(caplog).count("another reason") == 1
        host.failures = ()
        await clock.run_until(lambda: host.there != (), 120)
    assert said(caplog).count("firewall rules are in force") == 1


async def test_a_filter_that_cannot_be_read_holds_nobody_up(clock: ManualClock) -> None:
    host = Filter()
    host.unreadable = True
    async with guarded(host, clock) as guard:
        assert guard.looked.is_set()
        assert guard.masquerades, "it will: the subnet file is written now, and not again"
        host.unreadable = False
        await clock.run_until(lambda: host.there != (), 120)


async def test_a_host_without_any_tool_has_no_rules_and_says_so(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter(choice=None)
    async with guarded(host, clock) as guard:
        assert not guard.masquerades
        await clock.run_for(3600)
    assert said(caplog).count("this host has no nft or iptables; install it") == 1
    assert host.tries == 0


async def test_another_subnet_means_other_rules(clock: ManualClock) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        other = wanted("10.5.9.0/24")
        guard.want(other)
        await clock.run_until(lambda: host.there == policies(OPTIONS, other, Neighbours(())), 1)


async def test_what_nobody_but_the_operator_can_mend_is_said_once(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    host.in_the_way = (TABLE_MINE,)
    async with guarded(host, clock):
        for _ in range(30):
            host.flush()
            await clock.run_for(1)
        assert 5 < host.looks < 15
        host.in_the_way = (Obstacle("table mine, another rule of many alike", TABLE_MINE.do),)
        host.others_changed()
        await clock.run_for(5)
        assert said(caplog).count(TABLE_MINE.do) == 1
        host.in_the_way = ()
        host.others_changed()
        await clock.run_for(5)
    assert said(caplog).count("packets of the overlay are not dropped by others any more") == 1


async def test_what_others_change_in_rules_of_their_own_is_looked_at_soon_and_not_without_pause(
    clock: ManualClock,
) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        await clock.run_for(10)
        looks, host.in_the_way = host.looks, (TABLE_MINE,)
        host.others_changed()
        await clock.run_until(lambda: guard.report().obstacles == (TABLE_MINE,), 0.5)
        for _ in range(300):
            host.others_changed()
            await clock.run_for(0.1)
        assert 5 < host.looks - looks < 15
        host.in_the_way = ()
        await clock.run_until(lambda: guard.report().obstacles == (), 4)
        looks = host.looks
        await clock.run_for(LOOK_EVERY / 2)
        assert host.looks == looks, "nobody told of anything"


async def test_where_nobody_tells_of_changes_what_drops_is_looked_for_now_and_then(clock: ManualClock) -> None:
    host = Filter()
    host.legacy = True
    async with guarded(host, clock) as guard:
        await clock.run_for(60)
        host.in_the_way, looks = (TABLE_MINE,), host.looks
        await clock.run_until(lambda: guard.report().obstacles == (TABLE_MINE,), 40)
        await clock.run_for(600)
        assert host.looks - looks < 25


async def test_a_fight_is_not_fought_at_full_speed(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    host = Filter()
    async with guarded(host, clock, replace(OPTIONS, resync=0)):
        for _ in range(60):
            host.flush()
            await clock.run_until(lambda: host.there != (), 1)
        before = clock.now()
        host.flush()
        await clock.run_until(lambda: host.there != (), 1)
        assert clock.now() - before >= 0.19
    assert "somebody keeps changing" in said(caplog)


async def test_flannels_daemon_beside_us_is_named_once(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    host = Filter()
    host.flannels = True
    async with guarded(host, clock):
        for _ in range(100):
            host.flush()
            await clock.run_for(5)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "systemctl disable --now flanneld" in said(caplog)
    assert said(caplog).count("somebody else changed") < 10


def test_tables_and_chains_of_several_networks_have_names_of_their_own() -> None:
    devices = ["flannel.1", "flannel.7", "flannel.989680", "flannel4x989680", "flannel0", "flannel0-v6", "flannel-v6.9"]
    suffixes = [name_suffix(device) for device in devices]
    assert suffixes == ["", "-7", "-989680", "-x989680", "-flannel0", "-flannel0-v6", "-9"]
    assert name_suffix("flannel6xffffff") == "-xffffff"
    assert name_suffix("flannel-v6.1") == name_suffix(None) == ""
    longest_chain_of_iptables = 28
    assert max(len("FLANNEL-POSTRTG" + suffix) for suffix in suffixes) <= longest_chain_of_iptables


async def test_hosts_that_come_by_the_hundred_are_written_together(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        await clock.run_for(10)
        before, tries = clock.now(), host.tries
        for number in range(200):
            host.direct.add(ADDRESS + 1 + number)
            host.neighbours.changed()
            await clock.run_for(0.01)
            if number == 10:
                assert host.tries == tries + 1, "the first one does not wait"
        await clock.run_until(lambda: host.there[0].direct == host.direct, 1.1)
        assert host.tries - tries <= clock.now() - before + 2
        tries = host.tries
        host.neighbours.changed()
        await clock.run_for(5)
        assert host.tries == tries, "the same hosts as before"
        assert guard.report().repairs == 0
    assert "somebody" not in said(caplog)


async def test_a_raw_table_that_cannot_be_written_is_said_once_and_holds_nothing_up(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    host.lacking = ("`iptables-restore` failed: no raw",)
    async with guarded(host, clock) as guard:
        for _ in range(3):
            host.flush()
            await clock.run_until(lambda: host.there != (), 1)
        assert (guard.report().in_force, guard.report().lacking) == (True, host.lacking)
        host.lacking = ()
        host.flush()
        await clock.run_until(lambda: guard.report().lacking == (), 1)
    assert said(caplog).count("no raw") == 1


async def test_flows_begin_anew_after_rules_were_made_or_repaired_and_not_for_each_new_host(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    host = Filter()
    async with guarded(host, clock) as guard:
        assert host.begun == 1
        host.flush()
        await clock.run_until(lambda: host.begun == 2, 0.1)
        host.direct.add(ADDRESS + 1)
        host.neighbours.changed()
        await clock.run_until(lambda: host.there[0].direct == host.direct, 2)
        await clock.run_for(LOOK_EVERY * 2)
        assert host.begun == 2
        guard.want(wanted("10.5.9.0/24"))
        await clock.run_until(lambda: host.begun == 3, 1)
        await clock.run_for(1)
    assert said(caplog).count("flows that had begun without masquerade begin anew flows=3") == 3


async def test_without_masquerade_flows_are_left_alone(clock: ManualClock) -> None:
    host = Filter()
    async with guarded(host, clock, replace(OPTIONS, masquerade=False)):
        host.flush()
        await clock.run_for(10)
    assert host.begun == 0
