"""Carries out what the agent says (control/messages.py) in a data-plane process: reads it, hands it to a forwarder,
answers.

A forwarder is what moves the packets: a Worker in this process, or a WorkerPool of processes with a worker each. The
first Configure makes it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from flanneld_py.encap.datapath.control import messages, protocol
from flanneld_py.encap.datapath.tun import TunError, TunTaken
from flanneld_py.encap.datapath.wire import WireError


class Forwarder(Protocol):
    """What moves the packets."""

    def __len__(self) -> int:
        """Return how many peers there are."""
        ...

    def configure(self, wanted: messages.Configure) -> None:
        """Take in a configuration with the same fixed part."""
        ...

    def keys(self) -> set[str]:
        """Return the keys of all peers."""
        ...

    def put(self, peers: Iterable[messages.Peer]) -> None:
        """Add peers, or change them."""
        ...

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        ...

    def status(self) -> messages.Status:
        """Return state and totals."""
        ...

    def traffic(self, first: int, most: int) -> messages.Traffic:
        """Return the counters of up to `most` peers from a position on."""
        ...


class CommandHandler:
    """Obey. `make` makes the carrier that a configuration asks for, and raises TunError or WireError.

    `stopped` is set once Stop was ordered, or the device was found to be another process's: that one is to be sought
    at this control socket.
    """

    def __init__(self, make: Callable[[messages.Configure], Forwarder]) -> None:
        self._make = make
        self._forwarder: Forwarder | None = None
        self._wanted: messages.Configure | None = None
        self._unnamed: set[str] | None = None
        self.stopped = False

    def forget(self) -> None:
        """Forget a table that is half told: who told it is gone."""
        self._unnamed = None

    def take(self, connection: socket.socket) -> bool:
        """Take one message and answer it; return whether more can come.

        An answer that cannot be sent ends the connection: its other end is gone, or asks and does not read, and may
        connect again.
        """
        try:
            data = connection.recv(protocol.MAX_MESSAGE + 1)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not data:
            return False
        try:
            answer, more = self.obey(protocol.decode(data)), True
        except protocol.Malformed as error:
            answer, more = messages.Refused(str(error), restart=True), False
        try:
            if answer is not None:
                connection.send(protocol.encode(answer))
        except OSError:
            return False
        return more

    def obey(self, message: messages.Message) -> messages.Answer | None:
        """Carry out one order."""
        match message:
            case messages.Configure():
                return self._configure(message)
            case messages.Stop():
                self.stopped = True
                return None
            case messages.AskStatus():
                if self._forwarder is None:
                    return messages.Status(pid=os.getpid(), configured=False, peers=0)
                return self._forwarder.status()
        if self._forwarder is None:
            return messages.Refused("the data plane is not configured yet: send its configuration first")
        match message:
            case messages.Begin():
                self._unnamed = self._forwarder.keys()
            case messages.Put(peers):
                self._forwarder.put(peers)
                if self._unnamed:
                    self._unnamed.difference_update(peer.key for peer in peers)
            case messages.Remove(key):
                self._forwarder.remove(key)
            case messages.End():
                for key in self._unnamed or ():
                    self._forwarder.remove(key)
                self._unnamed = None
                return messages.Done(len(self._forwarder))
            case messages.AskTraffic(first):
                return self._forwarder.traffic(first, protocol.TRAFFIC_PAGE)
            case _:
                return messages.Refused(f"{type(message).__name__} is an answer, and this end gives the answers")
        return None

    def _configure(self, wanted: messages.Configure) -> messages.Answer:
        if self._forwarder is not None and self._wanted is not None:
            if wanted.fixed() != self._wanted.fixed():
                return messages.Refused(
                    "mode, device, address, port and number of workers are fixed while the process runs", restart=True
                )
            self._forwarder.configure(wanted)
        else:
            try:
                self._forwarder = self._make(wanted)
            except (TunError, WireError) as error:
                self.stopped = isinstance(error, TunTaken)
                return messages.Refused(str(error))
        self._wanted = wanted
        return messages.Done(len(self._forwarder))
