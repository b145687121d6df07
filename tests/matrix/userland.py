"""A Debian userland in a folder, made as a fresh machine is: mmdebstrap, the clone, and then what README says.

What runs in it has a mount, process and network namespace of its own, with loopback and nothing else; everything else
of the kernel is this machine's. Whatever is left running ends with the command.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.matrix.debian import ROOT, MatrixError, command, mirror

FRESH = "ca-certificates,git,make,python3-venv,sudo"
SETTINGS = {"HOME": "/root", "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb"}
PASSED_ON = re.compile(r"PIP_|FLANNELD_PY_PATIENCE$")
CLONE = Path("/root/flanneld-py")
"""Where the clone is, inside."""
OF_THIS_MACHINE = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""What a machine needs for the network, as this one has it."""
# pivot_root and not chroot: a container engine changes its root likewise, and may not below a chroot.
# Names of labs have process ids in them, and cgroups are shared: ids far from those of other labs on this machine.
ENTER = """\
mount --bind {root} {root}; cd {root}
mount -t proc proc proc; mount -t sysfs sys sys; mount -t cgroup2 cgroup sys/fs/cgroup; mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run; mount -t tmpfs -o mode=1777 tmp tmp
mkdir -p run/lock run/netns run/shared .outside; mount --bind {shared} run/shared
echo {first} >proc/sys/kernel/ns_last_pid
[ {network} = yes ] || ip link set lo up
pivot_root . .outside; umount -l .outside
cd {folder}; exec sh -ec {script}
"""


class Userland:
    """One release in its folder; `shared` is /run/shared inside, and has what was said."""

    def __init__(self, release: str, place: Path, shared: Path) -> None:
        self._release = release
        self._place = place
        self._shared = shared

    def prepare(self) -> None:
        """Make it if it is not there, and bring it up to this clone. Raises MatrixError."""
        shutil.rmtree(self._shared, ignore_errors=True)
        self._shared.mkdir(parents=True)
        if not self._place.exists():
            unfinished = self._place.with_name(f"{self._place.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            # A snapshot of an archive that moves on (sid) is out of date after a week.
            options = ["--quiet", "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"']
            command("mmdebstrap", *options, f"--include={FRESH}", self._release, unfinished, mirror())
            (unfinished / CLONE.relative_to("/")).mkdir()
            unfinished.rename(self._place)
        for name in filter(os.path.exists, OF_THIS_MACHINE):
            shutil.copyfile(name, self._place / name[1:])
        left_out = ("/.venv", "/build", "/dist", "/.git", "__pycache__", "*.so", "*.egg-info", ".*_cache")
        command("rsync", "-a", "--delete", *(f"--exclude={each}" for each in left_out), f"{ROOT}/", self._inside(CLONE))
        self.ask("make", "make -s system .venv/ready", network=True, seconds=1200)

    def ask(
        self,
        name: str,
        script: str,
        *,
        environment: Mapping[str, str] | None = None,
        network: bool = False,
        seconds: float = 1800,
    ) -> str:
        """Run a script of sh in the clone and return what it says, also in `<name>.output`. Raises MatrixError."""
        passed_on = {key: value for key, value in os.environ.items() if PASSED_ON.match(key)}
        inside = ENTER.format(
            root=shlex.quote(str(self._place)),
            shared=shlex.quote(str(self._shared)),
            first=20000 + os.getpid() % 10000,
            network="yes" if network else "no",
            folder=CLONE,
            script=shlex.quote(script),
        )
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        namespaces += [] if network else ["--net"]
        output = self._shared / f"{name}.output"
        with output.open("wb") as file:
            try:
                done = subprocess.run(
                    ["unshare", *namespaces, "sh", "-ec", inside],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**passed_on, **SETTINGS, **(environment or {})},
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise MatrixError(f"`{script}` did not end within {seconds:g} s, see {output}") from error
        if done.returncode != 0:
            raise MatrixError(f"`{script}` failed with exit code {done.returncode}, see {output}")
        return output.read_text(errors="replace")

    def _inside(self, path: Path) -> Path:
        return self._place / path.relative_to("/")
