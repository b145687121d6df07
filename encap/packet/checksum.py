"""One's-complement sums (RFC 1071) of packets, in plain Python.

The sum of 16 bit words modulo 0xffff does not depend on how the words are grouped: so any integer that holds the bytes
is congruent to it, and a sum over 64 KiB is one division. Sums here are such integers, big-endian and not yet reduced:
add them, subtract them, and let `complement` make the field. An odd last byte counts as the high half of a word.
"""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview

_CHUNK = 2048
"""Bytes; chunks are added first, as adding is quicker than dividing."""


def total(buffer: Buffer, start: int, stop: int) -> int:
    """Return the sum of buffer[start:stop]."""
    chunks = (int.from_bytes(buffer[at : min(at + _CHUNK, stop)], "little") for at in range(start, stop, _CHUNK))
    return sum(chunks) % 0xFFFF << 8


def complement(total: int) -> int:
    """Return the checksum field for a sum: 0 to 0xfffe (UDP writes 0 as 0xffff, RFC 768)."""
    return -total % 0xFFFF


def pseudo_sum(addresses: Buffer, protocol: int, length: int) -> int:
    """Return the sum of the pseudo-header (RFC 793, RFC 8200 section 8.1) for both addresses, packed, 8 or 32 bytes."""
    return int.from_bytes(addresses, "big") % 0xFFFF + protocol + length
