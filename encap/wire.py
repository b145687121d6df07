"""The UDP socket of the userspace data plane: batches of equal datagrams out and in, one system call each.

Not what is in the datagrams (frame.py), nor whose they are (forward.py).

- Out: one buffer of up to 64 segments and a UDP_SEGMENT control message. A device without checksum offload answers EIO,
  a segment above the interface's MTU EINVAL: then datagram by datagram.
- In: UDP_GRO coalesces datagrams of one sender; a control message tells the size of each.
- DF stays clear on the outer packet and path MTUs from ICMP are not believed (IP_PMTUDISC_OMIT): as the kernel's VXLAN
  does it, a hop with a smaller MTU fragments and does not silently drop; and nobody shrinks our tunnel by forged ICMP.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

# asm-generic/socket.h, linux/udp.h, linux/in.h, linux/in6.h; not in Python 3.11's socket module.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
UDP_SEGMENT = 103
UDP_GRO = 104
IP_MTU_DISCOVER, IP_PMTUDISC_OMIT = 10, 5
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_OMIT = 23, 5

MAX_SEGMENTS = 64
MAX_PAYLOAD = 65507
"""Bytes in one send over IPv4: 65535 less the IP and UDP headers."""

RECEIVE_SIZE = 65535
SOCKET_BUFFER = 8 << 20
"""Bytes of kernel memory each way: some milliseconds of a fast sender, while this process is not scheduled."""

INT = struct.Struct("i")
SHORT = struct.Struct("H")

Endpoint = tuple[str, int]
"""Address and UDP port, as sockets show them."""


class WireError(Exception):
    """The socket cannot be had; the text says why and what to do."""


class Wire:
    """A non-blocking UDP socket bound to the underlay address and port. Raises WireError if it cannot be bound.

    `segmentation` tells whether batches are sent in one call, `coalescing` whether they are received so.
    """

    def __init__(self, local: IPv4Address | IPv6Address, port: int) -> None:
        self.segmentation = self.coalescing = True
        self._socket = socket.socket(socket.AF_INET if local.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        try:
            self._socket.bind((str(local), port))
        except OSError as error:
            self._socket.close()
            raise WireError(
                f"cannot bind UDP {local} port {port}: {error.strerror}; the address must be this host's, "
                "and no other process or VXLAN device may have the port (ss -lun, ip -d link)"
            ) from error
        self._socket.setblocking(False)
        self._configure(local.version)
        self._control_size = socket.CMSG_SPACE(4)

    @property
    def receive_buffer(self) -> int:
        """Return how many bytes of kernel memory wait for us at most."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def receive_into(self, buffer: bytearray) -> tuple[int, int, Endpoint]:
        """Receive datagrams of one sender: bytes in all, bytes of each (the last may be shorter), the sender.

        Raises BlockingIOError if there is nothing.
        """
        size, control, _flags, sender = self._socket.recvmsg_into((buffer,), self._control_size)
        for level, kind, data in control:
            if kind == UDP_GRO and level == socket.IPPROTO_UDP:
                return size, INT.unpack_from(data)[0], sender
        return size, size, sender

    def capacity(self, size: int) -> int:
        """Return how many bytes of datagrams of `size` bytes one send takes."""
        return size * max(1, min(MAX_SEGMENTS, MAX_PAYLOAD // size)) if self.segmentation else size

    def send(self, parts: Sequence[bytes | memoryview], size: int, to: Endpoint) -> None:
        """Send up to a capacity of datagrams of `size` bytes, back to back in `parts`; the last may be shorter.

        Raises OSError, BlockingIOError among them: what was not sent by then is lost.
        """
        if self.segmentation:
            control = ((socket.IPPROTO_UDP, UDP_SEGMENT, SHORT.pack(size)),)
            try:
                self._socket.sendmsg(parts, control, 0, to)
                return
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                    raise
                # EIO is a property of the egress device; the others come from this peer's path being too narrow.
                self.segmentation = error.errno != errno.EIO
        whole = b"".join(parts)
        for start in range(0, len(whole), size):
            self._socket.sendto(whole[start : start + size], to)

    def _configure(self, version: int) -> None:
        option = self._socket.setsockopt
        for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                option(socket.SOL_SOCKET, forced, SOCKET_BUFFER)
            except PermissionError:
                option(socket.SOL_SOCKET, plain, SOCKET_BUFFER)  # bounded by net.core.rmem_max and wmem_max
        if version == 4:
            option(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
        else:
            option(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_OMIT)
        # Linux before 4.18 cannot segment, before 5.0 not coalesce: datagram by datagram then.
        self.segmentation = self._try(UDP_SEGMENT, 0)
        self.coalescing = self._try(UDP_GRO, 1)

    def _try(self, kind: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, kind, value)
        except OSError:
            return False
        return True
