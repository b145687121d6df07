"""Where userspace data planes listen for their agent."""

from __future__ import annotations

from pathlib import Path


def control_socket(folder: Path, device: str) -> Path:
    """Return where the userspace data plane with this device listens."""
    return folder / f"datapath-{device}.sock"


def control_sockets(folder: Path) -> dict[str, Path]:
    """Find where userspace data planes listen, by device."""
    found = sorted(folder.glob(control_socket(Path(), "*").name))
    return {control.stem.removeprefix("datapath-"): control for control in found}
