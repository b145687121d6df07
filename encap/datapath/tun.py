"""The TUN device of the userspace data plane: opened, its offloads switched on, packets read and written.

Also how many packets wait in it at most. Not its address, routes, MTU or state: those the agent sets through netlink.
The device lives as long as its file descriptors: when the process ends, device and routes are gone.

A device has queues, a descriptor each. The kernel gives all packets of a flow to the queue into which the flow's
packets of the other direction were written last, and goes by a hash as long as there are none.

Every packet that is read or written has a virtio header in front (10 bytes, native order; linux/virtio_net.h):

    flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16

With offloads the kernel hands over super-packets of up to 64 KiB and checksums to be completed, and takes the same.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from flanneld_py.encap.datapath.gather import Train, gather
from flanneld_py.encap.packet.virtio import VNET_HEADER

SIOCSIFTXQLEN = 0x8943  # linux/sockios.h
TX_DROPPED = 11
"""Where that is among the numbers of a device in /proc/net/dev."""

QUEUE_LENGTH = 2000
"""Packets that wait in each queue at most: bursts of a thousand, and what else comes meanwhile. The kernel's is 500."""

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
IFF_TUN_EXCL = 0x8000
F_CSUM, F_TSO4, F_TSO6, F_USO4, F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40

LADDER = (
    (F_CSUM | F_TSO4 | F_TSO6 | F_USO4 | F_USO6, ("csum", "tso4", "tso6", "uso4", "uso6")),
    (F_CSUM | F_TSO4 | F_TSO6, ("csum", "tso4", "tso6")),
    (F_CSUM, ("csum",)),
    (0, ()),
)
"""What to ask for, the most first: USO came with Linux 6.2."""


class TunError(Exception):
    """The device cannot be had; the text says why and what to do."""


class TunTaken(TunError):
    """A device of that name is there already."""


class Tun:
    """A queue of a TUN device, non-blocking: the `first` makes the device. Raises TunError if it cannot be had."""

    def __init__(self, device: str, *, first: bool) -> None:
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TunError(
                f"cannot open /dev/net/tun for device {device}: {error.strerror}; "
                "the kernel's tun module must be loaded (modprobe tun), and it takes root"
            ) from error
        try:
            self._attach(device, IFF_TUN_EXCL if first else 0)
            self.offloads = self._enable_offloads()
        except BaseException:
            os.close(self._fd)
            raise
        self.device = device
        self.first = first

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._fd

    def close(self) -> None:
        """Close it: with its last queue the device disappears."""
        os.close(self._fd)

    @property
    def overflowed(self) -> int:
        """Return how many packets were lost as their queue was full, of all queues of the device; 0 if it is gone."""
        for line in Path("/proc/self/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self.device:
                return int(numbers.split()[TX_DROPPED])
        return 0

    def gather(self, buffer: memoryview, most: int, have: int) -> list[Train]:
        """Read up to `most` packets with their virtio headers, after `have` bytes (gather.py). Raises OSError."""
        return gather(self._fd, buffer, most, have)

    def write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write one virtio header and packet in parts. Raises OSError: EIO if the device is down, EINVAL if refused."""
        os.writev(self._fd, parts)

    def _attach(self, device: str, exclusive: int) -> None:
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE | exclusive
        try:
            fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
            fcntl.ioctl(self._fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                fcntl.ioctl(asked, SIOCSIFTXQLEN, struct.pack("16si20x", device.encode(), QUEUE_LENGTH))
        except OSError as error:
            if error.errno == errno.EBUSY:  # Without IFF_TUN_EXCL we would share it with the process that has it.
                raise TunTaken(
                    f"device {device} exists and is no TUN device of ours: stop the process that holds it, "
                    f"or remove it (ip link del {device})"
                ) from error
            raise TunError(f"cannot make the TUN device {device}: {error.strerror}") from error

    def _enable_offloads(self) -> tuple[str, ...]:
        for flags, names in LADDER:
            try:
                fcntl.ioctl(self._fd, TUNSETOFFLOAD, flags)
            except OSError:
                continue  # this kernel knows less: the next rung
            return names
        return ()
