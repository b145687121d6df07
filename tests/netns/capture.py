"""What passes a device, captured by tcpdump and read with scapy: who sent letters to whom, plain or inside VXLAN."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet
from scapy.utils import PcapReader

from tests.lab.namespace import Namespace


@dataclass(frozen=True, slots=True)
class Letter:
    """A UDP packet to the port that was asked for; `tunnelled` if it was inside VXLAN."""

    tunnelled: bool
    source: IPv4Address | IPv6Address
    port: int
    destination: IPv4Address | IPv6Address


@contextmanager
def captured(place: Namespace, device: str, port: int, file: Path) -> Iterator[Callable[[], list[Letter]]]:
    """Capture in the block; what is given tells the letters to `port` so far."""
    command: list[str | Path] = [
        "tcpdump",
        "-i",
        device,
        "-n",
        "-U",
        "--immediate-mode",
        "-Z",
        "root",
        "-w",
        file,
        "udp",
    ]
    process = place.popen(command, stderr=subprocess.PIPE)
    with process:
        try:
            assert process.stderr is not None
            while b"listening on" not in (line := process.stderr.readline()):
                assert line, "tcpdump ended"
            yield lambda: [letter for packet in _packets(file) if (letter := _letter(packet, port)) is not None]
        finally:
            process.kill()


def _packets(file: Path) -> list[Packet]:
    with PcapReader(str(file)) as reader:
        return list(reader)


def _letter(packet: Packet, port: int) -> Letter | None:
    tunnelled = VXLAN in packet
    inner = packet[VXLAN].payload if tunnelled else packet
    if UDP not in inner or inner[UDP].dport != port:
        return None
    header = inner[IPv6] if IPv6 in inner else inner[IP]
    return Letter(tunnelled, ip_address(header.src), inner[UDP].sport, ip_address(header.dst))
