"""Our signature beside the subnet file: that we wrote it, and for which network.

flannel's daemon writes the same file, often with the same words, and so do agents of two networks that were given one
path by mistake. What is removed by the word of that file is only what the network whose agent wrote it has made.

    /run/flannel/subnet.env              replaced by whoever writes it: another inode, another time
    /run/flannel/.subnet.env.flanneld-py   <inode> <time, ns> of the file that we wrote last, this host's underlay
                                           addresses (with a comma between; - for none), <etcd prefix>
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanneld_py.agent.subnetfile import replace


@dataclass(frozen=True, slots=True)
class Signature:
    """Who wrote the file: the agent of the network with this etcd prefix, over these underlay addresses."""

    network: str
    addresses: tuple[str, ...] = ()


def sign(path: Path, signature: Signature) -> None:
    """Say that the subnet file, as it is now, is ours. Raises OSError."""
    words = f"{_state(path)} {','.join(signature.addresses) or '-'} {signature.network}\n"
    replace(_place(path), words, 0o644)


def signature_of(path: Path) -> Signature | None:
    """Return who wrote the subnet file; None if it was somebody else, or there is none."""
    try:
        inode, time, addresses, network = _place(path).read_text(encoding="utf-8").rstrip("\n").split(" ", 3)
        found = Signature(network, tuple(addresses.split(",")) if addresses != "-" else ())
        return found if f"{inode} {time}" == _state(path) else None
    except (OSError, ValueError):
        return None


def remove(path: Path) -> None:
    """Remove the signature; none is no error. Raises OSError."""
    _place(path).unlink(missing_ok=True)


def _place(path: Path) -> Path:
    return path.with_name(f".{path.name}.flanneld-py")


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_ino} {found.st_mtime_ns}"
