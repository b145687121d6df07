"""Content that is verified on its way from station to station; iperf3 counts, and looks at nothing.

    Stream        TCP: pseudo-random bytes in writes of many lengths; both ends say how many, and their SHA-256
    datagrams     UDP: each with its number and a digest of itself, of many lengths, some as super-packets

The ends are processes, this module run as `python -m tests.netns.transfer <part> <address> <port> ...`. The receiver is
there before the sender starts. An end that is told to stop (SIGTERM) finishes what it does and reports.
"""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.measure import Station
from tests.lab.namespace import Namespace
from tests.patience import patient

REPOSITORY = Path(__file__).parents[2]
CHUNK = 8 << 20
SO_RCVBUFFORCE, UDP_SEGMENT = 33, 103
DIGEST = 16
HEAD = DIGEST + 8
LENGTHS = (HEAD, 100, 700, 1372, 1398, 1402, 1403, 3000, 20_000, 60_000)
"""Bytes of a datagram; over IPv4 and VXLAN 1422 fit into the MTU."""


# The ends


def send_stream(address: str, port: int, size: int, stopped: Callable[[], bool]) -> str:
    """Send `size` bytes, 0 for until stopped."""
    digest, rng, sent = hashlib.sha256(), random.Random(port), 0
    with socket.create_connection((address, port), timeout=patient(20)) as connection:
        while (sent < size or not size) and not stopped():
            data = rng.randbytes(min(size - sent if size else 1 << 20, rng.choice((1, 700, 1398, 50_000, 1_000_000))))
            connection.sendall(data)
            digest.update(data)
            sent += len(data)
    return f"{sent} {digest.hexdigest()}"


def receive_stream(address: str, port: int) -> str:
    """Receive one connection; say a line for every CHUNK bytes."""
    digest, size = hashlib.sha256(), 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 20):
                digest.update(data)
                size += len(data)
                if size // CHUNK != (size - len(data)) // CHUNK:
                    print("more", flush=True)
    return f"{size} {digest.hexdigest()}"


def sealed(number: int, length: int, rng: random.Random) -> bytes:
    """A datagram that can be checked."""
    body = number.to_bytes(8, "big") + rng.randbytes(length - HEAD)
    return hashlib.blake2b(body, digest_size=DIGEST).digest() + body


def send_datagrams(address: str, port: int, count: int) -> str:
    """Send so many, alone and as super-packets, in bursts with pauses that a receiver can keep up with."""
    rng, number = random.Random(port), 0
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((address, port))
        while number < count:
            length = rng.choice(LENGTHS)
            several = min(count - number, rng.choice((1, 1, 7, 30))) if length <= 1372 else 1
            parts = [sealed(number + i, length, rng) for i in range(several)]
            segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, length.to_bytes(2, sys.byteorder))] if several > 1 else []
            out.sendmsg(parts, segment)
            number += several
            time.sleep(0.0005)
    return f"{count}"


def receive_datagrams(address: str, port: int, stopped: Callable[[], bool]) -> str:
    """Receive until stopped and silent; say how many were whole, broken and there before."""
    seen: Counter[bytes] = Counter()
    broken = 0
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as inlet:
        inlet.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        inlet.bind((address, port))
        inlet.settimeout(0.2)
        print("listening", flush=True)
        while True:
            try:
                data = inlet.recv(65535)
            except TimeoutError:
                if stopped():
                    break
                continue
            if hashlib.blake2b(data[DIGEST:], digest_size=DIGEST).digest() == data[:DIGEST]:
                seen[data[DIGEST:HEAD]] += 1
            else:
                broken += 1
    return f"{len(seen)} {broken} {seen.total() - len(seen)}"


def main(part: str, address: str, port: str, count: str) -> str:
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    match part:
        case "send-stream":
            return send_stream(address, int(port), int(count), lambda: bool(stops))
        case "receive-stream":
            return receive_stream(address, int(port))
        case "send-datagrams":
            return send_datagrams(address, int(port), int(count))
        case "receive-datagrams":
            return receive_datagrams(address, int(port), lambda: bool(stops))
    raise ValueError(part)


# The test's side


def _end(namespace: Namespace, part: str, address: str, port: int, count: int = 0) -> subprocess.Popen[bytes]:
    command: list[str | Path] = ["env", "--chdir", REPOSITORY, sys.executable, "-m", "tests.netns.transfer"]
    return namespace.popen(
        [*command, part, address, str(port), str(count)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


class Stream:
    """A TCP transfer under way; made by `stream`."""

    def __init__(self, sender: subprocess.Popen[bytes], receiver: subprocess.Popen[bytes]) -> None:
        self._sender = sender
        self._receiver = receiver

    def wait_more(self, chunks: int = 1) -> None:
        """Wait until so many further CHUNKs arrived."""
        assert self._receiver.stdout is not None
        for _ in range(chunks):
            said = self._receiver.stdout.readline()
            assert said == b"more\n", f"the stream ended: {said!r} {self._sender.poll()}"

    def finish(self, timeout: float = 60) -> int:
        """Wait for the end, bring it about if the stream has none; hold content against content; return the bytes."""
        self._sender.terminate()
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end; hold what arrived against what was sent; return the bytes."""
        sent, _ = self._sender.communicate(timeout=patient(timeout))
        arrived, _ = self._receiver.communicate(timeout=patient(timeout))
        assert arrived.decode().replace("more\n", "") == sent.decode()
        return int(sent.split()[0])


@contextmanager
def stream(source: Station, target: Station, size: int = 0, port: int = 7000) -> Iterator[Stream]:
    """Send `size` bytes over TCP while the block runs; 0 is without end."""
    receiver = _end(target.namespace, "receive-stream", str(target.address), port)
    processes = [receiver]
    try:
        _wait_listening(receiver)
        processes.append(_end(source.namespace, "send-stream", str(target.address), port, size))
        yield Stream(processes[1], receiver)
    finally:
        _kill(processes)


def transfer(source: Station, target: Station, size: int, port: int = 7000) -> None:
    """Send `size` bytes over TCP; all arrive as they were sent."""
    with stream(source, target, size, port) as one:
        assert one.wait() == size


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What became of datagrams: how many came whole, changed, and more than once."""

    whole: int
    broken: int
    repeated: int


def datagrams(source: Station, target: Station, count: int, port: int = 7100) -> Arrivals:
    """Send datagrams and tell what became of them."""
    receiver = _end(target.namespace, "receive-datagrams", str(target.address), port)
    processes = [receiver]
    try:
        _wait_listening(receiver)
        processes.append(_end(source.namespace, "send-datagrams", str(target.address), port, count))
        said, _ = processes[1].communicate(timeout=patient(60))
        assert said.decode() == f"{count}\n"
        receiver.terminate()
        said, _ = receiver.communicate(timeout=patient(20))
    finally:
        _kill(processes)
    return Arrivals(*map(int, said.split()))


def _wait_listening(receiver: subprocess.Popen[bytes]) -> None:
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == b"listening\n"


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
