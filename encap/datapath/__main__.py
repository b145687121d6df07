"""The data-plane process: `python -m flanneld_py.encap.datapath --control <socket>`.

It moves packets (worker.py) and takes orders (commands.py). It sets no address, route or firewall rule, and knows no
etcd.

1. It listens on the control socket, says on stdout why if it cannot, and goes into the background: its own session,
   no child of the agent's, so that the agent's end is not its own.
2. A Configure opens the TUN device and the UDP sockets; with several workers it makes a pool of processes (pool.py).
3. One loop waits for TUN, wire, control and signals. In a turn each gets a bounded share, so none waits for another's
   rush, and nothing in it blocks: what cannot be written now is a counted drop.
4. It ends on Stop and on SIGTERM. An agent that goes away changes nothing; the next one connects, and replaces an older
   connection. When the device is deleted under it, or a worker dies, the agent's connection ends, and the agent comes
   back and configures it again, which is quicker than to start another. Without an agent it ends.
5. Now and then it looks whether it can be found, and makes its control socket again if somebody removed it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flanneld_py.encap.datapath.commands import CommandHandler
from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.control.server_socket import ControlSocket, ControlSocketError
from flanneld_py.encap.datapath.loop import Loop
from flanneld_py.encap.datapath.pool import WorkerLost, WorkerPool
from flanneld_py.encap.datapath.relay import DeviceGone
from flanneld_py.encap.datapath.worker import Worker, open_lanes

LOOK_EVERY = 1.0
"""Seconds between looks at the control socket's file."""

UNUSED = 30.0
"""Seconds without device and sockets after which it ends: an agent comes back within 5."""


class Datapath:
    """The process's parts put together. From `interrupts` the numbers of signals are read."""

    def __init__(self, control_socket: ControlSocket, interrupts: socket.socket, now: Callable[[], float]) -> None:
        self._control_socket = control_socket
        self._interrupts = interrupts
        self._now = now
        self._agent: socket.socket | None = None
        self._forwarder: Worker | WorkerPool | None = None
        self._begin()

    def _begin(self) -> None:
        self._loop = Loop()
        self._loop.watch(self._control_socket.fileno(), self._admit)
        self._loop.watch(self._interrupts.fileno(), self._heed)
        self._handler = CommandHandler(self._make)
        self._unused_since = self._now()

    def run(self) -> None:
        """Move packets until told to end."""
        while True:
            try:
                self._loop.run()
                return
            except (DeviceGone, WorkerLost) as error:
                sys.stderr.write(f"{error}\n")
                if self._agent is None:  # Nobody would configure it again.
                    return
                self.close()
                self._begin()

    def close(self) -> None:
        """Close everything, the control connection last: its end tells the agent that the device is gone."""
        if self._forwarder is not None:
            self._forwarder.close()
            self._forwarder = None
        self._dismiss()
        self._loop.close()

    def _heed(self) -> None:
        """Take in the signals: the timer's asks for a look, any other for the end."""
        if set(self._interrupts.recv(64)) == {signal.SIGALRM}:
            self._look()
        else:
            self._loop.stop()

    def _look(self) -> None:
        if self._forwarder is None and self._now() - self._unused_since > UNUSED:
            self._loop.stop()
        if self._control_socket.lost():
            with suppress(ControlSocketError):  # Another look comes.
                self._control_socket.come_back()
                self._loop.watch(self._control_socket.fileno(), self._admit)

    def _admit(self) -> None:
        connection = self._control_socket.accept()
        if connection is not None:
            self._dismiss()
            self._agent = connection
            self._loop.watch(connection.fileno(), self._obey)

    def _dismiss(self) -> None:
        if self._agent is not None:
            self._loop.unwatch(self._agent.fileno())
            self._agent.close()
            self._agent = None
        self._handler.forget()

    def _obey(self) -> None:
        """Take one message: packets go on before the next."""
        assert self._agent is not None
        if not self._handler.take(self._agent):
            self._dismiss()
        if self._handler.stopped:
            self._loop.stop()

    def _make(self, wanted: messages.Configure) -> Worker | WorkerPool:
        lanes = open_lanes(wanted)
        if wanted.workers == 1:
            self._forwarder = worker = Worker(wanted, lanes, self._now)
            if worker.fastpath is not None:
                self._loop.wait_by(worker.fastpath)
        else:
            self._forwarder = WorkerPool(wanted, lanes, wanted.workers, self._now)
        for fd, serve in self._forwarder.watched():
            self._loop.watch(fd, serve)
        return self._forwarder


def serve(control_socket: ControlSocket) -> None:
    """Run the data plane at a control socket until told to end."""
    interrupts, interrupted = socket.socketpair()
    interrupted.setblocking(False)
    signal.set_wakeup_fd(interrupted.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, LOOK_EVERY, LOOK_EVERY)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    datapath = Datapath(control_socket, interrupts, time.monotonic)  # noqa: TID251 -- no agent here, so none of its clocks
    try:
        datapath.run()
    finally:
        control_socket.close()
        datapath.close()


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="flanneld_py.encap.datapath", description="flanneld-py's data-plane process")
    parser.add_argument("--control", type=Path, required=True, help="the unix socket on which it takes orders")
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground (debugging)")
    options = parser.parse_args(arguments)
    if options.foreground:
        return _run(options.control, lambda reason: sys.stderr.write(f"{reason}\n") if reason else 0)
    return _run_in_background(options.control)


def _run(control: Path, report: Callable[[str], object]) -> int:
    """Serve until the end; `report` gets "" once the socket listens, or the reason why it does not."""
    try:
        control_socket = ControlSocket(control)
    except ControlSocketError as error:
        report(str(error))
        return 1
    report("")
    serve(control_socket)
    return 0


def _run_in_background(control: Path) -> int:
    """Fork; the parent ends when the child listens, with the child's reason on stdout if it cannot."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            reason = pipe.read()
        if reason != READY:
            sys.stdout.write(
                reason or "the data-plane process died before it could listen; its own words are on stderr"
            )
            return 1
        return 0
    os.close(reader)
    os.setsid()
    os.chdir("/")

    def report(reason: str) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        os.write(writer, (reason or READY).encode())
        os.close(writer)

    return _run(control, report)


READY = "ready"

if __name__ == "__main__":
    sys.exit(main())
