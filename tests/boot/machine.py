"""A Debian that boots, in systemd-nspawn, on the underlay bridge of a lab.

    a release's folder (debian.py), mounted -> network, packages -> boot -> commands inside -> reboot … -> gone

What is run inside enters the namespaces of the machine's PID 1. Its network namespace is made anew by each boot, so
what the kernel knew is gone, as on a real host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from tests.boot import debian
from tests.lab.namespace import LabError, Namespace
from tests.lab.remains import CGROUPS, remove_cgroups
from tests.patience import patient, within

PROPAGATED = Path("/run/systemd/nspawn/propagate")
BOOT_SECONDS = 60.0
REBOOTS = 133
"""Exit code of nspawn with --keep-unit when the machine asks for a reboot: whoever started it does so again."""
NETWORK = """\
[Match]
Name={interface}
[Network]
Address={address}/24
LinkLocalAddressing=no
"""
ROUTE = "Gateway={gateway}\n"
NAT_ADDRESS, NAT_GATEWAY = IPv4Address("10.0.2.15"), IPv4Address("10.0.2.2")
"""What VirtualBox gives every machine."""


@dataclass(slots=True)
class Machine:
    """One machine; `address` is on the underlay, `core` the namespace with the bridge br0. `boot` it first.

    Its default route goes to `gateway` on the underlay; without one through a second interface, nat0, as Vagrant gives
    one: all machines have the same address there, and none reaches another.
    """

    name: str
    core: Namespace
    directory: Path
    address: IPv4Address
    gateway: IPv4Address | None
    release: str = debian.RELEASE
    udev: bool = False
    """Run udev, as a real host does: then /sys and /proc/sys can be written from inside."""
    more: debian.More = debian.PLAIN
    """What else it has, none of it enabled."""
    _nspawn: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """Its file system."""
        return self.directory / self.name

    @property
    def console(self) -> Path:
        """What it says on its console."""
        return self.directory / f"{self.name}.console"

    def boot(self) -> None:
        """Make it and boot it. Raises LabError."""
        self.start()
        self.wait_booted()

    @property
    def _outside(self) -> str:
        """The end of nat0 that is not in the machine."""
        return f"nat-{self.name.rpartition('-')[2]}"

    def start(self) -> None:
        """Make it and let it boot. Raises LabError."""
        debian.mount(debian.booted(self.release, self.more), self.root)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        # As Debian's installer does; else sudo asks a name server, and there is none.
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/machine-id").write_text("")
        for file in (self.root / "usr/lib/sysctl.d").glob("*.conf") if self.udev else ():
            file.unlink()  # They set what is this machine's, and not only inside.
        networks = self.root / "etc/systemd/network"
        underlay = NETWORK.format(interface="host0", address=self.address)
        if self.gateway is None:
            nat = NETWORK.format(interface="nat0", address=NAT_ADDRESS) + ROUTE.format(gateway=NAT_GATEWAY)
            (networks / "10-nat0.network").write_text(nat)
        else:
            underlay += ROUTE.format(gateway=self.gateway)
        (networks / "10-host0.network").write_text(underlay)
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
        online = self.root / "etc/systemd/system/network-online.target.wants"
        online.mkdir(exist_ok=True)
        (online / "systemd-networkd-wait-online.service").symlink_to(
            "/lib/systemd/system/systemd-networkd-wait-online.service"
        )
        self._spawn()

    def wait_booted(self, after: int = 0) -> None:
        """Wait until it has booted and its PID 1 is another one than `after`. Raises LabError."""
        deadline = within(BOOT_SECONDS)
        while True:
            try:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded") and self.leader() != after:
                    return
            except LabError:
                state = "not there"
            if time.monotonic() > deadline:
                raise LabError(
                    f"{self.name} has not booted within {patient(BOOT_SECONDS):g} s ({state}); "
                    f"its console:\n{self.said()}"
                )
            time.sleep(0.1)

    def reboot(self) -> None:
        """Reboot it. Raises LabError, also if it does not end for that."""
        assert self._nspawn is not None
        before = self.leader()
        self.run("systemctl", "reboot", check=False)
        try:
            code = self._nspawn.wait(patient(BOOT_SECONDS))
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name} does not go down for its reboot; its console:\n{self.said()}") from error
        if code != REBOOTS:
            raise LabError(f"{self.name} ended with {code} instead of rebooting; its console:\n{self.said()}")
        self._spawn()
        self.wait_booted(before)

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside. Raises LabError on a non-zero exit code if `check`, and after `timeout` seconds."""
        try:
            done = subprocess.run(
                self.command(*argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patient(timeout),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"`{' '.join(argv)}` on {self.name} did not end within {patient(timeout):g} s") from error
        if check and done.returncode != 0:
            said = (done.stderr + done.stdout).strip()
            raise LabError(f"`{' '.join(argv)}` on {self.name} failed with exit code {done.returncode}: {said}")
        return done

    def command(self, *argv: str) -> list[str]:
        """Return the command out here that runs `argv` inside. Raises LabError."""
        enter = ["nsenter", "--target", str(self.leader()), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        clean = ["env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TERM=dumb"]
        return [*enter, *clean, *argv]

    def ask(self, *argv: str) -> str:
        """Return what a command inside prints, stripped. Raises LabError."""
        return self.run(*argv).stdout.strip()

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit as systemd has them now."""
        shown = self.ask("systemctl", "show", name, f"--property={','.join(properties)}")
        return dict(line.split("=", 1) for line in shown.splitlines())

    def said(self, lines: int = 40) -> str:
        """The end of its console and of the agent's journal."""
        console = self._console_text().splitlines()[-lines:]
        try:
            journal = self.run("journalctl", "-u", "flanneld-py*", "--no-pager", "-n", str(lines), check=False).stdout
        except LabError:
            journal = ""
        return "\n".join([*console, journal])

    def _console_text(self) -> str:
        # A machine that could not be made has none.
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def leader(self) -> int:
        """Its PID 1, as seen from here. Raises LabError if it does not run."""
        # nspawn -> the boot's PID 1; there is none between two boots.
        if self._nspawn is None or self._nspawn.poll() is not None:
            raise LabError(f"{self.name} does not run; its console:\n{self._console_text()}")
        children = _words(Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children"))
        for child in children:
            if Path(f"/proc/{child}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink():
                return int(child)
        raise LabError(f"{self.name} is not booting yet")

    def _spawn(self) -> None:
        command = ["systemd-nspawn", "--quiet", "--boot", "--directory", self.root, "--machine", self.name]
        command += ["--network-bridge=br0", "--bind=/dev/net/tun", "--register=no", "--keep-unit"]
        command += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"]
        command += [f"--system-call-filter={' '.join(self.more.calls)}"] if self.more.calls else []
        command += [] if self.gateway else [f"--network-veth-extra={self._outside}:nat0"]
        own = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": str(int(self.udev))}
        # A cgroup of its own: what a machine leaves in a shared one keeps the next from booting.
        remove_cgroups(self.name)
        cgroup = (CGROUPS / "unified" if (CGROUPS / "unified").is_dir() else CGROUPS) / self.name
        cgroup.mkdir()
        joined = ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh", *map(str, command)]
        with self.console.open("ab") as console:
            self._nspawn = self.core.popen(joined, stdout=console, stderr=console, env={**os.environ, **own})
        if self.gateway is None:
            deadline = within(BOOT_SECONDS)
            while self.core.run(["ip", "link", "set", self._outside, "up"], check=False).returncode != 0:
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name} gets no interface nat0; its console:\n{self.said()}")
                time.sleep(0.05)

    def close(self) -> None:
        """Switch it off and remove it."""
        if self._nspawn is not None:
            try:
                os.kill(self.leader(), signal.SIGKILL)
            except (LabError, ProcessLookupError, FileNotFoundError):
                self._nspawn.kill()
            try:
                self._nspawn.wait(patient(10))
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
            self._nspawn = None
            remove_cgroups(self.name)
        with suppress(FileNotFoundError):
            (PROPAGATED / self.name).rmdir()
        debian.unmount(self.root)


def _words(path: Path) -> Sequence[str]:
    try:
        return path.read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return ()
