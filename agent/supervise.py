"""The agent's hold on the data-plane process (encap/datapath.py): started, fed, watched, taken over, stopped.

    run:   connect to the living process, else start one  -> Configure -> the whole table -> changes as they come
             ^                                                                                    |
             +---- backoff ---- the socket ends: it died, at once; no answer in time: killed -----+

The process outlives the agent. A new agent finds it, sends the whole table, and no packet is lost: what is in both
tables is not touched. What a process cannot change while it runs (encap/feed.py) takes a new process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.encap import feed, orders

PATIENCE = 10.0
"""Seconds within which a living process answers: it serves its control socket in every turn of its loop."""

PROBE_EVERY = 5.0
"""Seconds between questions for its status."""


class DatapathError(Exception):
    """The process cannot be started, or refuses its configuration; the text is for the operator."""


class Lost(Exception):
    """The connection to the process has ended; the text says how."""


async def start_process(control: Path) -> None:
    """Start the process; return when it listens on the control socket, detached from us. Raises DatapathError."""
    # -P: what happens to lie in the working directory is not imported.
    command = (sys.executable, "-P", "-m", "flanneld_py.encap.datapath", "--control", str(control))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if process.returncode != 0:
        reason = said.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise DatapathError(f"the data-plane process does not start: {reason}")


async def stop_process(control: Path) -> bool:
    """End the process for good, and with it its device; return whether there was one.

    Call it when no Supervisor runs: that one would start it again. Raises DatapathError if it does not end.
    """
    try:
        line = await _connect(control)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    with closing(line):
        try:
            async with asyncio.timeout(PATIENCE):
                await line.send(feed.encode(orders.Stop()))
                while True:
                    await line.receive()
        except Lost:
            return True
        except TimeoutError as error:
            raise DatapathError(
                f"the data-plane process {line.pid} at {control} does not end: see its state in /proc/{line.pid}/stack"
            ) from error


class Line:
    """A connection to the process."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]

    async def send(self, data: bytes) -> None:
        """Send one message. Raises Lost."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as error:
            raise Lost(f"sending failed: {error.strerror}") from error

    async def receive(self) -> orders.Message:
        """Receive one message. Raises Lost at the end, or if it is none."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, feed.MAX_MESSAGE + 1)
        except OSError as error:
            raise Lost(f"receiving failed: {error.strerror}") from error
        if not data:
            raise Lost("it ended")
        try:
            return feed.decode(data)
        except feed.Malformed as error:
            raise Lost(f"it speaks another language: {error}") from error

    def kill(self) -> None:
        """End a process that does not answer; its device goes with it."""
        if self.pid > 0:  # 0: it lives in a pid namespace that we cannot see
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Hang up: the process goes on."""
        self._socket.close()


async def _connect(control: Path) -> Line:
    """Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, str(control))
        return Line(connection)
    except BaseException:
        connection.close()
        raise


class Supervisor:
    """Keep one data-plane process running and told what it needs to know.

    `start` makes a process that listens on `control`, as `start_process` does. `prepared` is awaited each time a
    process has its device, before peers are fed: there the agent sets address, routes and state.
    `patience` and `probe_every` in seconds.
    `fed` is set while the process has the whole table; `status` is the last that it told; `trouble` says why it is not
    served, "" if it is.
    """

    def __init__(
        self,
        control: Path,
        start: Callable[[Path], Awaitable[None]],
        prepared: Callable[[], Awaitable[None]],
        wanted: orders.Configure,
        clock: Clock,
        rng: Random,
        *,
        patience: float = PATIENCE,
        probe_every: float = PROBE_EVERY,
    ) -> None:
        self._control = control
        self._start = start
        self._prepared = prepared
        self._wanted = wanted
        self._clock = clock
        self._patience = patience
        self._probe_every = probe_every
        self._backoff = Backoff(0.05, 5.0, rng)
        self._peers: dict[str, orders.Peer] = {}
        self._changed: dict[str, None] = {}
        self._reconfigure = False
        self._wake = asyncio.Event()
        self.trouble = ""
        self.fed = asyncio.Event()
        self.status: orders.Status | None = None

    def update(self, changes: Iterable[tuple[str, orders.Peer | None]]) -> None:
        """Take in peers that are new, changed, or gone (None)."""
        for key, peer in changes:
            if peer is None:
                self._peers.pop(key, None)
            else:
                self._peers[key] = peer
            self._changed[key] = None
        self._wake.set()

    def configure(self, wanted: orders.Configure) -> None:
        """Take in another configuration."""
        self._wanted = wanted
        self._reconfigure = True
        self._wake.set()

    async def run(self) -> Never:
        """Keep it running for ever."""
        while True:
            try:
                line = await self._reach()
            except (OSError, DatapathError) as error:
                await self._wait(f"{error}")
                continue
            reason = "it ended"
            with closing(line):
                try:
                    async with asyncio.TaskGroup() as tasks:
                        answers: asyncio.Queue[orders.Message] = asyncio.Queue()
                        tasks.create_task(_listen(line, answers))
                        tasks.create_task(self._serve(line, answers))
                except* (Lost, DatapathError) as ended:
                    reason = "; ".join(str(error) for error in ended.exceptions)
            self.fed.clear()
            await self._wait(reason)

    async def _wait(self, reason: str) -> None:
        if reason != self.trouble:
            self.trouble = reason
            log.warning("the data-plane process is not served, trying again", **facts(reason=reason))
        await self._clock.sleep(self._backoff.next())

    async def _reach(self) -> Line:
        """Connect to the process, a new one if there is none. Raises OSError, DatapathError."""
        try:
            line = await _connect(self._control)
        except (FileNotFoundError, ConnectionRefusedError):
            await self._start(self._control)
            line = await _connect(self._control)
            log.info("data-plane process started", **facts(pid=line.pid))
            return line
        log.info("data-plane process found running", **facts(pid=line.pid))
        return line

    async def _serve(self, line: Line, answers: asyncio.Queue[orders.Message]) -> Never:
        """Feed one process. Raises Lost, DatapathError."""
        await self._configure(line, answers)
        await self._feed_all(line, answers)
        self._backoff.reset()
        self.trouble = ""
        self.fed.set()
        while True:
            if self._reconfigure:
                await self._configure(line, answers)
            await self._feed_changes(line)
            answer = await self._ask(line, answers, orders.AskStatus())
            if isinstance(answer, orders.Status):
                self.status = answer
            await self._watch(line)

    async def _watch(self, line: Line) -> None:
        """Feed changes until it is time to ask again how it is."""
        until = self._clock.now() + self._probe_every
        while self._clock.now() < until and not self._reconfigure:
            await self._clock.wait(self._wake, until)
            self._wake.clear()
            await self._feed_changes(line)

    async def _configure(self, line: Line, answers: asyncio.Queue[orders.Message]) -> None:
        self._reconfigure = False
        match await self._ask(line, answers, self._wanted):
            case orders.Done():
                await self._prepared()
            case orders.Refused(reason, restart=True):
                log.info("the data-plane process is replaced", **facts(pid=line.pid, reason=reason))
                await self._ask(line, answers, orders.Stop())
            case orders.Refused(reason):
                raise DatapathError(reason)
            case other:
                raise Lost(f"it answered {type(other).__name__} to its configuration")

    async def _feed_all(self, line: Line, answers: asyncio.Queue[orders.Message]) -> None:
        self._changed.clear()
        await line.send(feed.encode(orders.Begin()))
        for message in feed.encode_peers(list(self._peers.values())):
            await line.send(message)
            await self._clock.sleep(0)
        await self._ask(line, answers, orders.End())

    async def _feed_changes(self, line: Line) -> None:
        changed, self._changed = self._changed, {}
        for key in changed:
            if key not in self._peers:
                await line.send(feed.encode(orders.Remove(key)))
        present = [self._peers[key] for key in changed if key in self._peers]
        for message in feed.encode_peers(present):
            await line.send(message)
            await self._clock.sleep(0)

    async def _ask(self, line: Line, answers: asyncio.Queue[orders.Message], request: orders.Request) -> orders.Message:
        """Send a request and return its answer. Raises Lost; a process that is silent is ended first."""
        try:
            async with asyncio.timeout(self._patience):
                await line.send(feed.encode(request))
                return await answers.get()
        except TimeoutError as error:
            line.kill()
            raise Lost(f"process {line.pid} gave no answer within {self._patience:g} s and was killed") from error


async def _listen(line: Line, answers: asyncio.Queue[orders.Message]) -> Never:
    """Pass on what the process says. Raises Lost: also the news of its death."""
    while True:
        answers.put_nowait(await line.receive())
