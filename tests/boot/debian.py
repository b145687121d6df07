"""Debian's releases as folders: one that boots, and one that builds the package for it.

    booted:   mmdebstrap, once -> build/boot/<release>-<what is in it>, kept for the next run
    builder:  likewise; the clone laid over it -> deploy/debian/build -> the package

No release has to be this machine's own: where apt gets Debian from, there are the others as well.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.namespace import LabError
from tests.patience import patient

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "build/boot"
STABLE, OLDSTABLE = "trixie", "bookworm"
RELEASE = os.environ.get("FLANNELD_PY_RELEASE", STABLE)
"""What the tests boot, by its codename."""
INCLUDED = (
    "dbus,etcd-client,etcd-server,iproute2,iptables,iputils-ping,nftables,procps,python3,sudo,systemd,systemd-sysv,udev"
)
SWITCHED_OFF = 'systemctl --root="$1" --quiet disable etcd'
"""What Debian's packages enable, and only the machine that wants it should have."""
BUILDING = "gcc,libc6-dev,python3-dev,python3-venv"
TRUST = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pip.conf"))
"""Whom pip believes, and its settings: this machine's, wherever it has them."""


@dataclass(frozen=True, slots=True)
class More:
    """What a booted Debian has beside what every host needs, and which of its units are not to start by themselves."""

    packages: Sequence[str] = ()
    off: Sequence[str] = ()
    calls: Sequence[str] = ()
    """System calls that systemd-nspawn otherwise keeps from a machine."""


PLAIN = More()
MANAGERS = More(
    packages=("dhcpcd", "firewalld", "network-manager", "ufw"),
    off=("dhcpcd", "firewalld", "NetworkManager", "NetworkManager-dispatcher", "NetworkManager-wait-online", "ufw"),
)
"""Those who set up interfaces and packet filters beside networkd."""
ENGINES = More(
    packages=("crun", "docker-cli", "docker-compose", "docker.io", "netavark", "podman"),
    off=("containerd", "docker.service", "docker.socket"),
    calls=("add_key", "keyctl", "bpf"),
)
"""Docker with its own compose, and a podman that knows quadlets: on Debian 13 and newer."""


def booted(release: str, more: More = PLAIN) -> Path:
    """Return the folder of a Debian with what a host needs, made if it is not there. Raises LabError."""
    return _root(release, ",".join((INCLUDED, *more.packages)), " ".join((SWITCHED_OFF, *more.off)))


def build(release: str, folder: Path) -> Path:
    """Build the package on that release, and return it; `folder` gets whatever is written. Raises LabError."""
    command = ["systemd-nspawn", "--quiet", "--directory", str(_root(release, BUILDING)), "--volatile=overlay"]
    command += ["--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=replace-host"]
    command += [f"--overlay={ROOT}:{folder}:/clone"]
    command += [f"--bind-ro={file}" for file in TRUST if file.exists()]
    done = subprocess.run(
        [*command, "/clone/deploy/debian/build"],
        capture_output=True,
        text=True,
        timeout=patient(300),
        check=False,
        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
    )
    if done.returncode != 0:
        raise LabError(f"the package cannot be built on Debian {release}: {done.stderr.strip()}")
    return folder / done.stdout.strip()


def mount(image: Path, place: Path) -> None:
    """Make a folder that shows a Debian to boot; what is changed in it is kept beside it. Raises LabError."""
    changes = _changes(place)
    for made in (place, changes / "upper", changes / "work"):
        made.mkdir(parents=True)
    options = f"lowerdir={image},upperdir={changes}/upper,workdir={changes}/work"
    _run("mount", "-t", "overlay", "-o", options, "overlay", str(place))


def unmount(place: Path) -> None:
    """Remove such a folder and the changes; absent is no error. Raises LabError."""
    if place.is_mount():
        _run("umount", "--lazy", str(place))
    _run("rm", "-rf", "--one-file-system", str(place), str(_changes(place)))


def _changes(place: Path) -> Path:
    return place.with_name(f"{place.name}.changes")


def mirror() -> str:
    """Find the archive that this machine's apt uses for Debian itself. Raises LabError."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN)", "Created-By: Packages"]
    return archive(_run(*targets))


def archive(targets: str) -> str:
    """Find Debian's among apt's index targets: lines of URI, codename, origin. Raises LabError.

    Security, updates and backports have codenames of two words; the archive of a release has every other release too.
    """
    for line in targets.splitlines():
        address, codename, origin = line.split(" ", 2)
        if origin == "Debian" and codename and "-" not in codename:
            return address
    raise LabError("apt on this machine knows no Debian: run apt-get update, on a Debian")


def _root(release: str, packages: str, hook: str = "") -> Path:
    key = hashlib.sha256(f"{packages} {hook}".encode()).hexdigest()[:12]
    place = IMAGES / f"{release}-{key}"
    IMAGES.mkdir(parents=True, exist_ok=True)
    # Tests of another process want the same at the same time: one makes it.
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            return place
        unfinished = place.with_name(f"{place.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}"]
        # A snapshot of an archive that moves on (sid) is out of date after a week.
        command += ['--aptopt=Acquire::Check-Valid-Until "false"']
        command += [f"--customize-hook={hook}"] if hook else []
        try:
            _run(*command, release, str(unfinished), mirror())
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(600), check=False)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    return done.stdout
