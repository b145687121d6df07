"""Give this host's lease back, so that another host can have the subnet at once: when the host goes for good.

    --release            now, by hand; beside an agent it would be claimed again, so that is refused
    --release-on-stop    when the agent is stopped because the host shuts down; not at a restart or an upgrade, after
                         which containers go on with the addresses they have: systemd tells which it is

What is programmed stays (`--cleanup`), and so does the subnet file, by which a host that comes back asks for the
same subnet. A reservation is the operator's and stays.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence

from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.log import facts, log
from flanneld_py.registry.model import Lease
from flanneld_py.registry.registry import Registry
from flanneld_py.registry.store import Conflict, RegistryError

SECONDS = 5.0
"""For all of it, at a shutdown: systemd waits for us (TimeoutStopSec in the unit is three times that)."""

ASK = ("systemctl", "is-system-running")


async def at_stop(registry: Registry, lease: Lease | None, identity: str, ask: Sequence[str] = ASK) -> None:
    """Give the lease back if the host shuts down; whatever fails is said, and the lease ends by itself."""
    try:
        async with asyncio.timeout(SECONDS):
            if lease is None or not await _shuts_down(ask):
                return
            if lease.lease_id == 0:
                log.info("our lease is a reservation, and stays", **facts(subnet=lease.subnets))
                return
            await registry.release(lease, identity)
            log.info("this host shuts down: lease given back", **facts(subnet=lease.subnets))
    except Conflict as error:
        log.warning("our lease is not given back, as somebody else wrote to it", **facts(reason=error))
    except (RegistryError, OSError, TimeoutError) as error:
        log.warning("our lease is not given back; it ends by itself", **facts(reason=str(error) or "it takes too long"))


async def by_hand(registry: Registry, identity: str, tell: Callable[[str], None]) -> None:
    """Give back the lease that this host has, if any. Raises FatalError if that cannot be done."""
    try:
        owner = await registry.owner(identity)
        lease = await registry.lease(owner.subnets) if owner is not None else None
        if owner is None or lease is None:
            tell("this host has no lease")
            return
        holder = owner
        if lease.mod_revision != owner.mod_revision:
            holder = await registry.owner_of(lease.subnets) or owner
        if holder.identity != identity:
            tell(f"this host has no lease; the one it had, {lease.subnets}, is of host {holder.hostname!r} now")
        elif lease.lease_id == 0:
            key = registry.key(lease.subnets)
            tell(f"{lease.subnets} is reserved for this host and stays; to end that: etcdctl del {key}")
        else:
            await registry.release(lease, identity)
            tell(f"gave {lease.subnets} back")
    except RegistryError as error:
        raise FatalError(f"the lease cannot be given back: {error}") from error


async def _shuts_down(ask: Sequence[str]) -> bool:
    """Ask systemd whether the host is on its way down. Raises OSError if that cannot be asked."""
    process = await asyncio.create_subprocess_exec(*ask, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        out, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    state = out.decode(errors="replace").strip()
    if not state or state == "offline":
        reason = complaint.decode(errors="replace").strip() or "it does not run"
        raise OSError(f"systemd cannot be asked whether this host shuts down ({reason})")
    return state == "stopping"
