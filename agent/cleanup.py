"""`--cleanup`: what we made on this host, removed, and nothing else. The agent has to be stopped.

    no agent runs? -> data planes ended -> firewall -> devices, nexthops, routes (encap/sweep.py) -> files

What is ours is told by its mark: our alias on a device, our protocol on routes and nexthops, our folder for sockets.
The lease in etcd stays: it keeps the host's subnet for a day.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.broken import Broken
from flanneld_py.agent.line import DatapathError, stop_process
from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.rtsocket import Interrupted
from flanneld_py.encap.sweep import sweep

LOCK = "flanneld-py/"
"""How the names of the abstract sockets begin by which an agent holds its device (daemon.py)."""


async def clean_up(subnet_file: Path, tell: Callable[[str], None], root: Path = Path("/")) -> None:
    """Remove it all, telling of each thing. Raises Broken: before, if an agent runs; after, if something is left."""
    if held := held_devices((root / "proc/net/unix").read_text(encoding="utf-8", errors="replace")):
        raise Broken(
            f"an agent runs on this host and has {', '.join(held)}: stop it (systemctl stop flanneld-py), "
            "then run --cleanup again"
        )
    left = await _end_datapaths(subnet_file.parent, tell)
    # The firewall's rules go here: while its chains are there, and before the device that they name is not.
    try:
        left += sweep(tell)
    except (Interrupted, KernelError, OSError) as error:
        left.append(f"the kernel's tables, which cannot be read: {error or 'they change all the time'}")
    left += _remove_file(subnet_file, tell)
    if left:
        raise Broken(f"not everything could be removed; left are: {'; '.join(left)}")


def held_devices(table: str) -> list[str]:
    """Find the devices that agents hold, in the text of /proc/net/unix."""
    names = {line.split()[-1] for line in table.splitlines()[1:] if line.split()}
    return sorted(name.removeprefix(f"@{LOCK}") for name in names if name.startswith(f"@{LOCK}"))


def control_sockets(folder: Path) -> list[Path]:
    """List the control sockets of userspace data planes."""
    return sorted(folder.glob("datapath-*.sock"))


async def _end_datapaths(folder: Path, tell: Callable[[str], None]) -> list[str]:
    left = []
    for control in control_sockets(folder):
        try:
            if await stop_process(control):
                tell(f"ended the userspace data plane at {control}, and with it its device")
            control.unlink(missing_ok=True)
        except (DatapathError, OSError) as error:
            left.append(str(error))
        else:
            tell(f"removed {control}")
    return left


def _remove_file(path: Path, tell: Callable[[str], None]) -> list[str]:
    """Remove the subnet file, if that is what it is."""
    try:
        if not subnetfile.is_one(path):
            return []
        path.unlink()
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{path} ({error.strerror})"]
    tell(f"removed {path}")
    return []
