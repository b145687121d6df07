"""Giving the lease back, against the in-memory store; a real shutdown is in tests/boot."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.lease import release
from flanneld_py.registry.codec import encode_attrs
from flanneld_py.registry.model import LeaseAttrs
from flanneld_py.registry.store import Put, Unavailable
from tests.fakes.clock import ManualClock
from tests.fakes.store import MemoryStore
from tests.lease_host import PREFIX, Host


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ManualClock().now)


@pytest.fixture
async def host(store: MemoryStore) -> Host:
    host = Host(store, ManualClock(), 1)
    await host.acquire()
    return host


def says(state: str) -> tuple[str, ...]:
    return ("echo", state)


async def keys(store: MemoryStore) -> list[str]:
    return [entry.key async for page in store.pages(PREFIX) for entry in page.entries]


async def test_at_the_hosts_shutdown_all_that_is_ours_goes(store: MemoryStore, host: Host) -> None:
    await release.at_stop(host.registry, host.lease, "host-1", says("stopping"))
    assert await keys(store) == []
    assert not store._leases


@pytest.mark.parametrize("state", ["running", "degraded", "starting", "maintenance", "initializing"])
async def test_at_a_restart_or_an_upgrade_it_stays(store: MemoryStore, host: Host, state: str) -> None:
    before = store.revision
    await release.at_stop(host.registry, host.lease, "host-1", says(state))
    assert store.revision == before


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (("/no/such/systemctl",), "No such file"),
        (("sh", "-c", "echo Failed to connect to bus >&2; exit 1"), "Failed to connect to bus"),
        (says("offline"), "it does not run"),
        (("sleep", "60"), "it takes too long"),
    ],
)
async def test_where_systemd_cannot_be_asked_it_stays_and_that_is_said(
    store: MemoryStore,
    host: Host,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ask: tuple[str, ...],
    reason: str,
) -> None:
    before = store.revision
    if ask[0] == "sleep":
        monkeypatch.setattr(release, "SECONDS", 0.05)
    await release.at_stop(host.registry, host.lease, "host-1", ask)
    assert store.revision == before
    (said,) = caplog.records
    assert reason in said.__dict__["facts"]["reason"]


async def test_what_somebody_else_wrote_or_reserved_stays(
    store: MemoryStore, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    held = host.lease
    await store.commit([], [Put(host.key, encode_attrs(LeaseAttrs(IPv4Address("192.0.2.9"))), held.lease_id)])
    await release.at_stop(host.registry, held, "host-1", says("stopping"))
    assert host.key in await keys(store)
    assert "somebody else wrote to it" in caplog.text
    await release.at_stop(host.registry, replace(held, lease_id=0), "host-1", says("stopping"))
    assert host.key in await keys(store)


async def test_a_registry_that_is_away_holds_up_no_shutdown(
    store: MemoryStore, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    store.fail(1, Unavailable("no endpoint answers"))
    await release.at_stop(host.registry, host.lease, "host-1", says("stopping"))
    assert host.key in await keys(store)
    assert "it ends by itself" in caplog.text


async def test_by_hand(store: MemoryStore, host: Host) -> None:
    told: list[str] = []
    await release.by_hand(host.registry, "host-2", told.append)
    assert host.key in await keys(store)
    await release.by_hand(host.registry, "host-1", told.append)
    assert await keys(store) == []
    await release.by_hand(host.registry, "host-1", told.append)
    assert told == ["this host has no lease", f"gave {host.lease.subnets} back", "this host has no lease"]
    again = Host(store, ManualClock(), 1)
    assert (await again.acquire(previous=str(host.lease.subnets))).subnets == host.lease.subnets


async def test_by_hand_another_hosts_lease_and_a_reservation_stay(store: MemoryStore, host: Host) -> None:
    told: list[str] = []
    taken = await host.registry.update(
        host.lease,
        host.attrs(None),
        replace(host.claimer.owner(host.lease.subnets), identity="host-2", hostname="web-2"),
    )
    await release.by_hand(host.registry, "host-1", told.append)
    assert f"{taken.subnets}, is of host 'web-2' now" in told[0]
    await host.registry.update(replace(taken, lease_id=0), host.attrs(None), host.claimer.owner(host.lease.subnets))
    await release.by_hand(host.registry, "host-1", told.append)
    assert "is reserved for this host and stays" in told[1]
    assert host.key in await keys(store)
    store.fail(1, Unavailable("no endpoint answers"))
    with pytest.raises(FatalError, match="no endpoint answers"):
        await release.by_hand(host.registry, "host-1", told.append)
