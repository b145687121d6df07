"""What moves the packets of one process: a directory of peers and a relay for each of its lanes.

A lane is a queue of the TUN device with a UDP socket. The kernel spreads flows over the lanes, each flow on one: so a
flow's packets stay in order, and a ping does not wait behind a bulk transfer, unless both fall on one lane.

With several workers each is a process of its own (pool.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from flanneld_py.encap.datapath.control import messages
from flanneld_py.encap.datapath.loop import Wait
from flanneld_py.encap.datapath.peertable import PeerTable
from flanneld_py.encap.datapath.relay import Relay, Room
from flanneld_py.encap.datapath.tun import Tun
from flanneld_py.encap.datapath.wire import Wire, open_wires
from flanneld_py.encap.packet.segment import accelerator
from flanneld_py.encap.ratelimit import Bucket, Buckets

LANES, LEAST_LANES = 16, 4
"""Lanes of all workers, and of each at the least: a flow that takes too much is felt on its own lane only."""

ANSWERS = Bucket(100, 50)
"""ICMP errors a second and at once to one source, by all workers: enough for whoever probes a path."""

ALL_ANSWERS = Bucket(1000, 200)
"""To all sources together: no work to speak of. The kernel's own limit is of this order (icmp_msgs_per_sec)."""

Lane = tuple[Tun, Wire]
Watched = Iterable[tuple[int, Callable[[], None]]]
"""File descriptors, and what to call when one is readable."""


def open_lanes(wanted: messages.Configure) -> list[Lane]:
    """Make the device and bind the sockets, so that each worker gets as many lanes. Raises TunError, WireError."""
    tuns: list[Tun] = []
    try:
        for _ in range(wanted.workers * max(LANES // wanted.workers, LEAST_LANES)):
            tuns.append(Tun(wanted.device, first=not tuns))
        spread = wanted.mode is messages.Mode.VXLAN
        wires = open_wires(ip_address(wanted.local), wanted.port, len(tuns), spread=spread)
    except BaseException:
        for tun in tuns:
            tun.close()
        raise
    return list(zip(tuns, wires, strict=True))


class Worker:
    """Carry packets over lanes that are open. `now` tells seconds that only go forward."""

    def __init__(self, wanted: messages.Configure, lanes: Sequence[Lane], now: Callable[[], float]) -> None:
        self._now = now
        self._answers = Buckets(ANSWERS.share(wanted.workers), ALL_ANSWERS.share(wanted.workers))
        self._directory = PeerTable(wanted)
        self._room = Room()
        self._relays = [Relay(self._directory, tun, wire, self._room, self._may_answer, now) for tun, wire in lanes]
        self._lanes = tuple(relay.lane for relay in self._relays)

    def watched(self) -> Watched:
        """Return what to wait for, and whom to call then."""
        for relay in self._relays:
            yield relay.tun.fileno(), relay.outward
            yield relay.wire.fileno(), relay.inward

    @property
    def fastpath(self) -> Wait | None:
        """What waits, and meanwhile carries the packets of known flows (fastpath.c); None where it was not built."""
        return self._wait if accelerator is not None else None

    def _wait(self, epoll: int) -> Iterable[int]:
        known, admission, mtu = self._directory.table.known, self._directory.admission, self._directory.mtu
        segmentation = all(relay.wire.segmentation for relay in self._relays)
        room = self._room.from_device, self._room.from_wire, self._room.notes, self._room.holds
        return accelerator.wait(
            epoll, self._lanes, *room, known, admission.admitted, admission.offset, mtu, segmentation
        )

    def close(self) -> None:
        """Close device and sockets."""
        for relay in self._relays:
            relay.tun.close()
            relay.wire.close()

    def __len__(self) -> int:
        return len(self._directory)

    def configure(self, wanted: messages.Configure) -> None:
        """Take in a configuration with the same fixed part."""
        self._directory.configure(wanted)

    def keys(self) -> set[str]:
        """Return the keys of all peers."""
        return self._directory.keys()

    def put(self, peers: Iterable[messages.Peer]) -> None:
        """Add peers, or change them."""
        self._directory.put(peers)

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        self._directory.remove(key)

    def status(self) -> messages.Status:
        """Return the state and the totals of this process."""
        total = self._directory.total()
        counters = {
            "sent": total.sent,
            "sent-bytes": total.sent_bytes,
            "received": total.received,
            "received-bytes": total.received_bytes,
            **self._directory.drops,
        }
        first = self._relays[0]
        overflowed = {
            "in-wire-overflow": sum(relay.wire.overflowed for relay in self._relays),
            "out-device-overflow": first.tun.overflowed if first.tun.first else 0,
        }
        counters.update({name: count for name, count in overflowed.items() if count})
        return messages.Status(
            pid=os.getpid(),
            configured=True,
            peers=len(self._directory),
            device=first.tun.device,
            offloads=first.tun.offloads,
            segmentation=all(relay.wire.segmentation for relay in self._relays),
            coalescing=first.wire.coalescing,
            receive_buffer=first.wire.receive_buffer,
            accelerated=accelerator is not None,
            counters=counters,
        )

    def traffic(self, first: int, most: int) -> messages.Traffic:
        """Return the counters of up to `most` peers from a position on."""
        return self._directory.traffic(first, most)

    def _may_answer(self, source: bytes) -> bool:
        return self._answers.take(source, self._now())
