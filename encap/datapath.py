"""The data-plane process: `python -m flanneld_py.encap.datapath --control <socket>`.

It moves packets (relay.py) and takes orders (feed.py). It sets no address, route or firewall rule, and knows no etcd.

1. It listens on the control socket, says on stdout why if it cannot, and goes into the background: its own session,
   no child of the agent's, so that the agent's end is not its own.
2. The first Configure opens the TUN device and the UDP socket.
3. One loop waits for TUN, wire, control and signals. In a turn each gets a bounded share, so none waits for another's
   rush, and nothing in it blocks: what cannot be written now is a counted drop.
4. It ends on Stop, on SIGTERM, or when the device is deleted under it. An agent that goes away changes nothing;
   the next one connects, and replaces an older connection.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from flanneld_py.encap import feed, orders
from flanneld_py.encap.doorway import Doorway, DoorwayError
from flanneld_py.encap.relay import DeviceGone, Relay
from flanneld_py.encap.tun import Tun, TunError
from flanneld_py.encap.wire import Wire, WireError


class Datapath:
    """The loop. `interrupts` becomes readable when a signal asks for the end; `now` tells monotonic seconds."""

    def __init__(self, doorway: Doorway, interrupts: socket.socket, now: Callable[[], float]) -> None:
        self._doorway = doorway
        self._interrupts = interrupts
        self._now = now
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._watch(doorway.fileno(), self._admit)
        self._watch(interrupts.fileno(), self._end)
        self._agent: socket.socket | None = None
        self._wanted: orders.Configure | None = None
        self._relay: Relay | None = None
        self._unnamed: set[str] | None = None
        self._running = True

    def run(self) -> None:
        """Move packets until told to end. Raises DeviceGone."""
        while self._running:
            for fd, _events in self._poll.poll():
                serve = self._ready.get(fd)
                if serve is not None:  # closed by an earlier one in this turn
                    serve()

    def close(self) -> None:
        """Close everything, the control connection last: its end tells the agent that the device is gone."""
        if self._relay is not None:
            self._relay.close()
        self._dismiss()
        self._poll.close()

    # The agent

    def _admit(self) -> None:
        connection = self._doorway.accept()
        if connection is not None:
            self._dismiss()
            self._agent = connection
            self._watch(connection.fileno(), self._obey)

    def _dismiss(self) -> None:
        if self._agent is not None:
            self._unwatch(self._agent.fileno())
            self._agent.close()
            self._agent = None
        self._unnamed = None

    def _obey(self) -> None:
        """Take one message: packets go on before the next."""
        assert self._agent is not None
        try:
            data = self._agent.recv(feed.MAX_MESSAGE + 1)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._dismiss()
            return
        try:
            answer = self._answer(feed.decode(data))
        except feed.Malformed as error:
            self._reply(orders.Refused(str(error), restart=True))
            self._dismiss()
            return
        if answer is not None:
            self._reply(answer)

    def _reply(self, answer: orders.Answer) -> None:
        if self._agent is None:
            return
        try:
            self._agent.send(feed.encode(answer))
        except OSError:
            self._dismiss()  # gone, or it asks and does not read: it may connect again

    def _answer(self, message: orders.Message) -> orders.Answer | None:
        match message:
            case orders.Configure():
                return self._configure(message)
            case orders.Stop():
                self._running = False
                return None
            case orders.AskStatus():
                return self._status()
        if self._relay is None:
            return orders.Refused("the data plane is not configured yet: send its configuration first")
        match message:
            case orders.Begin():
                self._unnamed = self._relay.keys()
            case orders.Put(peers):
                for peer in peers:
                    self._relay.put(peer)
                if self._unnamed:
                    self._unnamed.difference_update(peer.key for peer in peers)
            case orders.Remove(key):
                self._relay.remove(key)
            case orders.End():
                for key in self._unnamed or ():
                    self._relay.remove(key)
                self._unnamed = None
                return orders.Done(len(self._relay))
            case orders.AskTraffic(first):
                return self._relay.traffic(first, feed.TRAFFIC_PAGE)
            case _:
                return orders.Refused(f"{type(message).__name__} is an answer, and this end gives the answers")
        return None

    def _configure(self, wanted: orders.Configure) -> orders.Answer:
        if self._relay is not None and self._wanted is not None:
            if wanted.fixed() != self._wanted.fixed():
                return orders.Refused("mode, device, address and port are fixed while the process runs", restart=True)
            self._relay.configure(wanted)
            self._wanted = wanted
            return orders.Done(len(self._relay))
        try:
            tun = Tun(wanted.device)
        except TunError as error:
            return orders.Refused(str(error))
        try:
            wire = Wire(ip_address(wanted.local), wanted.port)
        except WireError as error:
            tun.close()
            return orders.Refused(str(error))
        self._wanted, self._relay = wanted, Relay(wanted, tun, wire, self._now)
        self._watch(tun.fileno(), self._relay.outward)
        self._watch(wire.fileno(), self._relay.inward)
        return orders.Done(0)

    def _status(self) -> orders.Status:
        if self._relay is None:
            return orders.Status(pid=os.getpid(), configured=False, peers=0)
        return self._relay.status(os.getpid())

    # The loop's parts

    def _end(self) -> None:
        self._running = False

    def _watch(self, fd: int, serve: Callable[[], None]) -> None:
        self._ready[fd] = serve
        self._poll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._ready[fd]
        self._poll.unregister(fd)


def serve(doorway: Doorway) -> None:
    """Run the data plane at a control socket until told to end. Raises DeviceGone."""
    interrupts, interrupted = socket.socketpair()
    interrupted.setblocking(False)
    signal.set_wakeup_fd(interrupted.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    datapath = Datapath(doorway, interrupts, time.monotonic)  # noqa: TID251 -- no agent here, so none of its clocks
    try:
        datapath.run()
    finally:
        doorway.close()
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
        doorway = Doorway(control)
    except DoorwayError as error:
        report(str(error))
        return 1
    report("")
    try:
        serve(doorway)
    except DeviceGone as error:
        sys.stderr.write(f"{error}\n")
        return 1
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
