"""The packets' way between one queue of the TUN device and one socket.

    outward   TUN read -> outbound: to whom? -> segment: datagrams -> batch: UDP_SEGMENT sends
    inward    UDP_GRO receive -> a known peer's address? -> coalesce: super-packets -> admit: may it? -> TUN write

Decisions are forward.py's and admission.py's, cutting and merging encap/packet/segment.py's and
encap/packet/coalesce.py's; here is only their
order, bounded shares of both directions per turn of the loop, and the counting of what did not pass. Nothing is queued
here: what the kernel does not take at once is dropped and counted, and the kernel's own queues are the only ones.

Where the accelerator was built, packets of known flows do not come here: fastpath.c does the same with them, in this
order and with these bounds. What is written there twice is held against this by tests/fuzz/test_fastpath.py.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from contextlib import suppress

from flanneld_py.encap.datapath.batch import Batch
from flanneld_py.encap.datapath.forward import Drop, Remote, Reply, Send, outbound
from flanneld_py.encap.datapath.peertable import Endpoint, Hop, PeerTable
from flanneld_py.encap.datapath.tun import Tun
from flanneld_py.encap.datapath.wire import RECEIVE_SIZE, Wire
from flanneld_py.encap.packet.coalesce import coalesce
from flanneld_py.encap.packet.ecn import CE, ECT1, combine, marking
from flanneld_py.encap.packet.frame import DropReason
from flanneld_py.encap.packet.partial import cut, tells_length, uncut
from flanneld_py.encap.packet.segment import segment
from flanneld_py.encap.packet.virtio import PLAIN, VNET_HEADER, cost, largest, pieces, segments

SHARE = 1 << 18
"""Bytes per direction in one turn of the loop: some super-packets, some hundred microseconds. See virtio.cost."""

LITTLE = 1 << 14
"""Bytes of a receipt after which no other is expected at once: to ask in vain would hold up a lone packet.

While the expectation is wrong, twice as many are taken in each turn: what comes in little by little gets its share too.
"""

MOST = 64
"""Packets that are read, and receipts that are taken, in one turn; as many datagrams fit one send."""

MOST_HELD = 64 << 20
"""Bytes of flows that crowd out others, which wait for their turn (fastpath.c): of all lanes, both ways."""

FastpathLane = tuple[
    int,
    int,
    int,
    bool,
    Callable[[int, int], None],
    Callable[[int, int, int, Endpoint, int], None],
    Callable[[str, int, int], None],
    Callable[[], int],
]
"""A lane as fastpath.c takes it: the descriptors of device, wire and sender; whether UDP is merged; what it calls:
outward(have, most), received(start, stop, size, sender, codepoint), failed(where, errno, count) or
failed(counter, 0, count), and overflowed(): how many packets have found the device's queues full."""


class Room:
    """The buffers for what comes from the device and from the wire; all lanes', as nothing stays from turn to turn.

    And `notes`, for what fastpath.c remembers of its lanes, and `holds`, for what it lets wait: memory that is not
    there
    until something is written into it.
    """

    def __init__(self, held: int = MOST_HELD) -> None:
        self.from_device = memoryview(bytearray(SHARE))
        self.from_wire = memoryview(bytearray(SHARE + 2 * RECEIVE_SIZE))
        self.notes = memoryview(bytearray(1 << 18))
        self.holds = mmap.mmap(-1, held, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class DeviceGone(Exception):
    """The TUN device was deleted under us."""


class Relay:
    """Carry packets among the peers of a directory.

    `may_answer` is asked before each ICMP error to a source; `now` tells seconds that only go forward.
    """

    def __init__(
        self,
        directory: PeerTable,
        tun: Tun,
        wire: Wire,
        room: Room,
        may_answer: Callable[[bytes], bool],
        now: Callable[[], float],
    ) -> None:
        self.tun = tun
        self.wire = wire
        self._directory = directory
        self._may_answer = may_answer
        self._now = now
        self._from_tun, self._from_wire = room.from_device, room.from_wire
        self._batch = Batch(wire, self._lost)
        self._udp = "uso4" in tun.offloads
        self._expected = 1

    @property
    def lane(self) -> FastpathLane:
        """What fastpath.c works with."""
        descriptors = self.tun.fileno(), self.wire.fileno(), self.wire.sender_fileno()
        return (*descriptors, self._udp, self.outward, self._received, self._failed, self._overflowed)

    def outward(self, have: int = 0, most: int = MOST) -> None:
        """Send up to `most` packets that wait in the TUN device; `have` bytes are read. Raises DeviceGone."""
        try:
            trains = self.tun.gather(self._from_tun, most, have)
        except OSError as error:
            self._refused_by_device("out", error)
            return
        known, mtu = self._directory.table.known, self._directory.mtu
        for start, stop, each, gso_size, destination in trains:
            train = self._from_tun[start:stop]
            hop, size = known.get(destination), largest(train) if gso_size else each - VNET_HEADER
            if hop is None or size > mtu or size > hop.mtu:
                for at in range(0, stop - start, each):
                    self._decide(train[at : at + each], size)
            else:
                self._send(train, each, hop, alone=len(trains) == 1)
        self._batch.flush()
        while self.wire.narrow:
            self._learn(self.wire.narrow.pop())

    def _learn(self, to: Endpoint) -> None:
        """Ask how large packets on the way to a peer may be: a batch to it was too large."""
        with suppress(OSError):  # No way at the moment: nothing to be learned.
            self._directory.narrow(to[0], self.wire.path_mtu(to), self._now())

    def _decide(self, packet: memoryview, size: int) -> None:
        """Do with one packet, virtio header in front, what forward.py says: whatever is not the common case."""
        directory = self._directory
        directory.widen(self._now())
        match outbound(directory.table, packet[VNET_HEADER:], directory.mtu, size):
            case Send(hop):
                self._send(packet, len(packet), hop)
            case Reply(reply, reason):
                self._dropped("out", reason.value)
                if self._may_answer(bytes(reply[16:20] if reply[0] >> 4 == 4 else reply[24:40])):
                    self._write((PLAIN, reply))
                else:
                    self._dropped("out", "icmp-rate")
            case Drop(reason):
                self._dropped("out", reason.value)

    def _send(self, train: memoryview, each: int, hop: Remote, *, alone: bool = False) -> None:
        assert isinstance(hop, Hop)
        datagrams, size = segment(train, each, hop.prefix4 if train[VNET_HEADER] >> 4 == 4 else hop.prefix6)
        if not size:
            self._dropped("out", DropReason.OFFLOAD.value)
            return
        codepoint = marking(train[VNET_HEADER:])
        if alone and len(datagrams) == size:
            self._send_one(datagrams, hop.endpoint, codepoint)
        else:
            self._batch.add(datagrams, size, hop.endpoint, codepoint)
        count = len(train) // each
        hop.tally.sent += count
        hop.tally.sent_bytes += len(train) - count * VNET_HEADER

    def _send_one(self, datagram: bytes, to: Endpoint, codepoint: int) -> None:
        try:
            self.wire.send_one(datagram, to, codepoint)
        except OSError as error:
            self._lost(error, 1)

    def _lost(self, error: OSError, count: int) -> None:
        self._dropped("out-wire", _name(error), count)

    def inward(self) -> None:
        """Deliver what waits at the wire, up to a share. Raises DeviceGone.

        A sender's super-packet can take it two sends; what was received in a row is merged as if it were one receipt.
        """
        begin = at = size = little = charged = codepoint = 0
        sender: Endpoint = ("", 0)
        for _ in range(MOST):
            try:
                total, each, source, mark = self.wire.receive_into(self._from_wire[at : at + RECEIVE_SIZE])
            except BlockingIOError:
                self._expected = 1
                break
            except OSError as error:
                self._dropped("in-wire", _name(error))
                break
            charged += cost(total, each)
            if not total:
                self._admit(self._from_wire[:0], each, source, mark)
            elif at > begin and not (
                (source, mark) == (sender, codepoint) and self._continues(begin, at, size, total, each)
            ):
                self._admit(self._from_wire[begin:at], size, sender, codepoint)
                begin = at
            if at == begin:
                size, sender, codepoint = each, source, mark
            at += total
            little += total < LITTLE
            if little == self._expected:
                self._expected = min(2 * little, MOST)
                break
            if charged > SHARE:
                break
        if at > begin:
            self._admit(self._from_wire[begin:at], size, sender, codepoint)

    def _continues(self, begin: int, at: int, size: int, total: int, each: int) -> bool:
        """Tell whether a receipt of `total` bytes at `at` goes on where datagrams of `size` from `begin` on ended.

        What another namespace's kernel did not cut stays alone: it is larger than the MTU, or one datagram by what the
        packet in it says, though told as many (encap/packet/partial.py).
        """
        fits = (each == size or each == total < size) and (at - begin) % size == 0
        offset = self._directory.admission.offset
        if not fits or size > self._directory.mtu + offset:
            return False
        return not any(
            length > one and tells_length(self._from_wire[start + offset : start + length], length - offset)
            for start, length, one in ((begin, at - begin, size), (at, total, each))
        )

    def _received(self, start: int, stop: int, size: int, sender: Endpoint, codepoint: int) -> None:
        self._admit(self._from_wire[start:stop], size, sender, codepoint)

    def _failed(self, where: str, number: int, count: int) -> None:
        error = OSError(number, "")
        if where == "in-device":
            self._refused_by_device("in", error, count)
        else:
            self._directory.drops[f"{where}-{_name(error)}" if number else where] += count

    def _overflowed(self) -> int:
        return self.tun.overflowed

    def _admit(self, datagrams: memoryview, size: int, sender: Endpoint, codepoint: int) -> None:
        offset = self._directory.admission.offset
        source = self._directory.sources.get(sender[0])
        if source is None:
            self._dropped("in", DropReason.UNKNOWN_PEER.value, pieces(len(datagrams), size))
        elif size <= offset:
            self._dropped("in", DropReason.SHORT.value, pieces(len(datagrams), size))
        else:
            mtu, whole = self._directory.mtu, uncut(datagrams, size, offset) if len(datagrams) > size else None
            if codepoint in (ECT1, CE):
                datagrams, lost = combine(datagrams, len(datagrams) if whole else size, offset, codepoint)
                if lost:
                    self._dropped("in", DropReason.ECN.value, segments(whole[0], whole[2] - offset) if whole else lost)
                if not datagrams:
                    return
            if whole is not None and not self._udp:
                datagrams, size = cut(datagrams, whole, offset)
                whole = None
                if not size:
                    self._dropped("in", DropReason.OFFLOAD.value)
                    return
            for header, start, stop in (whole,) if whole else coalesce(datagrams, size, offset, mtu, self._udp):
                self._deliver(header, datagrams[start:stop], source)

    def _deliver(self, header: bytes, datagram: memoryview, source: bytes) -> None:
        admission = self._directory.admission
        hop = admission.admit(source, datagram)
        if isinstance(hop, DropReason):
            self._dropped("in", hop.value, segments(header, len(datagram) - admission.offset))
            return
        packet = datagram[admission.offset :]
        if self._write((header, packet)):
            assert isinstance(hop, Hop)
            tally = hop.tally
            tally.received += 1
            tally.received_bytes += len(packet)

    def _write(self, parts: tuple[bytes | memoryview, bytes | memoryview]) -> bool:
        try:
            self.tun.write(parts)
        except OSError as error:
            self._refused_by_device("in", error, segments(bytes(parts[0]), len(parts[1])))
            return False
        return True

    def _refused_by_device(self, direction: str, error: OSError, count: int = 1) -> None:
        if error.errno == errno.EBADFD:
            raise DeviceGone(
                f"device {self.tun.device} was deleted while the data plane used it: the agent makes it again"
            ) from error
        self._dropped(f"{direction}-device", _name(error), count)

    def _dropped(self, where: str, reason: str, count: int = 1) -> None:
        self._directory.drops[f"{where}-{reason}"] += count


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown").lower()
