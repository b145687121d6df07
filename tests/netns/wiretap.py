"""What passes a device, as a process: `python -m tests.netns.wiretap <device> <unwanted> <wanted>`.

It counts the packets that contain the unwanted bytes, and says `wanted` for each with the wanted ones: whoever sent a
wanted packet last and heard of it knows that all before it has been counted.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.namespace import Namespace
from tests.netns.transfer import REPOSITORY
from tests.patience import patient

ETH_P_ALL, SO_RCVBUFFORCE = 3, 33


def main(device: str, unwanted: str, wanted: str) -> int:
    interrupted, interrupts = socket.socketpair()
    interrupts.setblocking(False)
    signal.set_wakeup_fd(interrupts.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    count = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        tap.bind((device, ETH_P_ALL))
        print("listening", flush=True)
        while True:
            ready, _, _ = select.select([tap, interrupted], [], [])
            if interrupted in ready:
                return count
            frame = tap.recv(70_000)
            count += unwanted.encode() in frame
            if wanted.encode() in frame:
                print("wanted", flush=True)


class Wiretap:
    """One under way; made by `wiretap`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait_wanted(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"wanted\n"

    def unwanted(self) -> int:
        """End it; return how many unwanted packets there were."""
        self._process.terminate()
        said, _ = self._process.communicate(timeout=patient(10))
        return int(said.split()[-1])


@contextmanager
def wiretap(namespace: Namespace, device: str, unwanted: bytes, wanted: bytes) -> Iterator[Wiretap]:
    """Listen while the block runs."""
    command: list[str | Path] = ["env", "--chdir", REPOSITORY, sys.executable, "-m", "tests.netns.wiretap"]
    process = namespace.popen(
        [*command, device, unwanted.decode(), wanted.decode()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield Wiretap(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
