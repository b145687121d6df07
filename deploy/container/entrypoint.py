"""What the image starts: flanneld-py, unless the container has a network of its own.

There it would lease a subnet, publish an address that no other host reaches, and program a network that goes with the
container. The kernel tells no container whose network it has. But an engine has sockets with names (docker.sock, those
of containerd's shim or of conmon), and the kernel lists them only to processes in the same network namespace: in the
host's there are some, in one made for this container there are none yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

AGENT = "/usr/sbin/flanneld-py"
HARMLESS = {"help", "version"}
FIELDS = 7
"""Of a socket without a name in /proc/net/unix; a name follows them."""
REFUSAL = (
    "flanneld-py: this container has a network of its own, where the host's devices and routes are not: "
    "run it with --network=host\n"
)


def shared(table: str) -> bool:
    """Tell whether others have named sockets in this network namespace, from the text of /proc/net/unix. Pure."""
    return any(len(line.split()) > FIELDS for line in table.splitlines()[1:])


def main(arguments: Sequence[str]) -> int:
    """Become the agent; return 1 if that cannot be."""
    asks = {argument.lstrip("-") for argument in arguments}
    if not asks & HARMLESS and not shared(Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace")):
        sys.stderr.write(REFUSAL)
        return 1
    os.execv(AGENT, [AGENT, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
