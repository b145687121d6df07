"""The UDP sockets of the userspace data plane: batches of equal datagrams out and in, one system call each.

Not what is in the datagrams (encap/packet/frame.py), nor whose they are (forward.py).

- One socket for each lane, all with one port (SO_REUSEPORT). The lane of a datagram is its source port modulo their
  number: a kernel VTEP takes another port for each flow, and we another for each lane, so a flow stays on one lane.

- Out: one buffer of up to 64 segments and a UDP_SEGMENT control message. A device without checksum offload answers EIO,
  a segment that the path does not carry whole EINVAL or EMSGSIZE: then datagram by datagram.
- In: UDP_GRO coalesces datagrams of one sender; a control message tells the size of each.
- Over IPv4 DF stays clear and path MTUs from ICMP are not believed (IP_PMTUDISC_OMIT): a hop with a smaller MTU
  fragments, as it does with the kernel's VXLAN, and nobody shrinks our tunnel by forged ICMP. IPv6's routers never
  fragment, so there they are believed (IPV6_PMTUDISC_DONT): the kernel keeps them, 1280 bytes at the least, and
  fragments here. `narrow` tells where that happens to batches, so that senders can be told (peertable.py).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address

from flanneld_py.encap import socketfilter
from flanneld_py.encap.datapath.peertable import Endpoint
from flanneld_py.encap.packet.ecn import CE, NOT_ECT

# asm-generic/socket.h, linux/udp.h, linux/in.h, linux/in6.h; not in Python 3.11's socket module.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SO_MEMINFO, SK_MEMINFO_DROPS, SK_MEMINFO_VARS = 55, 8, 9  # linux/sock_diag.h
IP_TOS, IP_RECVTOS = 1, 13
IPV6_TCLASS, IPV6_RECVTCLASS = 67, 66
UDP_SEGMENT = 103
UDP_GRO = 104
IP_MTU_DISCOVER, IP_PMTUDISC_OMIT = 10, 5
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT = 23, 0
IP_MTU, IPV6_MTU = 14, 24

MAX_SEGMENTS = 64
MAX_PAYLOAD = 65507
"""Bytes in one send over IPv4: 65535 less the IP and UDP headers."""

RECEIVE_SIZE = 65535
SOCKET_BUFFER = 8 << 20
"""Bytes of kernel memory each way: some milliseconds of a fast sender, while this process is not scheduled."""

SKF_NET_OFF = 0x100000000 - 0x100000
"""Offsets from the network header begin here (linux/filter.h)."""
SOURCE_PORT = {4: 20, 6: 40}
"""Where it is behind an IP header without options. With options another lane is chosen, and that is all."""

INT = struct.Struct("I")
SHORT = struct.Struct("H")


REFUSED_SENDS = 1000
"""After so many sends datagram by datagram, for a device that takes no batch, it is asked again: it may be another."""

TRIES = 64
"""Ports that are asked for, for each lane: the kernel offers them at random."""


class WireError(Exception):
    """The socket cannot be had; the text says why and what to do."""


def open_wires(local: IPv4Address | IPv6Address, port: int, count: int, *, spread: bool) -> list[Wire]:
    """Return so many lanes' ends at one underlay address and port. Raises WireError.

    `spread` has each lane send from a port of its own, as kernel VTEPs do; else all send from `port`.
    """
    _bound(local, port).close()  # Sharing a port hides that another process has it: this shows it.
    with ExitStack() as opened:
        receivers = [opened.enter_context(_bound(local, port, shared=True)) for _ in range(count)]
        _steer(receivers[0], local.version, count)
        senders = receivers
        if spread:
            senders = _senders(local, count, opened)
        wires = [Wire(receiver, sender) for receiver, sender in zip(receivers, senders, strict=True)]
        opened.pop_all()
    return wires


def _bound(local: IPv4Address | IPv6Address, port: int, *, shared: bool = False) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_INET if local.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError as error:
        raise WireError(f"cannot open a UDP socket for {local} port {port}: {error.strerror}") from error
    try:
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((str(local), port))
    except OSError as error:
        opened.close()
        raise WireError(
            f"cannot bind UDP {local} port {port}: {error.strerror}; the address must be this host's, "
            "and no program or VXLAN device may have the port (ss -lunp, ip -d link show type vxlan): end that one, or "
            "choose another Backend.Port for all hosts"
        ) from error
    opened.setblocking(False)
    return opened


def _steer(receiver: socket.socket, version: int, count: int) -> None:
    """Have the kernel choose the lane by source port; it goes by a hash of its own if it cannot."""
    source_port = SKF_NET_OFF + SOURCE_PORT[version]
    with suppress(OSError):
        socketfilter.attach(
            receiver,
            socketfilter.SO_ATTACH_REUSEPORT_CBPF,
            [
                (socketfilter.LOAD_HALF, source_port, 0),
                (socketfilter.MODULO, count, 0),
                (socketfilter.RETURN_ACCUMULATOR, 0, 0),
            ],
        )


def _senders(local: IPv4Address | IPv6Address, count: int, opened: ExitStack) -> list[socket.socket]:
    """Return a socket for each lane, with a port that peers put on it; `opened` closes them."""
    lanes: dict[int, socket.socket] = {}
    for _ in range(TRIES * count):
        sender = _bound(local, 0)
        if lanes.setdefault(sender.getsockname()[1] % count, sender) is not sender:
            sender.close()
            continue
        opened.enter_context(sender)
        if len(lanes) == count:
            return [lanes[lane] for lane in range(count)]
    raise WireError(
        f"cannot find a free UDP port at {local} for each of {count} lanes: "
        "widen net.ipv4.ip_local_port_range, or take fewer --datapath-workers"
    )


class Wire:
    """One lane's end at the underlay: a socket to receive and one to send, which may be the same; non-blocking.

    `segmentation` tells whether batches are sent in one call, `coalescing` whether they are received so, `narrow` to
    whom a batch could not be: whoever looks empties it.
    """

    def __init__(self, receiver: socket.socket, sender: socket.socket) -> None:
        self._socket = receiver
        self._sender = sender
        self._control_size = 2 * socket.CMSG_SPACE(4)
        _configure(sender)
        if receiver is not sender:
            _configure(receiver)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # Nobody reads there.
        # Linux before 4.18 cannot segment, before 5.0 not coalesce: datagram by datagram then.
        self.segmentation = _try(sender, UDP_SEGMENT, 0)
        self.coalescing = _try(receiver, UDP_GRO, 1)
        self.narrow: set[Endpoint] = set()
        self._refused = 0

    @property
    def receive_buffer(self) -> int:
        """Return how many bytes of kernel memory wait for us at most."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def overflowed(self) -> int:
        """Return how many datagrams were lost as that memory was full; 0 where Linux (before 4.12) does not tell."""
        try:
            told = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * SK_MEMINFO_VARS)
        except OSError:
            return 0
        return INT.unpack_from(told, 4 * SK_MEMINFO_DROPS)[0] if len(told) == 4 * SK_MEMINFO_VARS else 0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def sender_fileno(self) -> int:
        """Return the descriptor that datagrams leave by."""
        return self._sender.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()
        self._sender.close()

    def receive_into(self, buffer: memoryview) -> tuple[int, int, Endpoint, int]:
        """Receive datagrams of one sender: bytes in all, of each (the last may be shorter), sender, ECN codepoint.

        Raises BlockingIOError if there is nothing.
        """
        size, control, _flags, sender = self._socket.recvmsg_into((buffer,), self._control_size)
        each, codepoint = size, NOT_ECT
        for level, kind, data in control:
            if kind == UDP_GRO and level == socket.IPPROTO_UDP:
                (each,) = INT.unpack_from(data)
            elif (level, kind) in ((socket.IPPROTO_IP, IP_TOS), (socket.IPPROTO_IPV6, IPV6_TCLASS)):
                codepoint = (data[0] if len(data) == 1 else INT.unpack_from(data)[0]) & CE
        return size, each, sender, codepoint

    def capacity(self, size: int) -> int:
        """Return how many bytes of datagrams of `size` bytes one send takes."""
        return size * max(1, min(MAX_SEGMENTS, MAX_PAYLOAD // size)) if self.segmentation else size

    def send_one(self, datagram: bytes, to: Endpoint, codepoint: int) -> None:
        """Send one datagram with an ECN codepoint. Raises OSError: then it is lost."""
        if codepoint:
            self._sender.sendmsg((datagram,), (self._marked(codepoint),), 0, to)
        else:
            self._sender.sendto(datagram, to)

    def _marked(self, codepoint: int) -> tuple[int, int, bytes]:
        v4 = self._sender.family == socket.AF_INET
        return (*((socket.IPPROTO_IP, IP_TOS) if v4 else (socket.IPPROTO_IPV6, IPV6_TCLASS)), INT.pack(codepoint))

    def path_mtu(self, to: Endpoint) -> int:
        """Return the largest packet, in bytes with its IP header, that the kernel knows the way to take whole.

        Raises OSError if there is no way.
        """
        with socket.socket(self._sender.family, socket.SOCK_DGRAM) as asked:
            asked.bind((self._sender.getsockname()[0], 0))
            asked.connect(to)
            if asked.family == socket.AF_INET:
                return asked.getsockopt(socket.IPPROTO_IP, IP_MTU)
            return asked.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)

    def send(self, parts: Sequence[bytes | memoryview], size: int, to: Endpoint, codepoint: int) -> None:
        """Send up to a capacity of datagrams of `size` bytes, back to back in `parts`; the last may be shorter.

        All get one ECN codepoint.

        Raises OSError, BlockingIOError among them: what was not sent by then is lost.
        """
        if self.segmentation or self._refused >= REFUSED_SENDS:
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, SHORT.pack(size))]
            if codepoint:
                control.append(self._marked(codepoint))
            try:
                self._sender.sendmsg(parts, control, 0, to)
                self.segmentation = True
                return
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    raise
                # EIO is a property of the egress device; the others come from this peer's path being too narrow.
                self.segmentation = error.errno != errno.EIO
                self._refused = 0
                if self.segmentation:
                    self.narrow.add(to)
        self._refused += not self.segmentation
        whole = b"".join(parts)
        for start in range(0, len(whole), size):
            self.send_one(whole[start : start + size], to, codepoint)


def _configure(end: socket.socket) -> None:
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            end.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)  # bounded by net.core.rmem_max and wmem_max
    if end.family == socket.AF_INET:
        end.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        end.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
    else:
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        end.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)


def _try(end: socket.socket, kind: int, value: int) -> bool:
    try:
        end.setsockopt(socket.IPPROTO_UDP, kind, value)
    except OSError:
        return False
    return True
