"""`--cleanup`: what we made on this host, removed, and nothing else. The agent has to be stopped.

    no agent runs? -> data planes ended -> firewall -> devices, nexthops, routes (encap/netlink/sweep.py) -> files

What is ours is told by its mark: our alias on a device, our folder for sockets, our signature beside the subnet file;
our protocol on routes and nexthops that lead into the network of that file, which stays as long as there is something
left that it tells about.
The lease in etcd stays: it keeps the host's subnet for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from flanneld_py.agent import signature, subnetfile
from flanneld_py.agent.datapath.client import DatapathError, clear_away, stop_process
from flanneld_py.agent.datapath.paths import control_socket, control_sockets
from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.lock import Locks
from flanneld_py.encap.firewall.enforce import Enforcer
from flanneld_py.encap.firewall.tools import HostTools
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.netlink.rtsocket import RequestFailed
from flanneld_py.encap.netlink.sweep import sweep


async def clean_up(subnet_file: Path, tell: Callable[[str], None], root: Path = Path("/")) -> None:
    """Remove it all, telling of each thing. Raises FatalError: before, if an agent runs; after, if something is
    left."""
    locks = Locks(root / "proc/net/unix")
    if names := locks.others().names:
        raise FatalError(
            f"an agent runs on this host and has {', '.join(names)}: stop it (systemctl stop flanneld-py), "
            "then run --cleanup again"
        )
    locks.take_file(subnet_file)  # One that is started meanwhile waits for us, by its exit code and systemd's restart.
    try:
        await _clean_up(subnet_file, tell)
    finally:
        locks.close()


async def _clean_up(subnet_file: Path, tell: Callable[[str], None]) -> None:
    left = await _end_datapaths(_once_there(subnet_file.parent), tell)
    try:
        left += await _remove_rules(tell)
        left += sweep([network for network, _ in subnetfile.previous(subnet_file)], tell)
    except (RequestFailed, KernelError, OSError) as error:
        left.append(f"the kernel's tables, which cannot be read: {error}")
    if not left:
        left += _remove_file(subnet_file, tell)
    if left:
        raise FatalError(f"not everything could be removed; left are: {'; '.join(left)}")


def _once_there(folder: Path) -> list[Path]:
    """List where data planes listen, or did: the lock file of a process outlives it."""
    locks = folder.glob(f"{control_socket(Path(), '*').name}.lock")
    return sorted({*control_sockets(folder).values(), *(lock.with_suffix("") for lock in locks)})


async def _end_datapaths(controls: Iterable[Path], tell: Callable[[str], None]) -> list[str]:
    left = []
    for control in controls:
        try:
            if await stop_process(control):
                tell(f"ended the userspace data plane at {control}, and with it its device")
            for file in clear_away(control):
                tell(f"removed {file}")
        except (DatapathError, OSError) as error:
            left.append(str(error))
    return left


async def _remove_rules(tell: Callable[[str], None]) -> list[str]:
    outcome = await Enforcer(HostTools(), "auto", "", prefer_nft=False).remove()
    if outcome.changed:
        tell("removed firewall rules")
    return list(outcome.failures)


def _remove_file(path: Path, tell: Callable[[str], None]) -> list[str]:
    """Remove the subnet file, if we wrote it: flannel's daemon, if it is back on this host, writes its own but once."""
    try:
        ours = signature.signature_of(path) is not None and subnetfile.is_one(path)
        if ours:
            path.unlink()
        signature.remove(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{path} ({error.strerror})"]
    if ours:
        tell(f"removed {path}")
    return []
