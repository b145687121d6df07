"""Forwarding decisions of the userspace data plane, both directions; once per super-packet, so a few microseconds.

    outward   version, length, TTL -> longest prefix: whose? -> not larger than the MTU and the path -> Send
              no peer: ICMP net unreachable (no route), but nothing about multicast and link-local
              too large and not to be fragmented: ICMP with the MTU
    inward    a peer's underlay address -> version, length, TTL -> inner source its own -> destination ours -> Deliver

TTL: one hop for a host, as with kernel VXLAN. Each kernel takes one when it forwards between container and TUN device,
and answers itself when none is left; so the data plane takes none, and only refuses what has none.

Inner sources: a peer may send from its subnet, whose base address its own processes use and masquerading to the
overlay gives, and from its underlay address, which a process may have bound. All else is spoofed: other containers'
addresses, and packets routed through a peer from elsewhere, which it has to masquerade.

Not here: frames (encap/packet/frame.py), how many ICMP replies a second (relay.py), who the peers are (the agent says).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flanneld_py.encap.packet import icmp
from flanneld_py.encap.packet.checksum import Buffer
from flanneld_py.encap.packet.frame import DropReason

_DF = 0x40
"""Don't Fragment, in the first byte of IPv4's fragment field."""


MOST_KNOWN = 8192
"""Destinations that are remembered; when there are more, all are forgotten."""


MOST = 65535
"""Bytes of the largest IP packet."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A peer: its subnet (packed base, prefix length), its underlay address (packed), its VTEP's MAC (b"" for RAW).

    `mtu` is the largest packet, in bytes, that the path to it carries in one piece, as far as that is known.
    """

    base: bytes
    length: int
    address: bytes
    mac: bytes
    mtu: int = field(default=MOST, kw_only=True)


@dataclass(frozen=True, slots=True)
class Send:
    """Encapsulate the packet and send it to this peer."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Reply:
    """Write this ICMP packet back to the TUN device and count `reason`."""

    packet: bytes
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the packet and count `reason`."""

    reason: DropReason


@dataclass(frozen=True, slots=True)
class Deliver:
    """Write the packet to the TUN device; `remote` is who sent it."""

    remote: Remote


@dataclass(frozen=True, slots=True)
class Own:
    """What is delivered here: our subnets as (packed base, prefix length), and the TUN device's own addresses."""

    subnets: tuple[tuple[bytes, int], ...]
    address4: bytes | None = None
    address6: bytes | None = None


class Table:
    """Who is behind which subnet. Addresses are packed bytes, 4 or 16 long.

    Two keys with one subnet: the one set last counts, until it is removed. `known` has what lookups have found so far.
    """

    def __init__(self) -> None:
        self._remotes: dict[str, Remote] = {}
        self._claims: dict[tuple[int, int, int], dict[str, Remote]] = {}
        self._by_length: dict[int, list[tuple[int, dict[int, Remote]]]] = {4: [], 16: []}
        self._by_address: dict[bytes, dict[str, Remote]] = {}
        self.known: dict[bytes, Remote] = {}

    def set(self, key: str, remote: Remote) -> None:
        """Add a peer or replace the one under this key."""
        self.remove(key)
        self._remotes[key] = remote
        self._by_address.setdefault(remote.address, {})[key] = remote
        self._claims.setdefault(_subnet(remote), {})[key] = remote
        self._settle(_subnet(remote))

    def remove(self, key: str) -> None:
        """Remove a peer; nothing if there is none."""
        remote = self._remotes.pop(key, None)
        if remote is None:
            return
        subnet = _subnet(remote)
        behind = self._by_address[remote.address]
        del behind[key], self._claims[subnet][key]
        if not behind:
            del self._by_address[remote.address]
        self._settle(subnet)

    def __contains__(self, key: str) -> bool:
        return key in self._remotes

    def lookup(self, destination: Buffer) -> Remote | None:
        """Return the peer with the longest subnet that holds the address."""
        number = int.from_bytes(destination, "big")
        for shift, remotes in self._by_length[len(destination)]:
            remote = remotes.get(number >> shift)
            if remote is not None:
                if len(self.known) >= MOST_KNOWN:
                    self.known.clear()
                self.known[bytes(destination)] = remote
                return remote
        return None

    def from_address(self, address: bytes) -> tuple[Remote, ...]:
        """Return the peers behind an underlay address."""
        return tuple(self._by_address.get(address, {}).values())

    def _settle(self, subnet: tuple[int, int, int]) -> None:
        """Make the lookup follow what is claimed about one subnet."""
        self.known.clear()
        size, shift, prefix = subnet
        lengths = self._by_length[size]
        remotes = next((remotes for other, remotes in lengths if other == shift), None)
        if remotes is None:
            remotes = {}
            lengths.append((shift, remotes))
            lengths.sort(key=lambda entry: entry[0])  # the least shift is the longest prefix
        claims = self._claims[subnet]
        if claims:
            remotes[prefix] = next(reversed(claims.values()))
            return
        del self._claims[subnet], remotes[prefix]
        if not remotes:
            self._by_length[size] = [entry for entry in lengths if entry[1]]


def outbound(table: Table, packet: Buffer, mtu: int, size: int = 0) -> Send | Reply | Drop:
    """Decide on a packet read from the TUN device; `mtu`, the device's, in bytes.

    `size` is 0 for an ordinary packet, and for a super-packet the bytes of the largest that it stands for. An IPv4
    packet that is larger than the MTU and may be fragmented is dropped: the kernel has done that by the device's MTU.
    What is too large for the path alone, and gets no answer, is sent: the kernel and IPv4's routers fragment it.
    """
    reason = _malformed(packet)
    if reason is not None:
        return Drop(reason)
    v4 = packet[0] >> 4 == 4
    remote = table.lookup(packet[16:20] if v4 else packet[24:40])
    if remote is None:
        if _stays_on_link(packet, v4):
            return Drop(DropReason.MULTICAST)
        answer = icmp.error(icmp.Error.NO_ROUTE, packet)
        return Drop(DropReason.NO_ROUTE) if answer is None else Reply(answer, DropReason.NO_ROUTE)
    size = size or len(packet)
    if size <= min(mtu, remote.mtu):
        return Send(remote)
    answer = None if v4 and not packet[6] & _DF else icmp.error(icmp.Error.TOO_BIG, packet, min(mtu, remote.mtu))
    if answer is not None:
        return Reply(answer, DropReason.TOO_BIG)
    return Drop(DropReason.TOO_BIG) if size > mtu else Send(remote)


def inbound(table: Table, source: bytes, packet: Buffer, own: Own) -> Deliver | Drop:
    """Decide on an inner packet that came from an underlay address (packed)."""
    remotes = table.from_address(source)
    if not remotes:
        return Drop(DropReason.UNKNOWN_PEER)
    reason = _malformed(packet)
    if reason is not None:
        return Drop(reason)
    v4 = packet[0] >> 4 == 4
    sender, destination = (packet[12:16], packet[16:20]) if v4 else (packet[8:24], packet[24:40])
    for remote in remotes:
        if _inside(sender, remote.base, remote.length):
            break
    else:
        if sender != source:
            return Drop(DropReason.SOURCE)
        remote = remotes[0]
    for base, length in own.subnets:
        if _inside(destination, base, length):
            return Deliver(remote)
    if destination == (own.address4 if v4 else own.address6):
        return Deliver(remote)
    return Drop(DropReason.DESTINATION)


def _malformed(packet: Buffer) -> DropReason | None:
    """Return what is wrong with the IP header, None if nothing: an address read from it is one, its length is true."""
    size = len(packet)
    if size < 20:
        return DropReason.SHORT
    version = packet[0] >> 4
    if version == 4:
        header = (packet[0] & 15) << 2
        if header < 20 or packet[2] << 8 | packet[3] != size or header > size:
            return DropReason.LENGTH
        return None if packet[8] else DropReason.TTL
    if version != 6:
        return DropReason.VERSION
    if size < 40:
        return DropReason.SHORT
    if (packet[4] << 8 | packet[5]) + 40 != size:
        return DropReason.LENGTH
    return None if packet[7] else DropReason.TTL


def _stays_on_link(packet: Buffer, v4: bool) -> bool:
    """Tell whether the destination is multicast, broadcast or link-local: nobody routes these, a kernel sends them."""
    if v4:
        return packet[16] >= 224 or (packet[16] == 169 and packet[17] == 254)
    return packet[24] == 0xFF or (packet[24] == 0xFE and packet[25] & 0xC0 == 0x80)


def _inside(address: Buffer, base: bytes, length: int) -> bool:
    bits = len(base) << 3
    if len(address) << 3 != bits:
        return False
    return (int.from_bytes(address, "big") ^ int.from_bytes(base, "big")) >> (bits - length) == 0


def _subnet(remote: Remote) -> tuple[int, int, int]:
    """Return family (bytes of an address), shift and prefix: what a subnet is looked up by."""
    shift = (len(remote.base) << 3) - remote.length
    return len(remote.base), shift, int.from_bytes(remote.base, "big") >> shift
