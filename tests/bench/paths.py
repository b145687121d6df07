"""The paths of packets between two hosts, and one of them built in a lab.

    container h1c1 -> h1 -> [kernel, or a process] -> underlay -> [kernel, or a process] -> h2 -> container h2c1

A further path is one line in PATHS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.bench.process import Cpu, children, cpu, listener, megabytes
from tests.lab.host import Container, Host
from tests.lab.lab import Lab
from tests.lab.namespace import LabError
from tests.lab.topology import Plan


class Carrier(Enum):
    """Who carries the packets on a host."""

    KERNEL = ("--datapath", "kernel")
    USERSPACE = ("--datapath", "userspace")
    DAEMON = ()
    """The daemon itself, in its own process, as flannel's does for its udp backend."""


@dataclass(frozen=True, slots=True)
class PacketPath:
    """A path: the carrier on the first host, which sends, and on the second. `held` if the goals are set for it."""

    name: str
    sender: Carrier
    receiver: Carrier
    backend: str = "vxlan"
    held: bool = False

    @property
    def ours(self) -> bool:
        """Whether our daemon is on it, and not the other one."""
        return Carrier.DAEMON not in (self.sender, self.receiver)


KERNEL = PacketPath("kernel", Carrier.KERNEL, Carrier.KERNEL)
FLANNEL_UDP = PacketPath("flannel-udp", Carrier.DAEMON, Carrier.DAEMON, backend="udp")
PATHS = (
    KERNEL,
    PacketPath("userspace", Carrier.USERSPACE, Carrier.USERSPACE, held=True),
    PacketPath("udp", Carrier.USERSPACE, Carrier.USERSPACE, backend="udp", held=True),
    PacketPath("mixed", Carrier.USERSPACE, Carrier.KERNEL),
    FLANNEL_UDP,
)


@dataclass(frozen=True, slots=True)
class OpenPath:
    """A path that packets take now. `processes` are those that carry them; none where the kernel does."""

    path: PacketPath
    hosts: Sequence[Host]
    source: Container
    target: Container
    processes: tuple[int, ...]

    def cpu(self) -> Cpu:
        """CPU time of the processes so far. Raises LabError if one has ended."""
        try:
            used = [cpu(pid) for pid in self.processes]
        except FileNotFoundError as error:
            raise self._ended(error) from error
        return Cpu(sum(each.user for each in used), sum(each.system for each in used))

    def megabytes(self) -> float:
        """Resident memory of the larger process now, in 10^6 bytes. Raises LabError if one has ended."""
        try:
            return max(megabytes(pid, "VmRSS") for pid in self.processes)
        except (FileNotFoundError, ValueError) as error:
            raise self._ended(error) from error

    def _ended(self, error: Exception) -> LabError:
        return LabError(f"a process that carries the packets of {self.path.name} has ended: {error}")


@contextmanager
def opened(path: PacketPath, daemon: Path) -> Iterator[OpenPath]:
    """Build two hosts with a container each, with the daemon on both. Raises LabError."""
    with Lab(Plan(hosts=2, overlay="none", backend=path.backend, flanneld=daemon)) as lab:
        carriers = list(zip(lab.hosts, (path.sender, path.receiver), strict=True))
        for host, carrier in carriers:
            host.agent.start(*carrier.value)
            host.agent.wait_ready()
            lab.attach(host)
        if not path.ours and lab.wait_connected(3):
            # flannel's daemon misses leases that are made while it starts to watch; it lists them when it starts.
            lab.hosts[0].agent.restart()
            lab.hosts[0].agent.wait_ready()
        if lab.wait_connected():
            raise LabError(f"no ping gets through from container to container by {path.name}")
        processes = tuple(pid for host, carrier in carriers for pid in _processes(host, carrier))
        source, target = lab.containers
        yield OpenPath(path, lab.hosts, source, target, processes)


def _processes(host: Host, carrier: Carrier) -> list[int]:
    match carrier:
        case Carrier.KERNEL:
            return []
        case Carrier.DAEMON:
            return [host.agent.pid]
        case Carrier.USERSPACE:
            # The agent holds the control connection, and a second one would replace it: hence no connecting.
            makers = [listener(host.namespace, control) for control in host.directory.glob("datapath-*.sock")]
            return [pid for maker in makers for pid in (maker, *children(maker))]
