"""One's-complement sums (RFC 1071) of packets: in plain Python, and quicker where the machine has GMP.

The sum of 16 bit words modulo 0xffff does not depend on how the words are grouped: so any integer that holds the bytes
is congruent to it, and a sum over 64 KiB is one division. Sums here are such integers, big-endian and not yet reduced:
add them, subtract them, and let `complement` make the field. An odd last byte counts as the high half of a word.

    plain Python    3.2 us for 1400 bytes, 63 us for 64 KiB
    GMP             0.4 us for 1400 bytes, 3 us for 64 KiB (mpn_mod_34lsub1: the residue modulo 2^48 - 1)

GMP is on nearly every host (coreutils needs it); it is used by its stable ABI name after it gave the right answers.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from itertools import repeat
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_CHUNK = 2048


class Sums(Protocol):
    """Two sums: over a range, and over each of many ranges of one length that lie at a distance from each other."""

    def total(self, buffer: Buffer, start: int, stop: int) -> int:
        """Return the sum of buffer[start:stop]."""
        ...

    def each(self, buffer: Buffer, start: int, step: int, length: int, count: int) -> list[int]:
        """Return the sums of buffer[at : at + length] for `count` places `at` from `start` on, `step` bytes apart."""
        ...


class PythonSums:
    """The sums by Python's own integers."""

    def total(self, buffer: Buffer, start: int, stop: int) -> int:
        """Return the sum of buffer[start:stop]: chunks are added first, as adding is quicker than dividing."""
        chunks = (int.from_bytes(buffer[at : min(at + _CHUNK, stop)], "little") for at in range(start, stop, _CHUNK))
        return sum(chunks) % 0xFFFF << 8

    def each(self, buffer: Buffer, start: int, step: int, length: int, count: int) -> list[int]:
        """Return the sums of `count` ranges."""
        stop = start + count * step
        return [int.from_bytes(buffer[at : at + length], "little") % 0xFFFF << 8 for at in range(start, stop, step)]


class GmpSums:
    """The sums by GMP. Raises OSError or AttributeError if there is no usable GMP."""

    def __init__(self, library: str = "libgmp.so.10") -> None:
        self._residue = ctypes.PyDLL(library)["__gmpn_mod_34lsub1"]
        self._residue.argtypes = [ctypes.c_void_p, ctypes.c_long]
        self._residue.restype = ctypes.c_ulong
        self._plain = PythonSums()
        sample = bytearray(range(1, 250))
        got, wanted = self.total(sample, 1, 240), self._plain.total(sample, 1, 240)
        if (got - wanted) % 0xFFFF or ctypes.sizeof(ctypes.c_ulong) != 8:
            raise OSError(f"{library} does not sum as expected")

    def total(self, buffer: Buffer, start: int, stop: int) -> int:
        """Return the sum of buffer[start:stop]; what cannot be addressed (bytes) goes the plain way."""
        limbs = stop - start >> 3
        if limbs < 8 or isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly):
            return self._plain.total(buffer, start, stop)
        if not 0 <= start < stop <= len(buffer):
            raise IndexError("a sum outside its buffer")
        tail = int.from_bytes(buffer[start + 8 * limbs : stop], "little")
        residue: int = self._residue(ctypes.addressof(ctypes.c_char.from_buffer(buffer, start)), limbs)
        return residue + tail << 8

    def each(self, buffer: Buffer, start: int, step: int, length: int, count: int) -> list[int]:
        """Return the sums of `count` ranges."""
        limbs, rest = divmod(length, 8)
        if limbs < 8 or isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly):
            return self._plain.each(buffer, start, step, length, count)
        if not 0 <= start <= start + (count - 1) * step + length <= len(buffer) or step < length:
            raise IndexError("a sum outside its buffer")
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer, start))
        residues = map(self._residue, range(base, base + count * step, step), repeat(ctypes.c_long(limbs)))
        if not rest:
            return [residue << 8 for residue in residues]
        pieces = _strided(8 * limbs, rest, step, count).unpack_from(buffer, start)
        return [residue + int.from_bytes(piece, "little") << 8 for residue, piece in zip(residues, pieces, strict=True)]


@lru_cache(1024)
def _strided(skip: int, size: int, step: int, count: int) -> struct.Struct:
    """Return what unpacks `size` bytes after `skip`, `count` times, `step` apart (no bytes beyond the last)."""
    return struct.Struct(f"{skip}x{size}s" + f"{step - size}x{size}s" * (count - 1))


def _fastest() -> Sums:
    """Return the quickest sums that this machine has."""
    try:
        return GmpSums()
    except (OSError, AttributeError):
        return PythonSums()


FASTEST = _fastest()


def complement(total: int) -> int:
    """Return the checksum field for a sum: 0 to 0xfffe (UDP writes 0 as 0xffff, RFC 768)."""
    return -total % 0xFFFF


def pseudo_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """Return the sum of the pseudo-header (RFC 793, RFC 8200 section 8.1) for both addresses, packed, 8 or 32 bytes."""
    return int.from_bytes(addresses, "big") % 0xFFFF + protocol + length
