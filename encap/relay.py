"""The packets' way through the data-plane process, and its counters.

    outward   TUN read -> outbound: to whom? -> segment: datagrams -> batch: UDP_SEGMENT sends
    inward    UDP_GRO receive -> a known peer's address? -> coalesce: super-packets
              -> per packet parse_vxlan, inbound: may it? -> TUN write

Decisions are forward.py's, cutting and merging offload.py's; here is only their order, bounded shares of both
directions per turn of the loop, and the counting of what did not pass. Nothing is queued here: what the kernel does
not take at once is dropped and counted, and the kernel's own queues are the only ones.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice

from flanneld_py.encap import orders
from flanneld_py.encap.admission import Admission
from flanneld_py.encap.batch import Batch
from flanneld_py.encap.bucket import Bucket
from flanneld_py.encap.forward import Drop, Own, Remote, Reply, Send, Table, outbound
from flanneld_py.encap.frame import Refused, vxlan_header
from flanneld_py.encap.merge import coalesce
from flanneld_py.encap.offload import segment
from flanneld_py.encap.tally import Tally
from flanneld_py.encap.tun import BUFFER_SIZE, Tun
from flanneld_py.encap.uncut import uncut
from flanneld_py.encap.virtio import PLAIN, VNET_HEADER
from flanneld_py.encap.wire import RECEIVE_SIZE, Endpoint, Wire

SHARE = 1 << 20
"""Bytes per direction in one turn of the loop: a millisecond or two."""

PACKET_COST = 8192
"""How many bytes the handling of a packet counts for, whatever its length."""

GSO = struct.Struct("=xBxxH")
"""gso_type and gso_size of a virtio header."""

ANSWERS_PER_SECOND, ANSWERS_AT_ONCE = 100, 50
"""ICMP errors: enough for whoever probes a path, and no work to speak of when somebody sends into nowhere."""


class DeviceGone(Exception):
    """The TUN device was deleted under us."""


@dataclass(frozen=True, slots=True)
class Hop(Remote):
    """A peer with what sending to it takes, made once: socket address, bytes before an inner packet, counters."""

    endpoint: Endpoint
    prefix4: bytes
    prefix6: bytes
    tally: Tally = field(compare=False)


class Relay:
    """Carry packets between a device and a wire that are open, among the peers that were put.

    `now` tells seconds that only go forward.
    """

    def __init__(self, wanted: orders.Configure, tun: Tun, wire: Wire, now: Callable[[], float]) -> None:
        self._now = now
        self._answers = Bucket(ANSWERS_PER_SECOND, ANSWERS_AT_ONCE)
        self._tun = tun
        self._wire = wire
        self._table = Table()
        self._peers: dict[str, orders.Peer] = {}
        self._tallies: dict[str, Tally] = {}
        self._departed = Tally()
        self._sources: dict[str, bytes] = {}
        self._drops: Counter[str] = Counter()
        self._from_tun = memoryview(bytearray(BUFFER_SIZE))
        self._received = bytearray(RECEIVE_SIZE)
        self._from_wire = memoryview(self._received)
        self._batch = Batch(wire, self._lost)
        self._udp = "uso4" in tun.offloads
        self.configure(wanted)

    def configure(self, wanted: orders.Configure) -> None:
        """Take in a configuration with the same fixed part."""
        self._wanted = wanted
        self._vxlan = (wanted.vni, wanted.mac) if wanted.mode is orders.Mode.VXLAN else None
        bases = {subnet.version: subnet.network_address.packed for subnet in reversed(wanted.subnets)}
        subnets = tuple((subnet.network_address.packed, subnet.prefixlen) for subnet in wanted.subnets)
        self._admission = Admission(self._table, Own(subnets, bases.get(4), bases.get(6)), self._vxlan)
        for peer in self._peers.values():
            self._install(peer)

    def close(self) -> None:
        """Close device and wire."""
        self._tun.close()
        self._wire.close()

    # The table

    def __len__(self) -> int:
        return len(self._peers)

    def keys(self) -> set[str]:
        """Return the keys of all peers."""
        return set(self._peers)

    def put(self, peer: orders.Peer) -> None:
        """Add a peer, or change it: its counters stay."""
        before = self._peers.get(peer.key)
        if before == peer:
            return
        self._peers[peer.key] = peer
        self._tallies.setdefault(peer.key, Tally())
        self._install(peer)
        if before is not None and before.address != peer.address:
            self._forget_source(before.address)

    def _install(self, peer: orders.Peer) -> None:
        host = str(ip_address(peer.address))
        prefixes = (b"", b"")
        if self._vxlan:
            vni, own_mac = self._vxlan
            prefixes = (vxlan_header(vni, peer.mac, own_mac, 4), vxlan_header(vni, peer.mac, own_mac, 6))
        hop = Hop(
            peer.subnet,
            peer.prefix_length,
            peer.address,
            peer.mac,
            (host, self._wanted.port),
            *prefixes,
            self._tallies[peer.key],
        )
        self._table.set(peer.key, hop)
        self._admission.forget()
        self._sources[host] = peer.address

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._table.remove(key)
            self._admission.forget()
            self._departed.add(self._tallies.pop(key))
            self._forget_source(peer.address)

    def _forget_source(self, address: bytes) -> None:
        if not self._table.from_address(address):
            self._sources.pop(str(ip_address(address)), None)

    # The packets

    def outward(self) -> None:
        """Send what waits in the TUN device, up to a share. Raises DeviceGone."""
        budget = SHARE
        while budget > 0 and (size := self._take()):
            budget -= size + PACKET_COST
        self._batch.flush()

    def _take(self) -> int:
        """Take one packet from the device; return its length in bytes, 0 if there is none."""
        try:
            size = self._tun.read_into(self._from_tun)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._refused_by_device("out", error)
            return 0
        header, packet = self._from_tun[:VNET_HEADER], self._from_tun[VNET_HEADER:size]
        gso_type, gso_size = GSO.unpack_from(header)
        match outbound(self._table, packet, self._wanted.mtu, gso_size if gso_type else 0):
            case Send(remote):
                assert isinstance(remote, Hop)
                self._send(header, packet, remote)
            case Reply(reply, reason):
                self._drops[f"out-{reason.value}"] += 1
                self._reply(reply)
            case Drop(reason):
                self._drops[f"out-{reason.value}"] += 1
        return size

    def _reply(self, reply: bytes) -> None:
        allowed, self._answers = self._answers.take(self._now())
        if allowed:
            self._write((PLAIN, reply))
        else:
            self._drops["out-icmp-rate"] += 1

    def _send(self, header: memoryview, packet: memoryview, hop: Hop) -> None:
        datagrams, size = segment(header, packet, hop.prefix4 if packet[0] >> 4 == 4 else hop.prefix6)
        if not size:
            self._drops[f"out-{Refused.OFFLOAD.value}"] += 1
            return
        self._batch.add(datagrams, size, hop.endpoint)
        hop.tally.sent += 1
        hop.tally.sent_bytes += len(packet)

    def _lost(self, error: OSError) -> None:
        self._drops[f"out-wire-{_name(error)}"] += 1

    def inward(self) -> None:
        """Deliver what waits at the wire, up to a share. Raises DeviceGone."""
        offset, mtu, sources = self._admission.offset, self._wanted.mtu, self._sources
        budget = SHARE
        while budget > 0:
            try:
                total, size, sender = self._wire.receive_into(self._received)
            except BlockingIOError:
                return
            except OSError as error:
                self._drops[f"in-wire-{_name(error)}"] += 1
                return
            budget -= total + PACKET_COST
            source = sources.get(sender[0])
            if source is None:
                self._drops[f"in-{Refused.UNKNOWN_PEER.value}"] += 1
            elif size <= offset:
                self._drops[f"in-{Refused.SHORT.value}"] += 1
            else:
                datagrams = self._from_wire[:total]
                whole = uncut(datagrams, size, offset) if self._udp else None
                for header, start, stop in (whole,) if whole else coalesce(datagrams, size, offset, mtu, self._udp):
                    self._deliver(header, datagrams[start:stop], source)

    def _deliver(self, header: bytes, datagram: memoryview, source: bytes) -> None:
        hop = self._admission.admit(source, datagram)
        if isinstance(hop, Refused):
            self._drops[f"in-{hop.value}"] += 1
            return
        packet = datagram[self._admission.offset :]
        if self._write((header, packet)):
            assert isinstance(hop, Hop)
            tally = hop.tally
            tally.received += 1
            tally.received_bytes += len(packet)

    def _write(self, parts: tuple[bytes | memoryview, bytes | memoryview]) -> bool:
        try:
            self._tun.write(parts)
        except OSError as error:
            self._refused_by_device("in", error)
            return False
        return True

    def _refused_by_device(self, direction: str, error: OSError) -> None:
        if error.errno == errno.EBADFD:
            raise DeviceGone(
                f"device {self._wanted.device} was deleted while the data plane used it: the agent makes it again"
            ) from error
        self._drops[f"{direction}-device-{_name(error)}"] += 1

    # The counters

    def status(self, pid: int) -> orders.Status:
        """Return the state and the totals of this process."""
        total = Tally()
        total.add(self._departed)
        for tally in self._tallies.values():
            total.add(tally)
        counters = {
            "sent": total.sent,
            "sent-bytes": total.sent_bytes,
            "received": total.received,
            "received-bytes": total.received_bytes,
            **self._drops,
        }
        return orders.Status(
            pid=pid,
            configured=True,
            peers=len(self._peers),
            device=self._wanted.device,
            offloads=self._tun.offloads,
            segmentation=self._wire.segmentation,
            coalescing=self._wire.coalescing,
            receive_buffer=self._wire.receive_buffer,
            counters=counters,
        )

    def traffic(self, first: int, most: int) -> orders.Traffic:
        """Return the counters of up to `most` peers from a position on."""
        rows = tuple(
            orders.PeerTraffic(key, tally.sent, tally.sent_bytes, tally.received, tally.received_bytes)
            for key, tally in islice(self._tallies.items(), first, first + most)
        )
        following = first + len(rows)
        return orders.Traffic(following if following < len(self._tallies) else 0, rows)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown").lower()
