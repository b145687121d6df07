"""Classic BPF programs on sockets: the kernel asks them about each packet (linux/filter.h)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

SO_ATTACH_FILTER = 26
SO_ATTACH_REUSEPORT_CBPF = 51

LOAD_WORD, LOAD_HALF, MODULO = 0x20, 0x28, 0x94
SKIP_UNLESS_EQUAL = 0x15
RETURN, RETURN_ACCUMULATOR = 0x06, 0x16

Instruction = tuple[int, int, int]
"""Code, operand, and for SKIP_UNLESS_EQUAL how many instructions are skipped."""


def attach(to: socket.socket, option: int, instructions: Sequence[Instruction]) -> None:
    """Attach a program with SO_ATTACH_FILTER or SO_ATTACH_REUSEPORT_CBPF. Raises OSError."""
    program = b"".join(struct.pack("=HBBI", code, 0, skipped, operand) for code, operand, skipped in instructions)
    held = ctypes.create_string_buffer(program, len(program))
    to.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(instructions), ctypes.addressof(held)))
