"""etcd through its HTTP gateway (/v3/kv/…, JSON): one blocking connection from inside a network namespace.

Not a client library: what the benchmarks write, and no more. A put can be sent and answered apart, so that its effect
can be waited for in between by the same thread, without another thread or event loop that would take the CPU from the
daemon being timed.
"""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from collections.abc import Sequence
from http.client import HTTPConnection
from typing import Any

from tests.bench.peers import Peer
from tests.bench.witness import entered
from tests.lab.namespace import LabError, Namespace

TRANSACTION = 100
"""Puts in one transaction; etcd takes 128 unless told otherwise."""


class Gateway:
    """A connection to one etcd. All that it writes hangs on one etcd lease of a day, as flannel's keys do."""

    def __init__(self, namespace: Namespace, address: str, port: int, prefix: str) -> None:
        self._prefix = prefix
        self._http = HTTPConnection(address, port)
        with entered(namespace):
            stream = socket.create_connection((address, port), timeout=10)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http.sock = stream
        self._http.auto_open = 0
        self._lease = self._call("lease/grant", {"TTL": 86_400})["ID"]

    def put(self, peer: Peer) -> None:
        """Write the lease of a peer."""
        self.send_put(peer)
        self.receive()

    def send_put(self, peer: Peer) -> None:
        """Send what writes the lease of a peer; `receive` must follow."""
        self._send("kv/put", self._put(peer))

    def receive(self) -> Any:
        """Read the answer. Raises LabError if etcd refused."""
        response = self._http.getresponse()
        body = response.read()
        if response.status != 200:
            raise LabError(f"etcd's gateway answered {response.status}: {body.decode(errors='replace')[:300]}")
        return json.loads(body)

    def put_all(self, peers: Sequence[Peer]) -> None:
        """Write the leases of peers, TRANSACTION of them at a time."""
        for start in range(0, len(peers), TRANSACTION):
            puts = [{"requestPut": self._put(peer)} for peer in peers[start : start + TRANSACTION]]
            self._call("kv/txn", {"success": puts})

    def delete(self, peer: Peer) -> None:
        """Delete the lease of a peer."""
        self._call("kv/deleterange", {"key": _text(peer.key(self._prefix))})

    def delete_many(self, peers: Sequence[Peer]) -> None:
        """Delete the leases of up to TRANSACTION peers at once."""
        deletes = [{"requestDeleteRange": {"key": _text(peer.key(self._prefix))}} for peer in peers]
        self._call("kv/txn", {"success": deletes})

    def delete_all(self, first: str) -> None:
        """Delete every key of the network that starts with `first`, e.g. `subnets/10.64.`."""
        key = f"{self._prefix}/{first}"
        self._call("kv/deleterange", {"key": _text(key), "range_end": _text(key[:-1] + chr(ord(key[-1]) + 1))})

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _put(self, peer: Peer) -> dict[str, object]:
        return {"key": _text(peer.key(self._prefix)), "value": b64encode(peer.value).decode(), "lease": self._lease}

    def _call(self, method: str, request: object) -> Any:
        self._send(method, request)
        return self.receive()

    def _send(self, method: str, request: object) -> None:
        self._http.request("POST", f"/v3/{method}", json.dumps(request).encode())


def _text(key: str) -> str:
    return b64encode(key.encode()).decode()
