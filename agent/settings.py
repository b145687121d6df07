"""What the operator decides, as the daemon hands it over. Values only; the command line is options.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flanneld_py.encap.backends import table
    from flanneld_py.encap.family import Network
    from flanneld_py.encap.firewall.enforce import Asked


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
    datapath: table.DatapathChoice = "auto"
    control: Path = Path("/run/flannel")
    workers: int = 1
    prefix: str = "/coreos.com/network"
    subnet_len: int | None = None
    file_looks: float = 3.0


@dataclass(frozen=True, slots=True)
class FirewallSettings:
    """What the operator decides about the packet filter; `resync` in seconds, 0 for no looks at legacy iptables."""

    asked: Asked = "auto"
    masquerade: bool = False
    forward: bool = True
    random_fully: bool = True
    excluded: tuple[Network, ...] = ()
    resync: float = 5.0
    own_only: bool = False
