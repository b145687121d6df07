from __future__ import annotations

import asyncio
import socket

import pytest

from flanneld_py.registry.etcd.api import RANGE
from flanneld_py.registry.etcd.channel import Link
from flanneld_py.registry.etcd.endpoint import CHANNEL_OPTIONS, parse_endpoints
from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.store import Denied, HistoryLost, LeaseGone, RegistryError, Unavailable


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("etcdserver: requested lease not found", LeaseGone),
        ("etcdserver: mvcc: required revision has been compacted", HistoryLost),
        ("etcdserver: mvcc: required revision is a future revision", HistoryLost),
        ("etcdserver: duplicate key given in txn request", Denied),
        ("etcdserver: too many operations in txn request", Denied),
        ("etcdserver: request is too large", Denied),
        ("etcdserver: permission denied", Denied),
        ("etcdserver: authentication failed, invalid user ID or password", Denied),
        ("etcdserver: no leader", Unavailable),
        ("context canceled", Unavailable),
        ("something new", Unavailable),
    ],
)
def test_what_comes_through_a_proxy_as_unknown_is_told_by_its_text(text: str, kind: type[RegistryError]) -> None:
    refusal = Refusal("UNKNOWN", text)
    assert refusal.kind is kind
    assert refusal.moves_on == (kind is Unavailable), "else no other endpoint does better"


@pytest.mark.parametrize("text", ["Stream removed", "too_many_pings", "context canceled"])
def test_a_connection_that_was_ended_is_said_with_what_to_do(text: str) -> None:
    said = str(Refusal("UNAVAILABLE", text, "http://10.0.0.5:2379"))
    assert said.startswith("etcd at http://10.0.0.5:2379 ")
    assert "look at" in said


def test_a_quiet_connection_is_pinged_no_more_often_than_any_grpc_server_takes() -> None:
    """Servers end it after three pings within five minutes each, if they have nothing to say (grpc-go, keepalive)."""
    assert dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] > 300_000


async def test_a_call_whose_channel_is_closed_is_refused_and_its_task_not_cancelled() -> None:
    """grpc.aio raises CancelledError then: the task would be gone without a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (endpoint,) = parse_endpoints([f"http://127.0.0.1:{silent.getsockname()[1]}"], None)
        link = Link(endpoint, None)

        async def call() -> None:
            with pytest.raises(Refusal):
                await link.call(RANGE, RANGE.request(key=b"a"), "", asyncio.get_running_loop().time() + 30)

        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(call())
            await asyncio.sleep(0.05)
            channel = link._channel
            assert channel is not None
            await channel.close(0)
        assert not calling.cancelled()
