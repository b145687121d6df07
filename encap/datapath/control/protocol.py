"""The control protocol between the agent and the data-plane process, as bytes. Pure.

It runs over a unix SEQPACKET socket: one send is one message, at most MAX_MESSAGE bytes.

    version u8 | kind u8 | body

    agent -> process                                      answer
    Configure   what it is; JSON                          Done, or Refused
    Begin       a full table follows                      -
    Put         peers, packed, some hundred at most       -
    Remove      a peer's key                              -
    End         the table is complete: peers that were    Done
                not put since Begin are dropped
    AskStatus   totals                                    Status
    AskTraffic  counters of peers from a position on      Traffic
    Stop        close the device and end                  the socket closes

Put and Remove take effect at once, each for itself: nothing else is touched, so traffic to other peers never stops.
What cannot be understood is answered with Refused, and the connection closed.
Of the versions in use, each knows how to say no to another: the first byte and Refused never change.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Any

from flanneld_py.encap.datapath.control.messages import (
    AskStatus,
    AskTraffic,
    Begin,
    Configure,
    Done,
    End,
    Message,
    Mode,
    Peer,
    PeerTraffic,
    Put,
    Refused,
    Remove,
    Status,
    Stop,
    Traffic,
)

VERSION = 1
MAX_MESSAGE = 60_000
"""Bytes: what a socket takes whole with the kernel's default buffers."""

MAX_KEY = 255
MAX_WORKERS = 32

PUT_PORTION = 200
"""Peers in one Put: they take the process a millisecond or two, in which packets wait."""


class Malformed(Exception):
    """A message that cannot be read; the text says what was found and what expected."""


_HEAD = struct.Struct("!BB")
_NUMBER = struct.Struct("!I")
_PEER = struct.Struct("!BBBB6s")
_COUNTERS = struct.Struct("!BQQQQ")

_CONFIGURE, _BEGIN, _PUT, _REMOVE, _END, _ASK_STATUS, _ASK_TRAFFIC, _STOP = range(1, 9)
_DONE, _REFUSED, _STATUS, _TRAFFIC = range(65, 69)

TRAFFIC_PAGE = MAX_MESSAGE // (_COUNTERS.size + MAX_KEY) - 1
"""How many peers' counters surely fit into one Traffic."""


def encode(message: Message) -> bytes:
    """Return the bytes of a message. Raises ValueError if they are more than MAX_MESSAGE, or a key too long."""
    kind, body = _body(message)
    if len(body) + _HEAD.size > MAX_MESSAGE:
        raise ValueError(f"{type(message).__name__} of {len(body)} bytes: the most is {MAX_MESSAGE - _HEAD.size}")
    return _HEAD.pack(VERSION, kind) + body


def encode_peers(peers: Iterable[Peer]) -> Iterator[bytes]:
    """Return Put messages for any number of peers."""
    rest = iter(peers)
    while portion := tuple(islice(rest, PUT_PORTION)):
        yield encode(Put(portion))  # the longest keys and addresses included: 200 * 300 bytes


def decode(data: bytes) -> Message:
    """Read a message. Raises Malformed."""
    if len(data) < _HEAD.size or len(data) > MAX_MESSAGE:
        raise Malformed(f"a message of {len(data)} bytes; expected {_HEAD.size} to {MAX_MESSAGE}")
    version, kind = _HEAD.unpack_from(data)
    if version != VERSION and kind != _REFUSED:
        raise Malformed(f"control protocol version {version}, ours is {VERSION}: the process must be restarted")
    read = _READERS.get(kind)
    if read is None:
        raise Malformed(f"a message of unknown kind {kind}")
    try:
        return read(data[_HEAD.size :])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise Malformed(f"a message of kind {kind} cannot be read: {error}") from error


def _body(message: Message) -> tuple[int, bytes]:
    match message:
        case Configure():
            return _CONFIGURE, _configure_json(message)
        case Begin():
            return _BEGIN, b""
        case Put(peers):
            return _PUT, b"".join(map(_pack_peer, peers))
        case Remove(key):
            return _REMOVE, _key(key)
        case End():
            return _END, b""
        case AskStatus():
            return _ASK_STATUS, b""
        case AskTraffic(first):
            return _ASK_TRAFFIC, _NUMBER.pack(first)
        case Stop():
            return _STOP, b""
        case Done(peers):
            return _DONE, _NUMBER.pack(peers)
        case Refused(reason, restart):
            return _REFUSED, bytes([restart]) + reason.encode()[: MAX_MESSAGE - 8]
        case Status():
            return _STATUS, json.dumps(asdict(message)).encode()
        case Traffic(following, peers):
            return _TRAFFIC, _NUMBER.pack(following) + b"".join(map(_pack_traffic, peers))


def _empty(make: Callable[[], Message]) -> Callable[[bytes], Message]:
    def read(body: bytes) -> Message:
        if body:
            raise ValueError(f"{len(body)} bytes too many")
        return make()

    return read


def _configure_json(wanted: Configure) -> bytes:
    fields = {
        "mode": wanted.mode.value,
        "device": wanted.device,
        "local": str(ip_address(wanted.local)),
        "port": wanted.port,
        "mtu": wanted.mtu,
        "subnets": [str(subnet) for subnet in wanted.subnets],
        "vni": wanted.vni,
        "mac": wanted.mac.hex(":"),
        "workers": wanted.workers,
    }
    return json.dumps(fields).encode()


def _read_configure(body: bytes) -> Configure:
    fields: dict[str, Any] = {"workers": 1, **json.loads(body)}  # an agent of before there were several
    mode = Mode(fields["mode"])
    device = fields["device"]
    if not isinstance(device, str) or not 1 <= len(device.encode()) <= 15 or set(device) & set("/ \t\n%\0"):
        raise ValueError(f"{device!r} is no name of a device")
    mac = bytes.fromhex(fields["mac"].replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"{fields['mac']!r} is no MAC address")
    return Configure(
        mode=mode,
        device=device,
        local=ip_address(fields["local"]).packed,
        port=_bounded(fields, "port", 1, 65535),
        mtu=_bounded(fields, "mtu", 68, 65535),
        subnets=tuple(ip_network(subnet) for subnet in fields["subnets"]),
        vni=_bounded(fields, "vni", 0, 2**24 - 1),
        mac=mac,
        workers=_bounded(fields, "workers", 1, MAX_WORKERS),
    )


def _bounded(fields: dict[str, Any], name: str, least: int, most: int) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a number from {least} to {most}")
    return value


def _pack_peer(peer: Peer) -> bytes:
    head = _PEER.pack(len(key := _key(peer.key)), len(peer.subnet), peer.prefix_length, len(peer.address), peer.mac)
    return head + key + peer.subnet + peer.address


def _read_put(body: bytes) -> Put:
    peers: list[Peer] = []
    at = 0
    while at < len(body):
        key_size, subnet_size, prefix_length, address_size, mac = _PEER.unpack_from(body, at)
        key_end = at + _PEER.size + key_size
        subnet_end = key_end + subnet_size
        end = subnet_end + address_size
        if end > len(body) or not key_size:
            raise ValueError(f"a peer at byte {at} is cut off, or has no key")
        if {subnet_size, address_size} - {4, 16} or prefix_length > subnet_size * 8:
            raise ValueError(f"a peer at byte {at} has no valid subnet or address")
        key = body[at + _PEER.size : key_end].decode()
        peers.append(Peer(key, body[key_end:subnet_end], prefix_length, body[subnet_end:end], mac))
        at = end
    return Put(tuple(peers))


def _pack_traffic(row: PeerTraffic) -> bytes:
    key = _key(row.key)
    return _COUNTERS.pack(len(key), row.sent, row.sent_bytes, row.received, row.received_bytes) + key


def _read_traffic(body: bytes) -> Traffic:
    (following,) = _NUMBER.unpack_from(body)
    rows: list[PeerTraffic] = []
    at = _NUMBER.size
    while at < len(body):
        key_size, *counters = _COUNTERS.unpack_from(body, at)
        at += _COUNTERS.size
        if at + key_size > len(body):
            raise ValueError("the last peer's counters are cut off")
        rows.append(PeerTraffic(body[at : at + key_size].decode(), *counters))
        at += key_size
    return Traffic(following, tuple(rows))


def _read_remove(body: bytes) -> Remove:
    if not 1 <= len(body) <= MAX_KEY:
        raise ValueError(f"a key of {len(body)} bytes; expected 1 to {MAX_KEY}")
    return Remove(body.decode())


def _read_status(body: bytes) -> Status:
    fields: dict[str, Any] = json.loads(body)
    known = {name: fields[name] for name in Status.__slots__ if name in fields}  # a newer process says more
    return Status(**{**known, "offloads": tuple(fields["offloads"])})


def _read_refused(body: bytes) -> Refused:
    return Refused(body[1:].decode(errors="replace"), restart=bool(body[:1].strip(b"\0")))


def _key(key: str) -> bytes:
    data = key.encode()
    if not 1 <= len(data) <= MAX_KEY:
        raise ValueError(f"the key {key[:40]!r} has {len(data)} bytes; expected 1 to {MAX_KEY}")
    return data


_READERS: dict[int, Callable[[bytes], Message]] = {
    _CONFIGURE: _read_configure,
    _BEGIN: _empty(Begin),
    _PUT: _read_put,
    _REMOVE: _read_remove,
    _END: _empty(End),
    _ASK_STATUS: _empty(AskStatus),
    _ASK_TRAFFIC: lambda body: AskTraffic(*_NUMBER.unpack(body)),
    _STOP: _empty(Stop),
    _DONE: lambda body: Done(*_NUMBER.unpack(body)),
    _REFUSED: _read_refused,
    _STATUS: _read_status,
    _TRAFFIC: _read_traffic,
}
