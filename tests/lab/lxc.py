"""Real LXC on a host of the lab: `lxc-net` with deploy/lxc-net, and containers of `lxc-create -t busybox`.

LXC's tools have no options for where lxc-net keeps its state and its settings. So they run in a mount namespace of the
host, where these paths are the host's own:

    /etc/default/lxc-net          deploy/lxc-net, which reads
    /run/flannel/subnet.env       the agent's
    /run, /var/lib/misc           empty: bridge's mark, dnsmasq's pid and leases
    /sys                          of the host's network namespace, where the tools look for the bridge; same cgroups

Containers' processes are in the run's cgroup, so that they are found and ended whatever happens to LXC.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from tests.lab.host import Container, Host
from tests.lab.image import WAIT
from tests.lab.namespace import LabError
from tests.patience import patient, within

LXC_NET = "/usr/libexec/lxc/lxc-net"
SETTINGS = Path(__file__).parents[2] / "deploy/lxc-net"
HOST, EMPTY = "lxc.net.0.type = none", "lxc.net.0.type = empty"
"""The host's own network, and none."""

# A mount that is to stay visible is put aside on /mnt, and moved back when what covers it is there.
PREPARE = """
set -e
mount --rbind /sys/fs/cgroup /mnt
mount -t sysfs sysfs /sys
mount --move /mnt /sys/fs/cgroup
mount --bind {here} /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/flannel {here}
mount --move /mnt {here}
mount -t tmpfs tmpfs /var/lib/misc
ln -s {subnet_file} /run/flannel/subnet.env
mount --bind {settings} /etc/default/lxc-net
echo ready
exec sleep infinity
"""


class Lxc:
    """LXC of one host, whose agent is ready."""

    def __init__(self, host: Host, cgroup: str) -> None:
        self.host = host
        self._cgroup = cgroup
        self._containers: list[str] = []
        self._holder: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the bridge with the host's subnet. Raises LabError."""
        self.prepare()
        self.tool(LXC_NET, "start")
        mtu = self.host.agent.subnet_env()["FLANNEL_MTU"]
        with self._defaults.open("a") as defaults:
            defaults.write(f"lxc.net.0.mtu = {mtu}\n")

    def prepare(self) -> None:
        """Make the place where LXC's tools run. Raises LabError."""
        here = self.host.directory
        settings = here / "lxc-net"
        # dnsmasq looks for three seconds whether an address is in use before it offers it.
        settings.write_text(f"{SETTINGS.read_text()}LXC_DHCP_PING=false\n")
        debian = Path("/etc/lxc/default.conf").read_text()
        self._defaults.write_text(f"{debian}\nlxc.cgroup.dir = {self._cgroup}\n")
        script = PREPARE.format(here=here, subnet_file=self.host.agent.subnet_file, settings=settings)
        self._holder = self.host.namespace.popen(
            ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as stdout:
            said = stdout.readline().decode()
        if said != "ready\n":
            self.kill()
            raise LabError(f"cannot make a place for LXC on {self.host.name}: {said}")

    def run(self, name: str, *options: str, dhcp: bool = True) -> Container:
        """Make and start a container; `options` are lines for its configuration.

        Its init asks for an address, which is waited for. Without `dhcp` it has no init, and its address is 0.0.0.0:
        busybox's DHCP client takes all addresses from the first interface that it finds, also if that is the host's.
        """
        self.tool("lxc-create", "-P", self._path, "-n", name, "-t", "busybox", "-f", self._defaults)
        with (self._path / name / "config").open("a") as config:
            config.write("".join(f"{line}\n" for line in options))
        self._containers.append(name)
        command = () if dhcp else ("--", *WAIT)
        self.tool("lxc-start", "-P", self._path, "-n", name, "-o", self.host.directory / f"{name}.log", *command)
        pid = int(self.tool("lxc-info", "-P", self._path, "-n", name, "-pH").stdout)
        container = self.host.inside(name, pid, None)
        return replace(container, address=_leased(container)) if dhcp else container

    def execute(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, whatever it comes to."""
        return self.tool("lxc-attach", "-P", self._path, "-n", name, "--", *command, check=False)

    def tool(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of LXC's tools. Raises LabError."""
        if self._holder is None:
            raise LabError(f"LXC on {self.host.name} is not started")
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        return self.host.namespace.run([*enter, *argv], check=check, timeout=60)

    def kill(self) -> None:
        """End the place where LXC's tools run; containers and bridge stay."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def close(self) -> None:
        """End its containers and the bridge; what resists is killed when the lab ends."""
        if self._holder is None:
            return
        for name in self._containers:
            self.tool("lxc-stop", "-P", self._path, "-n", name, "--kill", check=False)
        self.tool(LXC_NET, "stop", check=False)
        self.kill()

    @property
    def _path(self) -> Path:
        return self.host.directory / "lxc"

    @property
    def _defaults(self) -> Path:
        return self.host.directory / "lxc-default.conf"


def _leased(container: Container, timeout: float = 20) -> IPv4Address:
    deadline = within(timeout)
    while time.monotonic() < deadline:
        shown = container.namespace.run(["ip", "-j", "-4", "addr", "show", "dev", "eth0"]).stdout
        for address in (address for link in json.loads(shown) for address in link.get("addr_info", [])):
            return IPv4Address(address["local"])
        time.sleep(0.05)
    raise LabError(f"{container.name} on {container.host} got no address within {patient(timeout):g} s")
