"""How many small packets a second get through, from the kernel's own count of UDP datagrams at both ends.

    ladder:    offer 40 000, then half as many again, … until a rung is not delivered any more -> best
    overload:  offer twice the best -> what is delivered then

Offered is what the source's kernel has sent, not what the generator was asked for. Delivered is what came to the
sink's socket. Both are counted over a window in which the generator runs all the time, so that queues neither fill
nor drain in it.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.measure import Station
from tests.lab.namespace import LabError

GENERATOR = Path(__file__).with_name("generator.py")
LADDER = tuple(40_000 * 1.5**rung for rung in range(8))
"""Packets a second; the last, 683 000, is more than the generator can."""
DELIVERED = 0.75
"""The part of a rung that has to arrive for the next to be tried."""
OVERLOAD = 2.0
RAMP, WINDOW = 0.15, 0.4
"""Seconds: until the generator runs and queues are as full as they get, and the counting."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets a second."""

    offered: float
    delivered: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """`best` is the most that was delivered, in packets a second, at whatever rate; `overload` about twice that."""

    best: float
    overload: Flow


@dataclass(frozen=True, slots=True)
class Datagrams:
    """A namespace's UDP counters. `arrived` counts those that came to a socket, read or not."""

    sent: int
    arrived: int


def climb(offer: Callable[[float], Flow]) -> Capacity:
    """Find the capacity with a function that offers packets at a rate and tells what came of it. Pure."""
    best = 0.0
    for rate in LADDER:
        delivered = offer(rate).delivered
        best = max(best, delivered)
        if delivered < DELIVERED * rate:
            break
    return Capacity(best, offer(OVERLOAD * best))


def parse_datagrams(text: str) -> Datagrams:
    """Read /proc/net/snmp. Raises ValueError if it has no UDP counters."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("Udp:")]
    if len(lines) != 2:
        raise ValueError(f"no UDP counters in {text!r}")
    counters = dict(zip(lines[0], map(int, lines[1]), strict=True))
    return Datagrams(counters["OutDatagrams"], counters["InDatagrams"] + counters["RcvbufErrors"])


def capacity(source: Station, target: Station) -> Capacity:
    """Measure the capacity of the way between two stations. Raises LabError."""
    with _sink(target) as (sink, port):
        return climb(lambda rate: _offer(source, target, sink, port, rate))


@contextmanager
def _sink(target: Station) -> Iterator[tuple[int, int]]:
    """Hold a socket at the target; give the pid of its process, and its port."""
    process = target.namespace.popen([*_command("sink"), str(target.address)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 5)
        port = process.stdout.readline() if readable else b""
        if not port:
            raise LabError(f"no UDP socket on {target.name}: {GENERATOR.name} says nothing")
        yield process.pid, int(port)
    finally:
        process.kill()
        process.communicate()


def _offer(source: Station, target: Station, sink: int, port: int, rate: float) -> Flow:
    command = [*_command("send"), str(target.address), str(port), str(rate)]
    with source.namespace.popen(command, stderr=subprocess.PIPE) as generator:
        try:
            time.sleep(RAMP)
            sent, arrived, began = *_count(generator.pid, sink), time.perf_counter()
            time.sleep(WINDOW)
            sent_then, arrived_then, ended = *_count(generator.pid, sink), time.perf_counter()
        except OSError as error:
            generator.kill()
            said = generator.communicate()[1].decode().strip() or "a process ended"
            raise LabError(f"UDP from {source.name} to {target.name}: {said}") from error
        finally:
            generator.kill()
    return Flow((sent_then - sent) / (ended - began), (arrived_then - arrived) / (ended - began))


def _command(what: str) -> list[str | Path]:
    return [sys.executable, "-I", "-S", GENERATOR, what]


def _count(generator: int, sink: int) -> tuple[int, int]:
    """Datagrams sent and arrived until now, where these processes live. Raises OSError if one has ended."""
    sent, arrived = (parse_datagrams(Path(f"/proc/{pid}/net/snmp").read_text()) for pid in (generator, sink))
    return sent.sent, arrived.arrived
