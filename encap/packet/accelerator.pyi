"""The optional C half of the data plane, see accelerator.c; who imports it does without where it is not."""

from mmap import mmap

from flanneld_py.encap.datapath.forward import Remote
from flanneld_py.encap.datapath.relay import FastpathLane
from flanneld_py.encap.packet.checksum import Buffer

def gather(fd: int, buffer: memoryview, most: int, have: int, /) -> list[tuple[int, int, int, int, bytes]]: ...
def segment(train: Buffer, each: int, prefix: Buffer, /) -> tuple[bytes, int]: ...
def coalesce(buffer: memoryview, size: int, offset: int, mtu: int, udp: bool, /) -> list[tuple[bytes, int, int]]: ...
def wait(
    epoll: int,
    lanes: tuple[FastpathLane, ...],
    from_device: memoryview,
    from_wire: memoryview,
    notes: memoryview,
    holds: mmap,
    known: dict[bytes, Remote],
    admitted: dict[tuple[bytes, bytes, bytes], Remote],
    offset: int,
    mtu: int,
    segmentation: bool,
    /,
) -> list[int]: ...
