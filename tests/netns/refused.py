"""Run a command to which the kernel refuses something, by a seccomp filter: `... refused <what> <command> ...`.

    sendmsg    sendmsg(2) fails with EIO: what UDP_SEGMENT gets where the underlay's device finishes no checksums; since
               Linux 6.11 the kernel does that itself. Datagrams one by one go through sendto(2), which works.
    uso        a TUN device takes no UDP super-packets: TUNSETOFFLOAD with them fails with EINVAL, as before Linux 6.2.

So a new kernel is made to say what an old one says.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from flanneld_py.encap.datapath.tun import F_USO4, F_USO6, TUNSETOFFLOAD

SENDMSG = {"x86_64": 46, "aarch64": 211}
IOCTL = {"x86_64": 16, "aarch64": 29}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
BPF_LOAD_WORD, BPF_JUMP_IF_EQUAL, BPF_JUMP_IF_ANY, BPF_RETURN = 0x20, 0x15, 0x45, 0x06
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
NUMBER, SECOND, THIRD = 0, 24, 32
"""Where the system call's number is (linux/seccomp.h), and the lower halves of its arguments."""

Step = tuple[int, int, int, int]


def steps(what: str) -> tuple[Step, ...]:
    """Return the filter: each step's code, how many to skip if it holds and if not, and its operand."""
    machine = os.uname().machine
    match what:
        case "sendmsg":
            return (
                (BPF_LOAD_WORD, 0, 0, NUMBER),
                (BPF_JUMP_IF_EQUAL, 0, 1, SENDMSG[machine]),
                (BPF_RETURN, 0, 0, RET_ERRNO | errno.EIO),
                (BPF_RETURN, 0, 0, RET_ALLOW),
            )
        case "uso":
            return (
                (BPF_LOAD_WORD, 0, 0, NUMBER),
                (BPF_JUMP_IF_EQUAL, 0, 5, IOCTL[machine]),
                (BPF_LOAD_WORD, 0, 0, SECOND),
                (BPF_JUMP_IF_EQUAL, 0, 3, TUNSETOFFLOAD),
                (BPF_LOAD_WORD, 0, 0, THIRD),
                (BPF_JUMP_IF_ANY, 0, 1, F_USO4 | F_USO6),
                (BPF_RETURN, 0, 0, RET_ERRNO | errno.EINVAL),
                (BPF_RETURN, 0, 0, RET_ALLOW),
            )
    raise ValueError(f"what is to be refused is sendmsg or uso, not {what}")


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main(what: str, *command: str) -> None:
    program = Program(len(steps(what)), b"".join(struct.pack("HBBI", *step) for step in steps(what)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel takes no seccomp filter")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
