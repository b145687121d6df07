"""Run a command for which sendmsg(2) fails with EIO, by a seccomp filter: `... without_sendmsg <command> ...`.

EIO is what UDP_SEGMENT gets where the underlay's device finishes no checksums; since Linux 6.11 the kernel does that
itself, so a new kernel has to be made to say it. Datagrams one by one go through sendto(2), which works.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

SENDMSG = {"x86_64": 46, "aarch64": 211}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
BPF_LOAD_WORD, BPF_JUMP_IF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main(command: list[str]) -> None:
    steps = (
        (BPF_LOAD_WORD, 0, 0, 0),  # the number of the system call
        (BPF_JUMP_IF_EQUAL, 0, 1, SENDMSG[os.uname().machine]),
        (BPF_RETURN, 0, 0, RET_ERRNO | errno.EIO),
        (BPF_RETURN, 0, 0, RET_ALLOW),
    )
    program = Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel takes no seccomp filter")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
