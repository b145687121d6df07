"""Marks of congestion between a kernel VXLAN host and a userspace one, as the kernel understands RFC 6040.

h1c1 ── h1 (VXLAN) ── core ── h2 (TUN) ── h2c1
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.measure import Station, ping
from tests.netns.conftest import MakeLab
from tests.netns.ipv6 import containers6, program6
from tests.netns.userspace import PORT, Userspace

pytestmark = pytest.mark.root

RECEIVE = """
import socket, sys
v6 = ":" in sys.argv[1]
with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as inlet:
    inlet.setsockopt(*((41, 66, 1) if v6 else (0, 13, 1)))  # IPV6_RECVTCLASS, IP_RECVTOS
    inlet.bind((sys.argv[1], 9))
    print("up", flush=True)
    while True:
        data, control, _, _ = inlet.recvmsg(100, 100)
        print(data.decode(), control[0][2][0], flush=True)
"""

SEND = """
import socket, sys
v6 = ":" in sys.argv[1]
with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as out:
    for tos in map(int, sys.argv[2:]):
        out.setsockopt(*((41, 67) if v6 else (0, 1)), tos)  # IPV6_TCLASS, IP_TOS
        out.sendto(str(tos).encode(), (sys.argv[1], 9))
"""

SENT = (0, 1, 2, 3, 42)
MARK = "udp dport {port} {family} ecn set ce"
COUNT = "udp dport {port} {family} ecn {codepoint} counter"


def rules(lines: list[str]) -> str:
    return "table inet marks {\n chain sent {\n type filter hook output priority 0;\n" + "\n".join(lines) + "\n }\n}\n"


@contextmanager
def receiver(station: Station) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", RECEIVE, str(station.address)]
    process = station.namespace.popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def arrivals(source: Station, target: Station) -> dict[int, int]:
    """Send a datagram with each TOS of SENT; return those that arrive, and with which."""
    with receiver(target) as process:
        # The last one arrives whatever is marked: what is missing then was dropped.
        source.namespace.run([sys.executable, "-c", SEND, str(target.address), *map(str, SENT), "6"])
        seen: dict[int, int] = {}
        assert process.stdout is not None
        while 6 not in seen:
            sent, came = map(int, process.stdout.readline().split())
            seen[sent] = came
        del seen[6]
        return seen


@pytest.mark.parametrize("version", [4, 6])
def test_kernel_and_userspace_hosts_tell_each_other_of_congestion(make_lab: MakeLab, version: int) -> None:
    lab = make_lab(2, overlay="manual")
    family = "ip" if version == 4 else "ip6"
    stations: list[Station] = [*containers6(lab)] if version == 6 else [*lab.containers]
    if version == 6:
        program6(lab, 1)
    two = Userspace(lab, 2, version=version)
    try:
        two.start()
        a, b = stations
        assert ping(a, b).loss == 0
        unmarked = {tos: tos for tos in SENT}
        assert arrivals(a, b) == unmarked

        count = [COUNT.format(port=PORT, family=family, codepoint=codepoint) for codepoint in ("ect0", "ect1", "ce")]
        lab.hosts[1].namespace.run(["nft", "-f", "-"], stdin=rules(count))
        assert arrivals(b, a) == unmarked
        counted = lab.hosts[1].namespace.run(["nft", "list", "table", "inet", "marks"]).stdout
        # Each codepoint is there; how many datagrams are one packet to the filter depends on who rides with whom.
        packets = [line.split("packets ")[1].split()[0] for line in counted.splitlines() if "packets" in line]
        assert len(packets) == 3
        assert "0" not in packets

        for host in lab.hosts:
            host.namespace.run(["nft", "flush ruleset"])
            host.namespace.run(["nft", "-f", "-"], stdin=rules([MARK.format(port=PORT, family=family)]))
        marked = {1: 3, 2: 3, 3: 3, 42: 43}
        assert arrivals(a, b) == marked
        assert two.count("in-ecn") == 1
        assert arrivals(b, a) == marked, "the kernel agrees"
    finally:
        two.hang_up()
