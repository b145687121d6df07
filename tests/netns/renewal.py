"""A lease renewed once, by the agent's own client: `python -m tests.netns.renewal ENDPOINTS FOLDER LEASE` says its TTL.

A process of its own, as it has to be in a namespace. FOLDER is what deploy/etcd/certificates made for the client.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from flanneld_py.registry.etcd.client import EtcdStore, Tls


async def renew(endpoints: list[str], folder: Path, lease: int) -> int:
    store = EtcdStore(endpoints, tls=Tls(folder / "ca.crt", folder / "client.crt", folder / "client.key"))
    try:
        return await store.keepalive(lease)
    finally:
        await store.close()


if __name__ == "__main__":
    print(asyncio.run(renew(sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3]))))
