"""Where host-local remembers which addresses it gave to containers of this host, unless the operator says it.

    /run/flannel-py/networks/<network>    gone at a reboot, as the containers are
    /var/lib/cni/networks/<network>       its own default, where earlier versions and flannel's plugin have it keep them

The latter outlives containers that a reboot ended: of a small subnet nothing is left after some reboots. But an address
that was given out there since the boot may be a container's now, so until the next boot it stays in use. DEL does not
ask: it goes by what was delegated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NOW = Path("/run/flannel-py/networks")
FORMER = Path("/var/lib/cni/networks")


def directory(network: str, containers: Callable[[], bool], now: Path = NOW, former: Path = FORMER) -> str:
    """Return host-local's `dataDir` for a network, until the next boot always the same one.

    `containers` tells whether there are any already: clocks that were wrong at boot say nothing of what came first.
    """
    if not (now / network).exists():
        if _used(former / network, containers):
            return str(former)
        with suppress(OSError):  # host-local will say it.
            (now / network).mkdir(mode=0o755, parents=True, exist_ok=True)
    return str(now)


def _used(folder: Path, containers: Callable[[], bool]) -> bool:
    try:
        written = [file.stat().st_mtime for file in folder.iterdir()]
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except OSError:
        return False
    booted = time.time() - uptime  # noqa: TID251 -- a file's time can be held against nothing else
    return bool(written) and (max(written) >= booted or containers())
