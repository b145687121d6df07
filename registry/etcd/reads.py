"""Reading from etcd, the same for both clients: what differs is how a request is sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from flanneld_py.registry.etcd import api
from flanneld_py.registry.store import KeyValue, Listing


class Reads(ABC):
    """`get`, `pages` and `count` of a Store, and the id of the cluster that they found."""

    _cluster_id = 0

    @abstractmethod
    async def _range(self, action: str, request: api.Message) -> api.Message:
        """Send a range request and return its answer. Raises RegistryError with the action in its words."""

    @property
    @abstractmethod
    def _url(self) -> str:
        """The endpoint that answered last."""

    async def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """Read one key, linearizable; see Store. Raises HistoryLost."""
        answer = await self._range(f"read {key}", api.get_request(key, revision))
        self._cluster_id = self._cluster_id or answer.header.cluster_id
        return api.entry(answer.kvs[0]) if answer.kvs else None

    async def pages(
        self, prefix: str, page_size: int = 500, since: int = 0, *, keys_only: bool = False
    ) -> AsyncGenerator[Listing, None]:
        """List the keys that start with `prefix`; see Store. Raises HistoryLost."""
        start, end = api.span(prefix)
        revision = 0
        while True:
            request = api.list_request(start, end, page_size, revision, since, keys_only=keys_only)
            answer = await self._range(f"list {prefix}", request)
            if not revision:
                revision, self._cluster_id = answer.header.revision, answer.header.cluster_id
            yield Listing(tuple(map(api.entry, answer.kvs)), revision)
            if not answer.more:
                return
            start = answer.kvs[-1].key + b"\0"

    async def count(self, prefix: str, revision: int = 0) -> tuple[int, int]:
        """Count the keys that start with `prefix`; see Store. Raises HistoryLost."""
        answer = await self._range(f"count {prefix}", api.count_request(prefix, revision))
        api.require_cluster(answer.header, self._cluster_id, self._url)
        return int(answer.count), int(answer.header.revision)
