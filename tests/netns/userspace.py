"""A lab's host with the userspace data plane: the process, the device's addresses and routes, and the feeding of it.

The test is the agent here: it holds the control connection, so it sees every answer.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from pathlib import Path

from flanneld_py.encap.datapath.control import messages, protocol
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.topology import mac
from tests.patience import patient, within

DEVICE = "flannel.1"
PORT = 8472
RAW_OVERHEAD = 28
VXLAN_OVERHEAD = {4: 50, 6: 70}
UNDERLAY6 = IPv6Network("fd00:30::/64")
NETWORK6 = IPv6Network("fd00:42::/48")


@dataclass(frozen=True, slots=True)
class End:
    """One host's end of the overlay. IPv6 is carried over IPv6 and by a device of its own, as flannel does it."""

    underlay: IPv4Address | IPv6Address
    mac: str
    subnet: IPv4Network | IPv6Network

    @property
    def device(self) -> str:
        return DEVICE if self.subnet.version == 4 else "flannel-v6.1"

    @property
    def mtu(self) -> int:
        """The device's over VXLAN."""
        return 1500 - VXLAN_OVERHEAD[self.underlay.version]

    def __str__(self) -> str:
        return f"{self.underlay} {self.mac} {self.subnet}"

    @classmethod
    def parse(cls, text: str) -> End:
        underlay, ether, subnet = text.split()
        return cls(ip_address(underlay), ether, ip_network(subnet))


def ends(lab: Lab) -> list[End]:
    """The ends of all hosts, as the lab's own programming by hand has them."""
    return [
        End(host.address, mac(host.address, first=0x06), lab.plan.manual_subnet(number).network)
        for number, host in enumerate(lab.hosts, 1)
    ]


def ends6(lab: Lab) -> list[End]:
    """The same in IPv6; whoever uses them has to set them up (ipv6.py)."""
    subnets = list(islice(NETWORK6.subnets(new_prefix=64), len(lab.hosts) + 1))
    return [
        End(UNDERLAY6[number + 10], mac(host.address, first=0x0A), subnets[number])
        for number, host in enumerate(lab.hosts, 1)
    ]


def packed_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def configuration(own: End, mode: messages.Mode = messages.Mode.VXLAN) -> messages.Configure:
    mtu = own.mtu if mode is messages.Mode.VXLAN else 1500 - RAW_OVERHEAD
    return messages.Configure(mode, own.device, own.underlay.packed, PORT, mtu, (own.subnet,), 1, packed_mac(own.mac))


def peer(end: End) -> messages.Peer:
    base = end.subnet.network_address.packed
    return messages.Peer(str(end.subnet), base, end.subnet.prefixlen, end.underlay.packed, packed_mac(end.mac))


def device_lines(own: End, others: Sequence[End], mtu: int | None = None) -> list[str]:
    """What the agent does through netlink, as lines of `ip`; `mtu` in bytes, by default that for VXLAN."""
    base, device = own.subnet.network_address, own.device
    return [
        f"link set {device} addrgenmode none",  # no router solicitations of the kernel's own
        f"link set {device} mtu {mtu or own.mtu} up",
        f"addr replace {base}/{base.max_prefixlen} dev {device} nodad",
        *(f"route replace {end.subnet} dev {device} src {base}" for end in others),
    ]


class Userspace:
    """The data plane of one host, by hand. `start` replaces the kernel's VXLAN device of the lab."""

    def __init__(self, lab: Lab, number: int, mode: messages.Mode = messages.Mode.VXLAN, version: int = 4) -> None:
        self.host: Host = lab.hosts[number - 1]
        every = ends(lab) if version == 4 else ends6(lab)
        self.own = every[number - 1]
        self.others = [end for end in every if end != self.own]
        self.configuration = configuration(self.own, mode)
        self.control: Path = self.host.directory / "datapath.sock"
        self._connection: socket.socket | None = None

    def start(self, prefix: Sequence[str | Path] = ()) -> None:
        """Start the process (by a command before its own), and set it up."""
        self.host.namespace.run(["ip", "link", "del", self.own.device], check=False)
        with (self.host.directory / "datapath.log").open("ab") as log:
            command: list[str | Path] = [sys.executable, "-m", "flanneld_py.encap.datapath", "--control", self.control]
            starter = self.host.namespace.popen([*prefix, *command], stderr=log)
        assert starter.wait(patient(10)) == 0, (self.host.directory / "datapath.log").read_text()
        self.set_up()

    def set_up(self) -> None:
        """Connect to the process, configure it, set up the device and feed all peers."""
        self.connect()
        assert self.ask(self.configuration) == messages.Done(0)
        self.host.namespace.ip(*device_lines(self.own, self.others, self.configuration.mtu))
        assert self.fill(map(peer, self.others)) == messages.Done(len(self.others))

    def connect(self) -> None:
        """Take the control connection."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(patient(10))
        self._connection.connect(str(self.control))

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def tell(self, message: messages.Request | bytes) -> None:
        assert self._connection is not None
        self._connection.send(message if isinstance(message, bytes) else protocol.encode(message))

    def hear(self) -> messages.Message | None:
        """The next answer, None at the end of the connection."""
        assert self._connection is not None
        data = self._connection.recv(protocol.MAX_MESSAGE)
        return protocol.decode(data) if data else None

    def ask(self, message: messages.Request) -> messages.Message | None:
        self.tell(message)
        return self.hear()

    def fill(self, peers: Iterable[messages.Peer]) -> messages.Message | None:
        self.tell(messages.Begin())
        for data in protocol.encode_peers(peers):
            self.tell(data)
        return self.ask(messages.End())

    def status(self) -> messages.Status:
        answer = self.ask(messages.AskStatus())
        assert isinstance(answer, messages.Status)
        return answer

    def count(self, name: str) -> int:
        return self.status().counters.get(name, 0)

    def wait_count(self, name: str, least: int = 1, timeout: float = 5) -> None:
        deadline = within(timeout)
        while self.count(name) < least:
            assert time.monotonic() < deadline, f"{name} stays below {least}: {self.status()}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End the process; its device is gone when this returns."""
        with suppress(ConnectionError, BrokenPipeError):
            self.tell(messages.Stop())
            assert self.hear() is None
        self.hang_up()
