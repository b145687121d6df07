"""Measurements between two stations of the lab: ping, a ping that runs on while something happens, iperf3.

A station is a host (its address: underlay) or a container (its address: overlay). Parsing is pure and apart from
running.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import IO, Protocol

from tests.lab.namespace import LabError, Namespace
from tests.patience import patient, within

SUMMARY = re.compile(r"(\d+) packets transmitted, (\d+) received")
ROUND_TRIP = re.compile(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/")
ON_ITS_WAY = 0.1
"""Seconds that a packet may take there and back."""
REPLY = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) ttl=", re.MULTILINE)
TRIP = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=\d+ ttl=\d+ time=([\d.]+) ms", re.MULTILINE)


class Station(Protocol):
    """Where a measurement starts or ends."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> Namespace: ...
    @property
    def address(self) -> IPv4Address | IPv6Address: ...


@dataclass(frozen=True, slots=True)
class Ping:
    """The outcome of a ping; `average_ms` is the mean round trip in milliseconds, None if nothing came back."""

    sent: int
    received: int
    average_ms: float | None

    @property
    def loss(self) -> float:
        """The lost part, 0.0 to 1.0."""
        return 1 - self.received / self.sent if self.sent else 1.0


@dataclass(frozen=True, slots=True)
class Passage:
    """How a continuous ping fared; `longest_gap` in seconds between two replies, or the last reply and the stop."""

    sent: int
    received: int
    longest_gap: float


def ping(
    source: Station,
    target: Station,
    *,
    count: int = 5,
    interval: float = 0.04,
    payload: int = 56,
    patience: float = 1,
    fragment: bool = False,
) -> Ping:
    """Ping with fragmentation forbidden, unless `fragment`.

    `interval` and `patience` (how long the last reply is waited for, a deadline) in seconds, `payload` in bytes: the
    packet is 28 longer (IPv6: 48). Raises LabError if ping itself does not work.
    """
    options = ["-n", "-q", "-c", str(count), "-i", str(interval), "-W", str(patient(patience)), "-s", str(payload)]
    options += ["-M", "dont" if fragment else "do"]
    done = source.namespace.run(["ping", *options, str(target.address)], check=False, timeout=count * interval + 15)
    try:
        return parse_ping(done.stdout)
    except ValueError as error:
        raise LabError(f"ping from {source.name} to {target.name}: {done.stderr.strip() or error}") from error


def parse_ping(text: str) -> Ping:
    """Read the summary of iputils' ping. Raises ValueError if there is none."""
    summary = SUMMARY.search(text)
    if summary is None:
        raise ValueError(f"no summary in ping's output: {text!r}")
    average = ROUND_TRIP.search(text)
    return Ping(int(summary[1]), int(summary[2]), float(average[1]) if average else None)


class PingStream:
    """A ping that runs until `stop`; made by `ping_through`."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self._process = process
        self._output = output

    def wait_replies(self, more: int = 1, timeout: float = 10) -> None:
        """Wait until `more` further replies came. Raises LabError after `timeout` seconds."""
        wanted, deadline = len(REPLY.findall(self._text())) + more, within(timeout)
        while len(REPLY.findall(self._text())) < wanted:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise LabError(f"ping got no {more} replies within {patient(timeout):g} s: {self._text()[-500:]}")
            time.sleep(0.01)

    def round_trips(self) -> list[tuple[float, float]]:
        """The replies until now: when each came, in wall clock seconds, and how long it took in milliseconds."""
        return parse_round_trips(self._text())

    def stop(self) -> Passage:
        """End the ping and tell how it fared."""
        stopped = time.time()
        self._process.send_signal(signal.SIGINT)
        self._process.wait(patient(10))
        return parse_passage(self._text(), stopped)

    def _text(self) -> str:
        # ping writes at the same open file's offset, so neither seek nor read: either would have it overwrite a reply.
        descriptor = self._output.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


@contextmanager
def ping_through(source: Station, target: Station, interval: float = 0.01) -> Iterator[PingStream]:
    """Ping all the time while the block runs; it calls `stop` for the outcome. `interval` in seconds."""
    # A file and not a pipe: a pipe that nobody reads fills up and stops the ping.
    with tempfile.TemporaryFile() as output:
        argv = ["stdbuf", "-oL", "ping", "-n", "-D", "-i", str(interval), str(target.address)]
        process = source.namespace.popen(argv, stdout=output, stderr=output)
        try:
            yield PingStream(process, output)
        finally:
            process.kill()
            process.wait()


def parse_passage(text: str, stopped: float) -> Passage:
    """Read the output of `ping -D`; `stopped` is the wall clock time of the stop in seconds.

    What was sent after the last reply, less than ON_ITS_WAY before the stop, is not counted: on a busy machine ping
    catches up with several packets at once, and is stopped before it has read their replies.
    """
    replies = [(float(at), int(sequence)) for at, sequence in REPLY.findall(text)]
    sent = parse_ping(text).sent
    if not replies:
        return Passage(sent, 0, float("inf"))
    times = [at for at, _ in replies]
    gaps = [later - earlier for earlier, later in zip(times, [*times[1:], stopped], strict=True)]
    last_at, last = replies[-1]
    return Passage(
        last if stopped - last_at < ON_ITS_WAY else sent, len({sequence for _, sequence in replies}), max(0.0, *gaps)
    )


def parse_round_trips(text: str) -> list[tuple[float, float]]:
    """Read the output of `ping -D`: of each reply the wall clock time in seconds and the milliseconds it took."""
    return [(float(at), float(took)) for at, took in TRIP.findall(text)]


def throughput(
    source: Station,
    target: Station,
    seconds: int = 1,
    *,
    streams: int = 1,
    port: int = 5201,
    congestion: str | None = None,
) -> float:
    """Send TCP streams through one iperf3 for `seconds` (1 or more: iperf3 takes 0 for endless).

    `congestion` names the kernel's congestion control, None the machine's default. Returns what arrived of all
    together, in Gbit/s. Raises LabError.
    """
    listen = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", str(target.address), "--port", str(port)]
    server = target.namespace.popen(listen, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait_listening(server, target.name)
        send = ["iperf3", "--client", str(target.address), "--port", str(port), "--time", str(seconds), "--json"]
        send += ["--parallel", str(streams), "--connect-timeout", f"{patient(3000):.0f}"]
        send += ["--congestion", congestion] if congestion else []
        done = source.namespace.run(send, check=False, timeout=seconds + 15)
    finally:
        server.kill()
        server.communicate()
    try:
        return parse_iperf(done.stdout)
    except ValueError as error:
        raise LabError(f"iperf3 from {source.name} to {target.name}: {error}") from error


def _wait_listening(server: subprocess.Popen[bytes], name: str, timeout: float = 5) -> None:
    assert server.stdout is not None
    said, deadline = b"", within(timeout)
    while b"Server listening" not in said:
        readable, _, _ = select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = server.stdout.read(4096) if readable else b""
        if not chunk:
            raise LabError(f"iperf3 on {name} does not listen: {said.decode().strip()}")
        said += chunk


def parse_iperf(text: str) -> float:
    """Read `iperf3 --json`; return Gbit/s as counted by the receiver. Raises ValueError with iperf3's own words."""
    result = json.loads(text)
    if "error" in result:
        raise ValueError(result["error"])
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9
