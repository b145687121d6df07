"""Datagrams that nobody honest sends, each with the reason for which it must be refused. Pure.

own      the host under attack, 10.42.1.0/24      every datagram is sent to its underlay address
peer     a host it knows, 10.42.2.0/24            the sender, where nothing else is said
third    another one it knows, 10.42.3.0/24       whom the peer may not speak for
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from tests.netns.userspace import End, packed_mac

FORGED, HONEST = b"forged: nobody may see this", b"honest: it must arrive, now"
ETHERTYPE = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class Forgery:
    """An inner packet, the 22 bytes before it over VXLAN, and the counter that it belongs to.

    `bare` tells whether it is the same forgery without those 22 bytes.
    """

    what: str
    header: bytes
    inner: bytes
    counter: str
    bare: bool = False


def udp(source: str, target: str, content: bytes = FORGED, ttl: int = 64) -> bytes:
    """An inner UDP packet, complete."""
    body = UDP(sport=7, dport=7) / content
    if ":" in source:
        return bytes(IPv6(src=source, dst=target, hlim=ttl) / body)
    return bytes(IP(src=source, dst=target, ttl=ttl) / body)


def vxlan(destination: str, vni: int = 1, ethertype: int = 0x0800, flags: int = 8) -> bytes:
    """The 22 bytes before an inner packet."""
    ethernet = packed_mac(destination) + packed_mac("06:00:00:00:00:77") + struct.pack("!H", ethertype)
    return struct.pack("!II", flags << 24, vni << 8) + ethernet


def honest(own: End, peer: End, content: bytes = HONEST) -> tuple[bytes, bytes]:
    """Header and inner packet of a datagram that passes."""
    return vxlan(own.mac), udp(str(peer.subnet[2]), str(own.subnet[2]), content)


def from_a_peer(own: End, peer: End, third: End) -> Iterator[Forgery]:
    """What a known peer may not send."""
    header, inner = honest(own, peer, FORGED)
    here, far = str(own.subnet[2]), str(peer.subnet[2])
    for source in (third.subnet[2], own.subnet[2], third.underlay, "10.42.99.2", "0.0.0.0", "127.0.0.1", "224.0.0.1"):
        yield Forgery(f"source {source}", header, udp(str(source), here), "in-source", bare=True)
    for target in (
        peer.subnet[2],
        own.underlay,
        third.subnet[2],
        "192.0.2.1",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ):
        yield Forgery(f"destination {target}", header, udp(far, str(target)), "in-destination", bare=True)
    for vni, flags in ((0, 8), (2, 8), (0xFFFFFF, 8), (1, 0), (1, 0xF7)):
        yield Forgery(f"VNI {vni}, flags {flags}", vxlan(own.mac, vni, flags=flags), inner, "in-vni")
    for mac in (peer.mac, third.mac, "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "01:00:5e:00:00:01"):
        yield Forgery(f"MAC {mac}", vxlan(mac), inner, "in-mac")
    for kind in (0x0806, 0x8100, 0x8847, 0):
        yield Forgery(f"ethertype {kind:x}", vxlan(own.mac, ethertype=kind), inner, "in-ethertype")
    yield Forgery("IPv4 called IPv6", vxlan(own.mac, ethertype=ETHERTYPE[6]), inner, "in-version")
    yield from _malformed(header, inner, udp("fd00::2", "fd00::3"), vxlan(own.mac, ethertype=ETHERTYPE[6]))
    yield Forgery("TTL 0", header, udp(far, here, ttl=0), "in-ttl", bare=True)


def _malformed(header: bytes, inner: bytes, inner6: bytes, header6: bytes) -> Iterator[Forgery]:
    """What is no IP packet."""
    for version in (0, 5, 15):
        changed = bytes((version << 4 | 5,)) + inner[1:]
        yield Forgery(f"version {version}", header, changed, "in-version", bare=True)
    for size in (0, 1, 7, 8, 21):
        yield Forgery(f"{size} bytes of VXLAN", header[:size], b"", "in-short")
    for size in (0, 1, 19):
        yield Forgery(f"{size} bytes of IPv4", header, inner[:size], "in-short", bare=True)
    yield Forgery("39 bytes of IPv6", header6, inner6[:39], "in-short", bare=True)
    for what, changed in (
        ("header of 16 bytes", b"\x44" + inner[1:]),
        ("header longer than all", b"\x4f" + inner[1:2] + struct.pack("!H", 40) + inner[4:40]),
        ("cut off", inner[:-1]),
        ("something behind", inner + b"\0"),
        ("length 0", inner[:2] + bytes(2) + inner[4:]),
        ("64 KiB", inner.ljust(65000, b"x")),
    ):
        yield Forgery(f"IPv4, {what}", header, changed, "in-length", bare=True)
    yield Forgery("IPv6, cut off", header6, inner6[:-1], "in-length", bare=True)
    yield Forgery("IPv6, hop limit 0", header6, inner6[:7] + b"\0" + inner6[8:], "in-ttl", bare=True)
    yield Forgery("IPv6 from whom has none", header6, inner6, "in-source", bare=True)


def train(own: End, peer: End, third: End, wrong: str, count: int = 12) -> list[bytes]:
    """Datagrams of one TCP stream, equal in size; every third is forged in one respect, the first is honest."""
    return [_carriage(own, peer, third, wrong if number % 3 == 2 else "", number) for number in range(count)]


def _carriage(own: End, peer: End, third: End, wrong: str, number: int) -> bytes:
    header = vxlan(
        peer.mac if wrong == "in-mac" else own.mac,
        2 if wrong == "in-vni" else 1,
        0x0806 if wrong == "in-ethertype" else 0x0800,
    )
    source = third if wrong == "in-source" else peer
    target = third if wrong == "in-destination" else own
    content = FORGED if wrong else HONEST
    segment = TCP(sport=7, dport=7, flags="A", seq=number * len(content))
    return header + bytes(IP(src=str(source.subnet[2]), dst=str(target.subnet[2])) / segment / content)


def garbage(count: int, seed: int = 1) -> list[bytes]:
    """Bytes without a meaning."""
    rng = random.Random(seed)
    return [rng.randbytes(rng.choice((1, 22, 23, 60, 1400, 9000)) + rng.randrange(20)) for _ in range(count)]
