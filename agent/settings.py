"""What the operator decides about an agent, as the daemon hands it over. Not the command line (options.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanneld_py.encap.backends import table


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides about an agent; `margin` in seconds (`--subnet-lease-renew-margin`).

    `file_looks` are the seconds between looks at the subnet file: whether it is still there, and says what it should.
    `prefix` is etcd's (`--etcd-prefix`): it tells networks apart.
    `control` is the folder of the userspace data planes' control sockets, `workers` how many processes move packets
    in each of them, `subnet_len` the prefix length of its IPv4 subnet if not the network's.
    """

    subnet_file: Path
    margin: float = 3600.0
    datapath: table.Choice = "auto"
    control: Path = Path("/run/flannel")
    workers: int = 1
    prefix: str = "/coreos.com/network"
    subnet_len: int | None = None
    file_looks: float = 3.0


def control_socket(folder: Path, device: str) -> Path:
    """Return where the userspace data plane with this device listens for its agent."""
    return folder / f"datapath-{device}.sock"


def control_sockets(folder: Path) -> dict[str, Path]:
    """Find where userspace data planes listen, by device."""
    found = sorted(folder.glob(control_socket(Path(), "*").name))
    return {control.stem.removeprefix("datapath-"): control for control in found}
