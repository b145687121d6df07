"""The agent's hold on the data-plane process (encap/datapath/__main__.py): started, fed, watched, taken over, stopped.

    run:   connect to the living process, else start one  -> Configure -> the whole table -> changes as they come
             ^                                                                                    |
             +---- backoff ---- the socket ends: it died, at once; hangs: killed in time ---------+

The process outlives the agent. A new agent finds it, sends the whole table, and no packet is lost: what is in both
tables is not touched. What a process cannot change while it runs (encap/datapath/control/protocol.py) takes a new
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Never

from flanneld_py.agent.backoff import Backoff
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.contested import Undone
from flanneld_py.agent.datapath.client import PATIENCE, DatapathClient, DatapathError, Lost, connect
from flanneld_py.agent.datapath.offloads import Offloads
from flanneld_py.agent.datapath.peerfeed import PeerFeed
from flanneld_py.agent.log import facts, log
from flanneld_py.encap.datapath.control import messages, protocol

PROBE_EVERY = 5.0
"""Seconds between questions for its status."""


@dataclass(frozen=True, slots=True)
class Report:
    """The process as it is now, and its peers' counters."""

    status: messages.Status
    traffic: tuple[messages.PeerTraffic, ...]


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
        wanted: messages.Configure,
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
        self._undone = Undone()
        self._feed = PeerFeed()
        self._refill = False
        self._reconfigure = False
        self._wake = asyncio.Event()
        self._inquiries: list[asyncio.Future[Report | None]] = []
        self._offloads = Offloads()
        self.trouble = ""
        self.fed = asyncio.Event()
        self.status: messages.Status | None = None

    def update(self, changes: Iterable[tuple[str, messages.Peer | None]]) -> None:
        """Take in peers that are new, changed, or gone (None)."""
        self._feed.update(changes)
        self._wake.set()

    def hold(self) -> int:
        """Keep the peers that the process has, also those that only it knows; return how many we know."""
        return self._feed.hold()

    def release(self) -> None:
        """End `hold`: what is no peer goes."""
        self._feed.release()
        self._refill = True
        self._wake.set()

    def configure(self, wanted: messages.Configure) -> None:
        """Take in another configuration."""
        self._wanted = wanted
        self._reconfigure = True
        self._wake.set()

    async def report(self) -> Report | None:
        """Ask the process how it is and what its peers sent and got; None if it is not served, or does not say.

        It is `run` that asks, so whoever waits here may go away: answers stay in step with questions.
        """
        if not self.fed.is_set():
            return None
        inquiry: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        self._inquiries.append(inquiry)
        self._wake.set()
        try:
            async with asyncio.timeout(self._patience):
                return await inquiry
        except TimeoutError:
            return None

    async def run(self) -> Never:
        """Keep it running for ever."""
        line: DatapathClient | None = None
        while True:
            try:
                line = line or await self._reach()
            except (OSError, DatapathError) as error:
                await self._wait(f"{error}")
                continue
            reason = "it ended"
            with closing(line):
                try:
                    async with asyncio.TaskGroup() as tasks:
                        answers: asyncio.Queue[messages.Message] = asyncio.Queue()
                        tasks.create_task(_listen(line, answers))
                        tasks.create_task(self._serve(line, answers))
                except* (Lost, DatapathError) as ended:
                    reason = "; ".join(str(error) for error in ended.exceptions)
            served = self.fed.is_set()
            self.fed.clear()
            self._answer(None)
            line = await self._again() if served else None
            if line is None:
                await self._wait(reason)

    async def _again(self) -> DatapathClient | None:
        """Connect at once to a process that lives on without its device, unless that is deleted all the time."""
        if self._undone.again(self._clock.now()):
            return None
        try:
            line = await connect(self._control, self._patience)
        except OSError:
            return None
        log.info("the data plane has lost its device, which is made again", **facts(device=self._wanted.device))
        return line

    async def _wait(self, reason: str) -> None:
        if reason != self.trouble:
            self.trouble = reason
            log.warning(
                "the data-plane process is not served, trying again", **facts(device=self._wanted.device, reason=reason)
            )
        await self._clock.sleep(self._backoff.next())

    async def _reach(self) -> DatapathClient:
        """Connect to the process, a new one if there is none. Raises OSError, DatapathError."""
        try:
            line = await connect(self._control, self._patience)
        except (FileNotFoundError, ConnectionRefusedError):
            await self._start(self._control)
            line = await connect(self._control, self._patience)
            log.info("data-plane process started", **facts(device=self._wanted.device, pid=line.pid))
            return line
        if not self.trouble:  # Else it is one that refuses, met at every try.
            log.info("data-plane process found running", **facts(device=self._wanted.device, pid=line.pid))
        return line

    async def _serve(self, line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> Never:
        """Feed one process. Raises Lost, DatapathError."""
        await self._configure(line, answers)
        await self._feed_all(line, answers)
        self.trouble = ""
        self.fed.set()
        while True:
            if self._reconfigure:
                await self._configure(line, answers)
            if self._refill:
                await self._feed_all(line, answers)
            await self._feed_changes(line)
            answer = await self._ask(line, answers, messages.AskStatus())
            if isinstance(answer, messages.Status):
                self.status = answer
                self._offloads.note(answer)
            await self._watch(line, answers)
            self._backoff.reset()  # Not before: one that dies of its first packet is not to be started all the time.

    async def _watch(self, line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> None:
        """Feed changes and answer inquiries until it is time to ask again how it is."""
        until = self._clock.now() + self._probe_every
        while self._clock.now() < until and not self._reconfigure and not self._refill:
            await self._clock.wait(self._wake, until)
            self._wake.clear()
            await self._feed_changes(line)
            if self._inquiries:
                self._answer(await self._inquire(line, answers))

    async def _inquire(self, line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> Report | None:
        status = await self._ask(line, answers, messages.AskStatus())
        rows: dict[str, messages.PeerTraffic] = {}
        first, more = 0, isinstance(status, messages.Status) and status.configured
        while more:
            page = await self._ask(line, answers, messages.AskTraffic(first))
            if not isinstance(page, messages.Traffic):
                break
            rows.update((row.key, row) for row in page.peers)
            first, more = page.following, page.following > first
        return Report(status, tuple(rows.values())) if isinstance(status, messages.Status) else None

    def _answer(self, report: Report | None) -> None:
        inquiries, self._inquiries = self._inquiries, []
        for inquiry in inquiries:
            if not inquiry.done():
                inquiry.set_result(report)

    async def _configure(self, line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> None:
        self._reconfigure = False
        match await self._ask(line, answers, self._wanted):
            case messages.Done():
                await self._prepared()
            case messages.Refused(reason, restart=True):
                log.info("the data-plane process is replaced", **facts(device=self._wanted.device, reason=reason))
                await self._ask(line, answers, messages.Stop())
            case messages.Refused(reason):
                raise DatapathError(reason)
            case other:
                raise Lost(f"it answered {type(other).__name__} to its configuration")

    async def _feed_all(self, line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> None:
        self._refill = False
        if self._feed.complete:
            await line.send(protocol.encode(messages.Begin()))
        await self._put(line, self._feed.all())
        await self._ask(line, answers, messages.End())

    async def _feed_changes(self, line: DatapathClient) -> None:
        gone, changed = self._feed.changes()
        await self._put(line, changed)  # First: a peer may be back under another key, when IPv6 was turned on.
        for key in gone:
            await line.send(protocol.encode(messages.Remove(key)))

    async def _put(self, line: DatapathClient, peers: list[messages.Peer]) -> None:
        for message in protocol.encode_peers(peers):
            await line.send(message)
            await self._clock.sleep(0)

    async def _ask(
        self, line: DatapathClient, answers: asyncio.Queue[messages.Message], request: messages.Request
    ) -> messages.Message:
        """Send a request and return its answer. Raises Lost; a process that is silent is ended first."""
        async with line.in_time():
            await line.send(protocol.encode(request))
            return await answers.get()


async def _listen(line: DatapathClient, answers: asyncio.Queue[messages.Message]) -> Never:
    """Pass on what the process says. Raises Lost: also the news of its death."""
    while True:
        answers.put_nowait(await line.receive())
