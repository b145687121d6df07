"""A program of its own, run in a container: small UDP datagrams at a rate, or the socket that they arrive at.

    generator.py send ADDRESS PORT RATE    datagrams of SIZE bytes a second, until killed
    generator.py sink ADDRESS              says its port on stdout and holds the socket, until killed

One datagram a call, as applications send them. It counts nothing: the kernel's own counters do (packets.py). The sink
does not read, so that its work is not part of the measurement.
"""

from __future__ import annotations

import signal
import socket
import sys
import time

SIZE = 64
BURST = 32
"""Datagrams between two looks at the clock, at most."""
PAUSE = 50e-6
"""Seconds to rest when ahead of the rate: a generator that spins would take a core from what it measures."""


def send(address: str, port: int, rate: float) -> None:
    """Send for ever; what was missed while others had the core is made up for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((address, port))
        datagram, sent, began = bytes(SIZE), 0, time.perf_counter()
        while True:
            due = int((time.perf_counter() - began) * rate) - sent
            if due <= 0:
                time.sleep(PAUSE)
            for _ in range(min(due, BURST)):
                sender.send(datagram)
            sent += max(0, min(due, BURST))


def sink(address: str) -> None:
    """Hold the socket for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((address, 0))
        print(holder.getsockname()[1], flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    sink(sys.argv[2])
