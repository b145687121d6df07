"""Conntrack's flows: its netlink messages, and which flows go on without the masquerade that they should have. Pure.

    flow    nlmsghdr (16 bytes) | nfgenmsg (4) | CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS ... (nfnetlink_conntrack.h)

The kernel asks the nat chains once, for a flow's first packet. A flow that began while our rules were not there keeps
its containers' addresses for as long as it goes on, and its answers do not come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct, pack

from flanneld_py.encap.family import IPAddress
from flanneld_py.encap.firewall.policy import In, Match, Rule, Verdict
from flanneld_py.encap.netlink import rtnetlink as rt

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
GET, DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2  # IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE = 1, 2, 3, 12, 18  # CTA_*
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM = 1, 2, 1
_SOURCE, _DESTINATION = {rt.AF_INET: 1, rt.AF_INET6: 3}, {rt.AF_INET: 2, rt.AF_INET6: 4}  # CTA_IP_V4_SRC ...
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY
_NESTED = 0x8000
_FIXED = Struct("=BBH")
_HEAD = Struct("=HHHHHH")
_CONNECTIONS = (6, 33, 132)
"""TCP, DCCP, SCTP."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that conntrack follows: as it began, and as its answers are expected. `deletion` deletes it."""

    source: IPAddress
    destination: IPAddress
    translated: bool
    connected: bool
    deletion: bytes


def dump(seq: int, family: int) -> bytes:
    """Ask for all flows of an address family."""
    return rt.HEADER.pack(20, GET, rt.NLM_F_REQUEST | rt.NLM_F_DUMP, seq, 0) + _FIXED.pack(family, 0, 0)


def delete(seq: int, flow: Flow) -> bytes:
    """Forget a flow; its next packet is the first of another one. The same flow, begun anew meanwhile, stays."""
    return rt.HEADER.pack(16 + len(flow.deletion), DELETE, rt.NLM_F_REQUEST, seq, 0) + flow.deletion


def ends(buffer: bytes, at: int) -> tuple[bytes, bytes] | None:
    """Return where a flow came from and goes to, at a glance; None if the message is not laid out as kernels do."""
    size = 4 if buffer[at] == rt.AF_INET else 16
    if at + 24 + 2 * size > len(buffer):
        return None
    _, tuple_, _, ip, length, source = _HEAD.unpack_from(buffer, at + 4)
    if (tuple_ & 0x3FFF, ip & 0x3FFF, source, length) != (_TUPLE_ORIG, _TUPLE_IP, _SOURCE.get(buffer[at]), 4 + size):
        return None
    return buffer[at + 16 : at + 16 + size], buffer[at + 20 + size : at + 20 + 2 * size]


def read_flow(buffer: bytes, at: int, end: int) -> Flow | None:
    """Read a flow; None if it has no addresses. Raises Malformed."""
    family = buffer[at]
    found = rt.attributes(buffer, at + _FIXED.size, end)
    original, reply = _tuple(found.get(_TUPLE_ORIG, b""), family), _tuple(found.get(_TUPLE_REPLY, b""), family)
    if original is None or reply is None:
        return None
    source, destination, protocol = original
    status = int.from_bytes(found.get(_STATUS, b""))
    named = [(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])]
    named += [(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found]
    deletion = _FIXED.pack(family, 0, 0) + b"".join(_attribute(kind, value) for kind, value in named)
    return Flow(
        source,
        destination,
        reply[:2] != (destination, source),
        protocol in _CONNECTIONS and bool(status & _SEEN_REPLY),
        deletion,
    )


def lacks_masquerade(flow: Flow, rules: Sequence[Rule]) -> bool:
    """Tell whether these rules would masquerade a flow that nobody translates.

    A connection whose other end has answered stays: it works as it is, and would break.
    """
    if flow.translated or flow.connected:
        return False
    for rule in rules:
        if not rule.marked and _fits(flow.source, rule.source) and _fits(flow.destination, rule.destination):
            return rule.verdict in (Verdict.MASQUERADE, Verdict.MASQUERADE_RANDOM)
    return False


def _fits(address: IPAddress, side: Match | None) -> bool:
    return side is None or (address in side.network) == isinstance(side, In)


def _tuple(value: bytes, family: int) -> tuple[IPAddress, IPAddress, int] | None:
    """Read where packets come from and go to, and their protocol."""
    nested = rt.attributes(value, 0, len(value))
    addresses, protocol = (nested.get(kind, b"") for kind in (_TUPLE_IP, _TUPLE_PROTO))
    found = rt.attributes(addresses, 0, len(addresses))
    source, destination = found.get(_SOURCE.get(family, 0)), found.get(_DESTINATION.get(family, 0))
    if source is None or destination is None or {len(source), len(destination)} not in ({4}, {16}):
        return None
    number = rt.attributes(protocol, 0, len(protocol)).get(_PROTO_NUM, b"\0")
    return ip_address(source), ip_address(destination), int.from_bytes(number)


def _attribute(kind: int, value: bytes) -> bytes:
    return pack(f"=HH{(len(value) + 3) & ~3}s", 4 + len(value), kind, value)
