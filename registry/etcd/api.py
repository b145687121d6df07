"""etcd's v3 API as messages: built, read and turned into the store's values. No connection, no waiting.

The descriptors in `api.binpb` were made from the definitions that etcd publishes (Apache License 2.0), release
3.6.9, `api/mvccpb/kv.proto` and `api/etcdserverpb/rpc.proto`: the services KV (Range, Txn), Watch, Lease and Auth
(Authenticate) with the messages they need, without comments and annotations, compiled by
`protoc --include_imports --descriptor_set_out=api.binpb`. All of it is in etcd 3.4 already.

They are loaded into a pool of our own, because another etcd client in the same process defines the same names in the
default pool; and at run time, because generated Python code ties itself to one release of protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.store import Batch, Delete, Deleted, Expect, HistoryLost, KeyValue, Put, StoreReplaced

Message = Any
"""A protobuf message; protobuf makes the classes at run time, so there is nothing to check them against."""


def _load_pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(Path(__file__).with_name("api.binpb").read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _load_pool()


@dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure: its path on the wire, what is sent, what comes back."""

    path: str
    request: type[Message]
    response: type[Message]
    streams: bool


def method(service: str, name: str) -> Method:
    """Look up a method of etcd's API."""
    found = POOL.FindServiceByName(f"etcdserverpb.{service}").methods_by_name[name]
    path = f"/etcdserverpb.{service}/{name}"
    streams = name in ("Watch", "LeaseKeepAlive")
    return Method(path, GetMessageClass(found.input_type), GetMessageClass(found.output_type), streams)


def message(name: str) -> type[Message]:
    """Look up a message class of etcd's API."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"etcdserverpb.{name}"))


RANGE = method("KV", "Range")
TXN = method("KV", "Txn")
WATCH = method("Watch", "Watch")
GRANT = method("Lease", "LeaseGrant")
REVOKE = method("Lease", "LeaseRevoke")
KEEPALIVE = method("Lease", "LeaseKeepAlive")
TIME_TO_LIVE = method("Lease", "LeaseTimeToLive")
AUTHENTICATE = method("Auth", "Authenticate")

_Compare = message("Compare")
_RequestOp = message("RequestOp")
_Put = message("PutRequest")
_DeleteRange = message("DeleteRangeRequest")
_WatchCreate = message("WatchCreateRequest")

REQUIRE_LEADER = ("hasleader", "true")
"""Call metadata: a member that has lost its leader says so at once, instead of keeping the caller waiting."""

PROBES = 12
"""How many times as long as usual a watch may be silent whose endpoint answers no progress request, but reads."""

PROGRESS = WATCH.request(progress_request=message("WatchProgressRequest")())


def encode(key: str) -> bytes:
    """Turn a key into etcd's bytes. Bytes that are no UTF-8 survive the way through `decode` and back."""
    return key.encode("utf-8", "surrogateescape")


def decode(key: bytes) -> str:
    """Turn etcd's bytes into a key: one odd key of somebody else's must not spoil a whole listing."""
    return key.decode("utf-8", "surrogateescape")


def span(prefix: str) -> tuple[bytes, bytes]:
    """Return the half-open range of all keys that start with `prefix`."""
    start = encode(prefix).rstrip(b"\xff")
    if not start:
        return b"\0", b"\0"
    return encode(prefix), start[:-1] + bytes([start[-1] + 1])


def entry(kv: Message) -> KeyValue:
    """Read one stored key."""
    return KeyValue(decode(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def transaction(expect: Sequence[Expect], operations: Sequence[Put | Delete]) -> Message:
    """Build a transaction: all operations if every expectation holds, else nothing."""
    return TXN.request(
        # An absent key compares as mod_revision 0.
        compare=[
            _Compare(result=_Compare.EQUAL, target=_Compare.MOD, key=encode(want.key), mod_revision=want.mod_revision)
            for want in expect
        ],
        success=[_request(operation) for operation in operations],
    )


def _request(operation: Put | Delete) -> Message:
    match operation:
        case Put(key, value, lease_id):
            return _RequestOp(request_put=_Put(key=encode(key), value=value, lease=lease_id))
        case Delete(key):
            return _RequestOp(request_delete_range=_DeleteRange(key=encode(key)))


def get_request(key: str, revision: int) -> Message:
    """Build a request for one key as of `revision`; 0 is the newest."""
    return RANGE.request(key=encode(key), revision=revision)


def list_request(start: bytes, end: bytes, limit: int, revision: int, since: int, *, keys_only: bool) -> Message:
    """Build a request for a page of what was written after revision `since`, as of `revision`; 0 is the newest."""
    request = RANGE.request(key=start, range_end=end, limit=limit, revision=revision, keys_only=keys_only)
    if since:
        request.min_mod_revision = since + 1  # Any bound makes etcd read the whole range for each page.
    return request


def count_request(prefix: str, revision: int) -> Message:
    """Build a linearizable read that counts the keys under `prefix` as of `revision`, without looking at them."""
    start, end = span(prefix)
    return RANGE.request(key=start, range_end=end, revision=revision, count_only=True)


def header_request(prefix: str) -> Message:
    """Build a linearizable read, allowed to whoever may read `prefix`, that returns hardly more than a header."""
    return RANGE.request(key=span(prefix)[0], count_only=True)


def watch_request(prefix: str, start_revision: int, newest: int) -> Message:
    """Build the request that opens a watch; `newest` is a revision that etcd has reached.

    To a watch from a revision yet to come, etcd answers no progress request (etcd-io/etcd#20229; seen with 3.5.30,
    3.6.14 and 3.7.1). So none begins after `newest`; what is older than `start_revision` the `WatchReader` drops.
    """
    key, end = span(prefix)
    first = min(start_revision, newest)
    return WATCH.request(create_request=_WatchCreate(key=key, range_end=end, start_revision=first, fragment=True))


def require_cluster(header: Message, cluster_id: int, url: str) -> None:
    """Check that this is the cluster we listed (`cluster_id` 0: none yet). Raises StoreReplaced."""
    if cluster_id not in (0, header.cluster_id):
        raise StoreReplaced(f"etcd at {url} is another cluster than the one we listed; list again")


def require_history(header: Message, cluster_id: int, start_revision: int, url: str) -> None:
    """Check that this is the cluster we listed, and not behind us. Raises StoreReplaced."""
    require_cluster(header, cluster_id, url)
    if header.revision < start_revision - 1:
        raise StoreReplaced(
            f"etcd at {url} is at revision {header.revision} and we know {start_revision - 1}: "
            "it was replaced or restored from a backup; list again"
        )


def is_progress(answer: Message) -> bool:
    """Tell whether this answers a progress request, which a proxy never does."""
    return not (answer.created or answer.canceled or answer.events)


class WatchReader:
    """Turns the answers on a watch stream into batches of what happened from `start_revision` on."""

    def __init__(self, start_revision: int) -> None:
        self._start_revision = start_revision
        self._events: list[KeyValue | Deleted] = []

    def read(self, answer: Message) -> Batch | None:
        """Take the next answer; return a batch if it completes one.

        A progress answer completes none, and its revision is not believed: etcd before 3.4.25 and 3.5.8 gives it
        while older events are still on their way. Raises HistoryLost, and Refusal if etcd ended the watch.
        """
        if answer.canceled:
            if answer.compact_revision:
                raise HistoryLost(
                    f"the changes before revision {answer.compact_revision} are compacted in etcd; list again"
                )
            raise Refusal("CANCELLED", answer.cancel_reason or "the watch was cancelled by etcd")
        self._events += [_event(event) for event in answer.events if event.kv.mod_revision >= self._start_revision]
        # A fragment may end in the middle of a transaction.
        if answer.fragment or not self._events:
            return None
        events, self._events = tuple(self._events), []
        return Batch(events, events[-1].mod_revision)


def _event(event: Message) -> KeyValue | Deleted:
    kv = event.kv
    return entry(kv) if event.type == event.PUT else Deleted(decode(kv.key), kv.mod_revision)
