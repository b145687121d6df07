"""The `etcd3` package (0.12.0) made to load, and one blocking session with it. What fails is a Refusal.

Not asyncio and no failover: etcd3_client.py calls this from its threads, and decides. What is known of that package:

- Its generated modules are refused by protobuf 4 and later; `load_etcd3` puts our own in their place.
- Its methods cannot read at a revision, and its transactions hide the new revision: its stubs can and do not.
- Its watch callbacks are not used: after an error they reconnect in a busy loop, and they swallow cancellations
  and the header that shows whose history it is. `Watch` reads its watch stub.
- It attaches the login token in a way that gRPC allows with TLS only.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from queue import SimpleQueue
from types import ModuleType
from typing import Any, TypeVar

# See channel.py.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from flanneld_py.registry.etcd import api
from flanneld_py.registry.etcd.endpoint import CHANNEL_OPTIONS, Credentials, Endpoint, Tls, system_roots
from flanneld_py.registry.etcd.status import Refusal
from flanneld_py.registry.store import RegistryError

T = TypeVar("T")


def load_etcd3() -> ModuleType:
    """Import `etcd3` with our messages and stubs in the place of `etcd3.etcdrpc`. Raises RegistryError.

    What it takes from that module are the message classes by name, and one stub class per service; of the services
    that we do not use it only wants to make the stub.
    """
    generated = ModuleType("etcd3.etcdrpc", "Made from flanneld_py's descriptors of etcd's API.")
    file = api.POOL.FindFileByName("etcd/api/etcdserverpb/rpc.proto")
    for name in file.message_types_by_name:
        setattr(generated, name, api.message(name))
    for name, service in file.services_by_name.items():
        setattr(generated, f"{name}Stub", _stub(name, list(service.methods_by_name)))
    for name in ("Cluster", "Maintenance"):
        setattr(generated, f"{name}Stub", _stub(name, []))
    sys.modules.setdefault(generated.__name__, generated)
    try:
        return import_module("etcd3")
    except ImportError as error:
        del sys.modules[generated.__name__]
        raise RegistryError(
            f"the etcd3 client cannot be loaded ({error}); install it with: pip install flanneld-py[etcd3], "
            "or use the default client"
        ) from error


def _stub(service: str, names: Sequence[str]) -> type[Any]:
    def connect(self: Any, channel: Any) -> None:
        for name in names:
            method = api.method(service, name)
            call = channel.stream_stream if method.streams else channel.unary_unary
            setattr(self, name, call(method.path, method.request.SerializeToString, method.response.FromString))

    return type(f"{service}Stub", (), {"__init__": connect})


class Session:
    """One `Etcd3Client` on one endpoint, logged in if there is a user. Raises Refusal, also while it is made."""

    def __init__(
        self, etcd3: ModuleType, endpoint: Endpoint, tls: Tls, credentials: Credentials | None, timeout: float
    ) -> None:
        self.endpoint = endpoint
        self._package_error: type[Exception] = etcd3.Etcd3Exception
        host, _, port = endpoint.target.rpartition(":")
        files = {}
        if endpoint.secure:
            # Without a CA the package would not use TLS at all.
            files = {"ca_cert": tls.ca or system_roots(), "cert_cert": tls.certificate, "cert_key": tls.key}
        login = {"user": credentials.username, "password": credentials.password} if credentials else {}
        self.client = self.call(
            lambda _: etcd3.Etcd3Client(
                host, int(port), timeout=timeout, grpc_options=CHANNEL_OPTIONS, **files, **login
            )
        )
        self.client.metadata = (*(self.client.metadata or ()), api.REQUIRE_LEADER)

    def call(self, work: Callable[[Any], T]) -> T:
        """Let `work` use the client. Raises Refusal."""
        try:
            return work(getattr(self, "client", None))
        except (grpc.RpcError, self._package_error) as error:
            # The package's own errors have lost code and text; what they were raised from has both.
            status = error if isinstance(error, grpc.RpcError) else error.__context__
            raise Refusal(status.code().name, status.details() or "", self.endpoint.url) from error  # type: ignore[union-attr]
        except StopIteration as error:
            raise Refusal("UNAVAILABLE", "the stream was ended without an answer", self.endpoint.url) from error
        except ValueError as error:
            # grpc's answer to a call on a channel that another thread has closed.
            raise Refusal("CANCELLED", str(error), self.endpoint.url) from error

    def close(self) -> None:
        """Close the channel; whoever still waits on it gets a Refusal."""
        self.client.close()


def kv(client: Any, name: str, request: api.Message) -> api.Message:
    """Call a method of the KV service through the client's stub."""
    method = getattr(client.kvstub, name)
    return method(request, client.timeout, credentials=client.call_credentials, metadata=client.metadata)


def renew(client: Any, lease_id: int) -> api.Message:
    """Renew an etcd lease. Its stream is open until the answer is there (a proxy gives none after that), no longer."""
    answered = threading.Event()

    def requests() -> Iterator[api.Message]:
        yield api.KEEPALIVE.request(ID=lease_id)
        answered.wait(client.timeout)

    keepalive = client.leasestub.LeaseKeepAlive
    answers = keepalive(requests(), client.timeout, credentials=client.call_credentials, metadata=client.metadata)
    try:
        return next(answers)
    finally:
        answered.set()
        answers.cancel()


class Watch:
    """One watch on a session of its own. `close` may come from any thread, and frees the one that reads."""

    def __init__(self, etcd3: ModuleType, connect: Callable[[], Session]) -> None:
        self._etcd3 = etcd3
        self._connect = connect
        self._requests: SimpleQueue[api.Message] = SimpleQueue()
        self._session: Session | None = None
        self._closed = False
        self.progresses = False

    def open(self, prefix: str, start_revision: int, cluster_id: int) -> None:
        """Begin, and return when the watch stands. Raises Refusal, HistoryLost."""
        self._session = session = self._connect()
        if self._closed:
            session.close()
            raise Refusal("CANCELLED", "the watch is closed", session.endpoint.url)
        # A linearizable read first: a member that lags behind waits until it does not.
        header = self.probe(prefix, start_revision, cluster_id)
        stub = self._etcd3.etcdrpc.WatchStub(session.client.channel)
        requests = iter(self._requests.get, None)
        self._requests.put(api.watch_request(prefix, start_revision, header.revision))
        self._answers = stub.Watch(
            requests, credentials=session.client.call_credentials, metadata=session.client.metadata
        )
        api.WatchReader(start_revision).read(self.read())

    def probe(self, prefix: str, start_revision: int, cluster_id: int) -> api.Message:
        """Ask the endpoint for a header: it lives, and has the history until then. Raises Refusal, StoreReplaced."""
        assert self._session is not None
        header = self._session.call(partial(kv, name="Range", request=api.header_request(prefix))).header
        api.require_history(header, cluster_id, start_revision, self._session.endpoint.url)
        return header

    def read(self) -> api.Message:
        """Return the next answer. Raises Refusal."""
        assert self._session is not None
        answer = self._session.call(lambda _: next(self._answers, None))
        if answer is None:
            raise Refusal("UNAVAILABLE", "the watch was ended by the server", self._session.endpoint.url)
        self.progresses = self.progresses or api.is_progress(answer)
        return answer

    def ask(self) -> None:
        """Request a sign of life."""
        self._requests.put(api.PROGRESS)

    def close(self) -> None:
        """End the watch."""
        self._closed = True
        # What ends the thread in which grpc reads the requests.
        self._requests.put(None)
        if self._session is not None:
            self._session.close()
