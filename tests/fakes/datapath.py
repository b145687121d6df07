"""A data-plane process without packets: it takes orders at its control socket as the real one does."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flanneld_py.encap.datapath.control import messages, protocol


class FakeProcess:
    """See the module's docstring. `refusal` is its answer to a configuration.

    `connections` counts the agents that came. One that is `deaf` reads no more, as one that hangs.
    `tell` hears of the first configuration, and None at the end: the life of the device. `fewest` is how few peers it
    had after any order to remove one.
    """

    def __init__(
        self,
        control: Path,
        refusal: messages.Refused | None = None,
        tell: Callable[[messages.Configure | None], None] = lambda _: None,
    ) -> None:
        control.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(control))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self.refusal = refusal
        self.connections = 0
        self.configured: messages.Configure | None = None
        self.peers: dict[str, messages.Peer] = {}
        self.fewest = sys.maxsize
        self.stopped = False
        self.deaf = False
        self.segmentation = False
        self._tell = tell

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self.stopped:
                self._connection, _ = await loop.sock_accept(self._listener)
                self.connections += 1
                unnamed: set[str] = set()
                while not self.stopped and (data := await loop.sock_recv(self._connection, protocol.MAX_MESSAGE)):
                    if self.deaf:
                        await asyncio.Event().wait()
                    answer = self._answer(protocol.decode(data), unnamed)
                    if answer is not None:
                        with suppress(BrokenPipeError):
                            await loop.sock_sendall(self._connection, protocol.encode(answer))
                self._connection.close()
        finally:
            self.close()

    def has_met(self, agents: int) -> bool:
        """Whether so many agents have come."""
        return self.connections == agents

    def lose_device(self) -> None:
        """Go on without it, as when somebody deletes it."""
        assert self._connection is not None
        self.configured = None
        self._tell(None)
        self.peers.clear()
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        if self.configured is not None:
            self._tell(None)
        if self._connection is not None:
            self._connection.close()

    def _answer(self, message: messages.Message, unnamed: set[str]) -> messages.Answer | None:
        match message:
            case messages.Configure():
                if self.refusal is not None:
                    return self.refusal
                if self.configured is None:
                    self._tell(message)
                elif self.configured.fixed() != message.fixed():
                    return messages.Refused("it has another address", restart=True)
                self.configured = message
                return messages.Done(len(self.peers))
            case messages.Begin():
                unnamed.update(self.peers)
            case messages.Put(peers):
                self.peers.update((one.key, one) for one in peers)
                unnamed.difference_update(one.key for one in peers)
            case messages.Remove(key):
                self.peers.pop(key, None)
                self.fewest = min(self.fewest, len(self.peers))
            case messages.End():
                for key in unnamed:
                    del self.peers[key]
                unnamed.clear()
                return messages.Done(len(self.peers))
            case messages.AskStatus():
                return messages.Status(1, True, len(self.peers), segmentation=self.segmentation)
            case messages.AskTraffic(first):
                rows = [messages.PeerTraffic(key, 1, 2, 3, 4) for key in self.peers]
                page = tuple(rows[first : first + 2])
                return messages.Traffic(first + 2 if len(rows) > first + 2 else 0, page)
            case messages.Stop():
                self.stopped = True
        return None
