"""Merge datagrams of one inner flow into super-packets for the TUN device: the receiving half of offload.py.

    1. layout    the first datagram says where things are: addresses, ports, sequence number, payload
    2. columns   one call of struct reads those fields of all datagrams; what differs in layout is left alone
    3. runs      neighbours with equal fields whose sequence numbers continue; PSH may be anywhere, other flags but
                 ACK nowhere; at the end one shorter datagram
    4. sums      the checksum of the first datagram and one sum over the whole run must be right
    5. headers   lengths and IPv4 checksum for the whole, a virtio header that has the kernel finish the rest

A merged packet gets a new checksum, so corruption must be found before. One sum over a run is as strong as the one
checksum of a packet of that size; that of the first datagram alone finds what is wrong in all of them alike. A run
that fails is written singly, as it came, and whoever the packets are for drops the corrupt one.

Between network namespaces the kernel leaves checksums unfinished and TCP super-packets uncut. Then the checksum field
is exactly the sum of the pseudo-header, and the virtio header passes on what the datagram cannot say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from flanneld_py.encap.checksum import FASTEST, Sums, complement, pseudo_sum
from flanneld_py.encap.virtio import (
    ACK,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    PSH,
    TCP,
    UDP,
    VNET,
)

MAX_PACKET = 65535
"""Bytes; the most that an IPv4 total length can say."""

Write = tuple[bytes, list[memoryview | bytes], memoryview]
"""What goes to the TUN device: virtio header, parts of the packet, and the first datagram that is in it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in an inner packet that can be merged: transport header and payload (`header`), in bytes."""

    version: int
    protocol: int
    transport: int
    header: int

    @property
    def checksum(self) -> int:
        """Where the transport checksum is."""
        return self.transport + (16 if self.protocol == TCP else 6)

    @property
    def gso_type(self) -> int:
        """How the virtio header names super-packets of this kind."""
        if self.protocol == UDP:
            return GSO_UDP_L4
        return GSO_TCPV4 if self.version == 4 else GSO_TCPV6


def coalesce(
    buffer: memoryview, size: int, offset: int, mtu: int, *, udp: bool = False, sums: Sums = FASTEST
) -> list[Write]:
    """Return what to write to the TUN device, in order: virtio header, parts for one writev, first datagram.

    `buffer` holds datagrams of `size` bytes, the last may be shorter; the inner packets begin at `offset` in each.
    Datagrams are merged only if their bytes before `offset`, their addresses and their ports are equal: so checking
    the first datagram (parse_vxlan, inbound) decides for all. `mtu` is the TUN device's; `udp` allows UDP_L4 packets.
    """
    layout = _layout(buffer[offset:size], udp) if len(buffer) > size else None
    if layout is None:
        return [_single(buffer[at : at + size], offset, mtu, sums) for at in range(0, len(buffer), size)]
    count = len(buffer) // size
    keys, sequences, flags = _columns(buffer, size, offset, layout, count)
    writes: list[Write] = []
    at = end = 0
    while at < count:
        stop = _run(keys, sequences, at, size - offset - layout.header, layout)
        end = stop * size
        if stop == count and _continues(buffer, at * size, end, size, offset, layout):
            end = len(buffer)
        run = buffer[at * size : end]
        if len(run) > size and _layout(run[offset:size], udp) == layout and _sound(run, size, offset, layout, sums):
            writes.append(_merged(run, size, offset, layout, flags[at:stop]))
        else:
            writes += [_single(run[i : i + size], offset, mtu, sums) for i in range(0, len(run), size)]
        at = stop
    if end < len(buffer):
        writes.append(_single(buffer[end:], offset, mtu, sums))
    return writes


def read_layout(packet: memoryview) -> Layout | None:
    """Return where things are in a whole TCP or UDP packet without IP options and extension headers, else None."""
    if len(packet) < 28:
        return None
    if packet[0] == 0x45:
        version, protocol, at = 4, packet[9], 20
        whole = not (packet[6] & 0x3F or packet[7]) and packet[2] << 8 | packet[3]
    else:
        version, protocol, at = packet[0] >> 4, packet[6], 40
        whole = 40 + (packet[4] << 8 | packet[5])
    if version not in (4, 6) or whole != len(packet) or protocol not in (TCP, UDP) or at + 8 > whole:
        return None
    if protocol == UDP:
        return Layout(version, UDP, at, at + 8) if at + (packet[at + 4] << 8 | packet[at + 5]) == whole else None
    header = at + (packet[at + 12] >> 4 << 2) if at + 20 <= whole else 0
    return Layout(version, TCP, at, header) if at + 20 <= header <= whole else None


def _layout(packet: memoryview, udp: bool) -> Layout | None:
    """Return where things are in a packet with payload and nothing that a merged one could not say, else None."""
    layout = read_layout(packet)
    if layout is None or len(packet) <= layout.header:
        return None
    at = layout.transport
    if layout.protocol == UDP:
        return layout if udp and packet[at + 6] | packet[at + 7] else None
    return layout if packet[at + 13] & ~PSH == ACK and not packet[at + 12] & 15 else None


@lru_cache(2048)
def _struct(form: str, rest: int, count: int) -> struct.Struct:
    return struct.Struct("!" + (form + f"{rest}x") * count)


def _form(offset: int, layout: Layout) -> str:
    """Return the format of one datagram's headers: what must be equal as bytes, TCP's sequence number as number.

    Left out are the checksums and IPv4's identification, which may do as it likes (RFC 6864).
    """
    network = f"{offset + 4}s2x4s2x" if layout.version == 4 else f"{offset + 8}s"
    addresses = 8 if layout.version == 4 else 32
    if layout.protocol == UDP:
        return f"{network}{addresses + 6}s2x"
    return f"{network}{addresses + 4}sI8s2x{layout.header - layout.transport - 18}s"


Keys = list[tuple[bytes, ...]]


def _columns(
    buffer: memoryview, size: int, offset: int, layout: Layout, count: int, *, whole: bool = False
) -> tuple[Keys, tuple[int, ...], tuple[bytes, ...]]:
    """Return for each of the first `count` datagrams what must be equal, its sequence number, and its TCP flags.

    The keys are without PSH and, unless `whole`, without what is equal in all: often they are empty. The flags are
    in the sixth byte, and left out if equal in all.
    """
    fields = _struct(_form(offset, layout), size - offset - layout.header, count).unpack_from(buffer)
    width = len(fields) // count
    columns = [fields[i::width] for i in range(width)]
    sequences: tuple[int, ...] = ()
    flags: tuple[bytes, ...] = ()
    if layout.protocol == TCP:
        sequences = columns.pop(-3)
        if whole or columns[-2].count(columns[-2][0]) < count:
            flags = columns[-2]
            cleared = {value: value[:5] + bytes((value[5] & ~PSH,)) + value[6:] for value in set(flags)}
            columns[-2] = tuple(map(cleared.__getitem__, flags))
    if not whole:
        columns = [column for column in columns if column.count(column[0]) < count]
    return list(zip(*columns, strict=True)) or [()] * count, sequences, flags


def _run(keys: Keys, sequences: tuple[int, ...], at: int, payload: int, layout: Layout) -> int:
    """Return where the run that starts at datagram `at` ends: the number of the first that does not belong to it."""
    most = min(len(keys), at + (MAX_PACKET - layout.header) // payload)
    first = keys[at]
    stop = at + 1
    if not sequences:
        while stop < most and keys[stop] == first:
            stop += 1
        return stop
    begun = sequences[at]
    if not first and sequences[at:most] == tuple(range(begun, begun + (most - at) * payload, payload)):
        return most
    while stop < most and keys[stop] == first and sequences[stop] == begun + (stop - at) * payload & 0xFFFFFFFF:
        stop += 1
    return stop


def _continues(buffer: memoryview, start: int, end: int, size: int, offset: int, layout: Layout) -> bool:
    """Tell whether the shorter datagram at `end` belongs to the run of datagrams from `start` on."""
    last = buffer[end:]
    payload = size - offset - layout.header
    whole = (end - start) // size * payload + len(last) - offset
    if not len(last) > offset + layout.header or whole > MAX_PACKET or _layout(last[offset:], True) != layout:
        return False
    length = 2 if layout.version == 4 else 4
    (key,), sequences, _ = _columns(last, len(last), offset, layout, 1, whole=True)
    (first,), begun, _ = _columns(buffer[start : start + size], size, offset, layout, 1, whole=True)
    cut = offset + length
    if key[0][:cut] != first[0][:cut] or key[0][cut + 2 :] != first[0][cut + 2 :]:
        return False
    if layout.protocol == UDP:
        return key[1:-1] == first[1:-1] and key[-1][:-2] == first[-1][:-2]
    return key[1:] == first[1:] and sequences[0] == begun[0] + (end - start) // size * payload & 0xFFFFFFFF


def _sound(run: memoryview, size: int, offset: int, layout: Layout, sums: Sums) -> bool:
    """Tell whether the checksums of a run are right: the first datagram's alone, and the sum of all."""
    at, count = layout.transport, -(-len(run) // size)
    begin, last = offset + at, len(run) - (count - 1) * size
    fixed = pseudo_sum(_addresses(run, offset, layout), layout.protocol, 0)
    if layout.version == 4 and complement(int.from_bytes(run[offset:begin], "big")):
        return False
    if complement(sums.total(run, begin, size) + fixed + size - begin):
        return False
    lengths = (count - 1) * (size - begin) + last - begin
    lead = offset if layout.version == 4 else begin  # IPv4 headers sum to nothing, IPv6 headers to something
    final = len(run) - last
    if (size | offset) & 1:  # every other datagram's words are off by a byte
        total = sum(sums.each(run, lead, size, size - lead, count - 1)) + sums.total(run, final + lead, len(run))
    else:
        total = sums.total(run, 0, len(run)) - int.from_bytes(run[final : final + lead], "big")
        total -= (count - 1) * int.from_bytes(run[:lead], "big")
    return not complement(total + count * fixed + lengths)


def _addresses(datagram: memoryview, offset: int, layout: Layout) -> memoryview:
    return datagram[offset + 12 : offset + 20] if layout.version == 4 else datagram[offset + 8 : offset + 40]


def _merged(run: memoryview, size: int, offset: int, layout: Layout, flags: tuple[bytes, ...]) -> Write:
    """Return the write of a run: the first datagram's headers, changed (PSH if anyone has it), and all payloads."""
    skip = offset + layout.header
    parts: list[memoryview | bytes] = [run[i + skip : i + size] for i in range(0, len(run), size)]
    header = bytearray(run[offset:skip])
    whole = sum(map(len, parts)) + layout.header
    if layout.protocol == TCP:
        last = run[(len(parts) - 1) * size + offset + layout.transport + 13]
        header[layout.transport + 13] |= max([value[5] for value in set(flags)], default=0) & PSH | last & PSH
    vnet = _super(header, layout, whole, size - skip)
    return vnet, [bytes(header), *parts], run[:size]


def _super(header: bytearray, layout: Layout, whole: int, payload: int) -> bytes:
    """Set the lengths and checksums of a super-packet of `whole` bytes in its header; return its virtio header."""
    at = layout.transport
    if layout.version == 4:
        struct.pack_into("!H", header, 2, whole)
        struct.pack_into("!H", header, 10, 0)
        struct.pack_into("!H", header, 10, complement(int.from_bytes(header[:20], "big")))
    else:
        struct.pack_into("!H", header, 4, whole - 40)
    if layout.protocol == UDP:
        struct.pack_into("!H", header, at + 4, whole - at)
    addresses = _addresses(memoryview(header), 0, layout)
    struct.pack_into("!H", header, layout.checksum, pseudo_sum(addresses, layout.protocol, whole - at) % 0xFFFF)
    return VNET.pack(NEEDS_CSUM, layout.gso_type, layout.header, payload, at, layout.checksum - at)


def _single(datagram: memoryview, offset: int, mtu: int, sums: Sums) -> Write:
    """Return the write of one datagram as it came; what a namespace's kernel left unfinished is declared so."""
    packet = datagram[offset:]
    layout = read_layout(packet)
    if layout is None:
        return PLAIN, [packet], datagram
    at, field = layout.transport, layout.checksum
    pseudo = pseudo_sum(_addresses(packet, 0, layout), layout.protocol, len(packet) - at)
    check = packet[field] << 8 | packet[field + 1]
    unfinished = check != 0 and not complement(check - pseudo)
    if layout.protocol == TCP and len(packet) > mtu > layout.header:
        right = unfinished or not complement(sums.total(packet, at, len(packet)) + pseudo)
        if right and (layout.version == 6 or not complement(int.from_bytes(packet[:at], "big"))):
            header = bytearray(packet[: layout.header])
            vnet = _super(header, layout, len(packet), mtu - layout.header)
            return vnet, [bytes(header), packet[layout.header :]], datagram
    elif unfinished:
        return VNET.pack(NEEDS_CSUM, GSO_NONE, layout.header, 0, at, field - at), [packet], datagram
    return PLAIN, [packet], datagram
