"""Several processes that move packets, where one core is not enough; the process that makes them only passes orders on.

    agent == control socket ==> __main__.py == a socket pair each ==> worker: lanes, peer table, relays
                                     CommandHandler -> WorkerPool                        CommandHandler -> Worker

Device and sockets are opened once, and each worker process gets its lanes of them. Every one has the whole table. If
one
dies, all end, and the agent has them made anew. All end with the process that made them, too.
"""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Never, TypeVar

from flanneld_py.encap.datapath.commands import CommandHandler
from flanneld_py.encap.datapath.control import messages, protocol
from flanneld_py.encap.datapath.loop import Loop
from flanneld_py.encap.datapath.relay import DeviceGone
from flanneld_py.encap.datapath.worker import Lane, Watched, Worker

PATIENCE = 5.0
"""Seconds within which a worker answers; the agent's own patience is longer."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Answer = TypeVar("Answer", bound=messages.Answer)


class WorkerLost(Exception):
    """A worker died, or does not answer."""


class WorkerPool:
    """The worker processes, as one forwarder. Forks: it takes a process without threads. `now` tells seconds that go
    forward."""

    def __init__(
        self, wanted: messages.Configure, lanes: Sequence[Lane], number: int, now: Callable[[], float]
    ) -> None:
        self._keys: dict[str, None] = {}
        self._processes: list[socket.socket] = []
        self._pids: list[int] = []
        maker = os.getpid()
        for index in range(number):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                _run_worker(theirs, wanted, lanes[index::number], now, maker)
            self._pids.append(pid)
            theirs.close()
            ours.settimeout(PATIENCE)
            self._processes.append(ours)
        for tun, wire in lanes:
            tun.close()
            wire.close()

    def watched(self) -> Watched:
        """Return what to wait for, and whom to call then: a worker says nothing unasked, so it is its end."""
        for worker in self._processes:
            yield worker.fileno(), self._worker_died

    def close(self) -> None:
        """End the workers, also one that hangs: until then device and port are not free."""
        for worker in self._processes:
            worker.close()
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)

    def __len__(self) -> int:
        return len(self._keys)

    def configure(self, wanted: messages.Configure) -> None:
        """Take in a configuration with the same fixed part."""
        self._ask(wanted, messages.Done)

    def keys(self) -> set[str]:
        """Return the keys of all peers."""
        return set(self._keys)

    def put(self, peers: Iterable[messages.Peer]) -> None:
        """Add peers, or change them."""
        known = list(peers)
        self._keys.update(dict.fromkeys(peer.key for peer in known))
        for message in protocol.encode_peers(known):
            self._tell(message)

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        if key in self._keys:
            del self._keys[key]
            self._tell(protocol.encode(messages.Remove(key)))

    def status(self) -> messages.Status:
        """Return the state and the totals of all together."""
        statuses = self._ask(messages.AskStatus(), messages.Status)
        counters: Counter[str] = Counter()
        for status in statuses:
            counters.update(status.counters)
        return replace(
            statuses[0],
            pid=os.getpid(),
            segmentation=all(status.segmentation for status in statuses),
            workers=len(self._processes),
            counters=dict(counters),
        )

    def traffic(self, first: int, most: int) -> messages.Traffic:
        """Return the counters of up to `most` peers from a position on; all workers list them in one order."""
        pages = self._ask(messages.AskTraffic(first), messages.Traffic)
        rows = tuple(
            messages.PeerTraffic(
                same[0].key,
                sum(row.sent for row in same),
                sum(row.sent_bytes for row in same),
                sum(row.received for row in same),
                sum(row.received_bytes for row in same),
            )
            for same in zip(*(page.peers[:most] for page in pages), strict=True)
        )
        return messages.Traffic(pages[0].following, rows)

    def _tell(self, message: bytes) -> None:
        for worker in self._processes:
            try:
                worker.send(message)
            except OSError as error:
                raise WorkerLost(f"a data-plane worker does not take orders: {error}") from error

    def _ask(self, request: messages.Request, kind: type[Answer]) -> list[Answer]:
        self._tell(protocol.encode(request))
        answers: list[Answer] = []
        for worker in self._processes:
            try:
                answer = protocol.decode(worker.recv(protocol.MAX_MESSAGE + 1))
            except (OSError, protocol.Malformed) as error:
                raise WorkerLost(f"a data-plane worker does not answer: {error}") from error
            if not isinstance(answer, kind):
                raise WorkerLost(f"a data-plane worker answered {type(answer).__name__}, not {kind.__name__}")
            answers.append(answer)
        return answers

    def _worker_died(self) -> Never:
        raise WorkerLost("a data-plane worker died")


def _run_worker(
    orders_from: socket.socket, wanted: messages.Configure, lanes: Sequence[Lane], now: Callable[[], float], maker: int
) -> Never:
    """Be a worker process until the one that made it ends. Whatever happens ends this process: its stack is the
    maker's."""
    code = 1
    try:
        _die_with(maker)
        _work(orders_from, wanted, lanes, now)
        code = 0
    except DeviceGone:
        pass
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def _die_with(maker: int) -> None:
    """Have the kernel end us when the maker ends, also if we hang: else device and port would stay ours."""
    import ctypes  # 1 MB, and only workers need it.

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != maker:
        os._exit(1)


def _work(
    orders_from: socket.socket, wanted: messages.Configure, lanes: Sequence[Lane], now: Callable[[], float]
) -> None:
    """Move packets and take orders. Raises DeviceGone."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(wanted, lanes, now)
    watched = dict(worker.watched())
    keep = {0, 1, 2, orders_from.fileno(), *watched, *(wire.sender_fileno() for _, wire in lanes)}
    # Others' lanes, the control socket, the agent's connection: while we held them their end would not be seen.
    for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if fd not in keep:
            with suppress(OSError):  # the folder's own is closed by now
                os.close(fd)
    loop = Loop()
    handler = CommandHandler(lambda _: worker)
    handler.obey(wanted)

    def obey() -> None:
        if not handler.take(orders_from):
            loop.stop()

    loop.watch(orders_from.fileno(), obey)
    if worker.fastpath is not None:
        loop.wait_by(worker.fastpath)
    for fd, serve in watched.items():
        loop.watch(fd, serve)
    loop.run()
