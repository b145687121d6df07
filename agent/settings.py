"""What the operator decides about an agent, as the daemon hands it over. Not the command line (options.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanneld_py.encap import backends


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator decides about an agent; `margin` in seconds (`--subnet-lease-renew-margin`).

    `control` is the folder of the userspace data planes' control sockets, `workers` how many processes move packets
    in each of them.
    """

    subnet_file: Path
    margin: float = 3600.0
    datapath: backends.Choice = "auto"
    control: Path = Path("/run/flannel")
    workers: int = 1
