"""Operations into the kernel: the writing half of netlink.py.

    operations --encode--> batch --send--> errors by sequence number --settle--> Failures, or another try

How the verbs meet the kernel (tried on 6.18):
- A neighbour or forwarding entry is set, whatever was there: the device is ours alone.
- An address, route or nexthop object is added only where none is. One that is there already in exactly this form
  counts as added: the event that tells of it may still be in the monitor's queue. But not a route by way of a host
  that another protocol than ours made: an operator's, unless it is flannel's `boot`, which becomes ours.
- NLM_F_REPLACE takes the first route with the same subnet and metric on *any* device, in IPv4 and IPv6 alike. So the
  kernel is asked what is there first, and the operation fails if that leads elsewhere and is not ours.
- A route is deleted in the form in which it is there: by its nexthop object's id, or by device. IPv4 does not find
  one by device that has an object; IPv6 finds one on any device that has one. Hence the question before the second try.
- IPv6 takes no gateway on a device if the route that leads to it is on another: so not `<subnet base>` on the tunnel's
  while the peer is direct. A route to that one address makes way for it, and goes when it is in.

A batch ends where an operation depends on the outcome of one in it (a route on a nexthop object whose id might turn out
to be taken), and before each that asks the kernel something.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from errno import EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from functools import partial

from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.netlink.existing import find_route, in_the_way, is_misled, prefix_lengths
from flanneld_py.encap.netlink.nexthops import NexthopIds
from flanneld_py.encap.netlink.rtsocket import RouteSocket, find_link
from flanneld_py.encap.state import (
    FORMER_PROTOCOL,
    MARKS,
    RTPROT_BOOT,
    Address,
    Failure,
    FdbEntry,
    Neighbour,
    Nexthop,
    Operation,
    Route,
    Verb,
    text,
)

_SET = rt.NLM_F_CREATE | rt.NLM_F_REPLACE
_ADD = rt.NLM_F_CREATE | rt.NLM_F_EXCL
_ABSENT = frozenset({ENOENT, ESRCH, EADDRNOTAVAIL, ENODEV})
_BATCH = 128
_ID_ATTEMPTS = 64


class Writer:
    """Apply operations through one request socket, keeping the nexthop ids true.

    `by_id` is whether routes are made through nexthop objects; existing ones are understood in any case.
    """

    def __init__(self, requests: RouteSocket, nexthops: NexthopIds, *, by_id: bool) -> None:
        self._requests = requests
        self._nexthops = nexthops
        self._by_id = by_id
        self._batch: dict[int, tuple[Operation, int, bytes]] = {}
        self._in_doubt: set[tuple[int, bytes | None]] = set()
        self._failures: list[Failure] = []

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Do the operations in order; see kernel.Kernel.apply."""
        self._failures = []
        devices = {name: self._ifindex(name) for name in {operation.entry.device for operation in operations}}
        for operation in operations:
            ifindex = devices[operation.entry.device]
            if ifindex:
                self._add(operation, ifindex)
            elif operation.verb is not Verb.REMOVE:
                self._fail(operation, ENODEV, f"there is no device {operation.entry.device}")
        self._send()
        return self._failures

    def _add(self, operation: Operation, ifindex: int) -> None:
        if len(self._batch) >= _BATCH:
            self._send()
        match operation.entry:
            case Nexthop() as nexthop:
                if not self._nexthop_is_ready(operation, nexthop, ifindex):
                    return
            case Route() as route:
                if not self._route_is_ready(operation, route, ifindex):
                    return
        seq = self._requests.next_seq()
        if message := self._encode(seq, operation, ifindex):
            self._batch[seq] = (operation, ifindex, message)

    def _nexthop_is_ready(self, operation: Operation, nexthop: Nexthop, ifindex: int) -> bool:
        if not self._by_id and operation.verb is not Verb.REMOVE:
            self._fail(operation, EOPNOTSUPP, "nexthop objects are off or not in this kernel; use routes alone")
            return False
        place = (ifindex, nexthop.gateway)
        if place in self._in_doubt:
            self._send()
        self._in_doubt.add(place)
        return True

    def _route_is_ready(self, operation: Operation, route: Route, ifindex: int) -> bool:
        if (ifindex, route.gateway) in self._in_doubt:
            self._send()
        match operation.verb:
            case Verb.REPLACE:
                return self._may_replace(operation, route, ifindex)
            case Verb.REMOVE if len(route.subnet) == 16 and self._nexthops.id_of(ifindex, route.gateway) is None:
                self._send()
                self._remove_as_found(operation, route, ifindex)
                return False
            case _:
                return True

    def _send(self) -> None:
        batch, self._batch = self._batch, {}
        self._in_doubt.clear()
        if not batch:
            return
        failed = self._requests.send([(seq, message) for seq, (_, _, message) in batch.items()])
        for seq, (operation, ifindex, _) in batch.items():
            if seq in failed:
                self._settle(operation, ifindex, *failed[seq])
            elif operation.verb is Verb.REMOVE and isinstance(operation.entry, Nexthop):
                self._forget(ifindex, operation.entry.gateway)

    # Bytes

    def _encode(self, seq: int, operation: Operation, ifindex: int) -> bytes | None:
        remove = operation.verb is Verb.REMOVE
        add = _ADD if operation.verb is Verb.ADD else _SET
        match operation.entry:
            case FdbEntry(_, mac, destination):
                if remove:
                    return request.fdb_delete(seq, ifindex, mac)
                return request.fdb(seq, _SET, ifindex, mac, destination)
            case Neighbour(_, address, mac):
                if remove:
                    return request.neighbour(seq, rt.RTM_DELNEIGH, 0, ifindex, address, mac)
                return request.neighbour(seq, rt.RTM_NEWNEIGH, _SET, ifindex, address, mac)
            case Route() as route:
                return self._encode_route(seq, ifindex, route, 0 if remove else add)
            case Nexthop(_, gateway):
                return self._encode_nexthop(seq, ifindex, gateway, remove=remove)
            case Address(_, address, length):
                kind = rt.RTM_DELADDR if remove else rt.RTM_NEWADDR
                return request.address(seq, kind, 0 if remove else add, ifindex, address, length)

    def _encode_route(self, seq: int, ifindex: int, route: Route, flags: int) -> bytes:
        subnet, length = route.subnet, route.prefix_length
        object_id = self._nexthops.id_of(ifindex, route.gateway)
        if not flags:
            if object_id is not None:
                return request.route_by_id(seq, rt.RTM_DELROUTE, 0, subnet, length, object_id)
            return request.route_delete(seq, ifindex, subnet, length, None if route.overlay else route.gateway)
        if self._by_id and object_id is not None:
            return request.route_by_id(seq, rt.RTM_NEWROUTE, flags, subnet, length, object_id)
        return request.route(seq, flags, ifindex, subnet, length, route.gateway)

    def _encode_nexthop(self, seq: int, ifindex: int, gateway: bytes, *, remove: bool) -> bytes | None:
        object_id = self._nexthops.id_of(ifindex, gateway)
        if remove:
            return None if object_id is None else request.nexthop_delete(seq, object_id)
        if object_id is not None:
            # It may have gone unreported with the device's going down: made again if so, else the same once more.
            return request.nexthop(seq, _SET, object_id, ifindex, gateway)
        return self._new_nexthop(self._nexthops.assign(ifindex, gateway), ifindex, gateway, seq)

    @staticmethod
    def _new_nexthop(object_id: int, ifindex: int, gateway: bytes, seq: int) -> bytes:
        return request.nexthop(seq, _ADD, object_id, ifindex, gateway)

    # What the kernel refused

    def _settle(self, operation: Operation, ifindex: int, errno: int, words: str) -> None:
        match operation:
            case Operation(Verb.REMOVE, Route() as route) if errno in _ABSENT or errno == EINVAL:
                # EINVAL: the nexthop object we asked by is gone.
                self._remove_as_found(operation, route, ifindex)
            case Operation(Verb.REMOVE, entry) if errno in _ABSENT:
                if isinstance(entry, Nexthop):
                    self._forget(ifindex, entry.gateway)
            case Operation(Verb.ADD | Verb.REPLACE, Nexthop()):
                self._another_id(operation, ifindex, errno, words)
            case Operation(Verb.ADD, Route() as route) if errno in (EEXIST, EINVAL):
                # IPv6 says EINVAL: it looks up the gateway, and finds that it is behind the route in the way.
                self._route_in_the_way(operation, route, ifindex, errno, words)
            case Operation(Verb.REPLACE, Route(overlay=True) as route) if is_misled(errno, route.gateway):
                self._lead_route(operation, route, ifindex, _SET)
            case Operation(Verb.ADD, Address() as address) if errno == EEXIST:
                self._address_in_the_way(operation, address, ifindex)
            case _:
                self._fail(operation, errno, words)

    def _another_id(self, operation: Operation, ifindex: int, errno: int, words: str) -> None:
        place = (ifindex, operation.entry.key[2])
        attempt, taken = self._single, self._nexthops.id_of(*place)
        if taken is not None and is_misled(errno, operation.entry.key[2]):
            attempt = partial(self._lead, *place)
            errno, words = attempt(partial(self._new_nexthop, taken, *place))
            if not errno:
                return
        for _ in range(_ID_ATTEMPTS):
            taken = self._nexthops.id_of(*place)
            if taken is not None and errno == EEXIST:
                self._nexthops.reserve(taken)
            else:
                break
            object_id = self._nexthops.assign(*place)
            errno, words = attempt(partial(self._new_nexthop, object_id, *place))
            if not errno:
                return
        self._forget(*place)
        self._fail(operation, errno, words)

    def _route_in_the_way(self, operation: Operation, route: Route, ifindex: int, errno: int, words: str) -> None:
        found = find_route(self._requests, route)
        if found is None and route.overlay and is_misled(errno, route.gateway):
            self._lead_route(operation, route, ifindex, _ADD)
        elif found is None:
            self._fail(operation, errno, words)
        elif self._nexthops.resolve(found) != (ifindex, route.gateway):
            self._fail(operation, EEXIST, in_the_way(self._requests, self._nexthops, route, found))
        elif found.protocol in (RTPROT_BOOT, FORMER_PROTOCOL) and not route.overlay:
            self._single(lambda seq: self._encode_route(seq, ifindex, route, _SET))  # It serves also if unmarked.
        elif found.protocol not in MARKS and not route.overlay:
            self._fail(operation, EEXIST, in_the_way(self._requests, self._nexthops, route, found))

    def _lead_route(self, operation: Operation, route: Route, ifindex: int, flags: int) -> None:
        assert route.gateway is not None
        build = partial(self._encode_route, ifindex=ifindex, route=route, flags=flags)
        errno, words = self._lead(ifindex, route.gateway, build)
        if errno:
            self._fail(operation, errno, words)

    def _lead(self, ifindex: int, gateway: bytes, build: Callable[[int], bytes]) -> tuple[int, str]:
        """Try while a route over the device leads to the gateway alone. Killed in between, it is a leftover of ours."""
        refused, _ = self._single(lambda seq: request.route(seq, _ADD, ifindex, gateway, 128, None))
        outcome = self._single(build)
        if not refused:
            self._single(lambda seq: request.route_delete(seq, ifindex, gateway, 128, None))
        return outcome

    def _address_in_the_way(self, operation: Operation, address: Address, ifindex: int) -> None:
        lengths = prefix_lengths(address, ifindex)
        if address.prefix_length not in lengths:
            there = " and ".join(f"/{length}" for length in sorted(lengths)) or "in another form"
            self._fail(
                operation, EEXIST, f"{text(address.address)} is on the device already, {there}; remove that first"
            )

    def _may_replace(self, operation: Operation, route: Route, ifindex: int) -> bool:
        self._send()
        found = find_route(self._requests, route)
        if found is None or found.protocol in MARKS or self._nexthops.resolve(found)[0] == ifindex:
            return True
        self._fail(operation, EEXIST, in_the_way(self._requests, self._nexthops, route, found))
        return False

    def _remove_as_found(self, operation: Operation, route: Route, ifindex: int) -> None:
        subnet, length = route.subnet, route.prefix_length
        found = find_route(self._requests, route)
        object_id = found.nexthop_id if found is not None else 0
        if found is not None and object_id and self._nexthops.resolve(found)[0] == ifindex:
            errno, words = self._single(
                lambda seq: request.route_by_id(seq, rt.RTM_DELROUTE, 0, subnet, length, object_id)
            )
        elif object_id and len(subnet) == 16:
            return
        else:
            errno, words = self._single(
                lambda seq: request.route_delete(seq, ifindex, subnet, length, None if route.overlay else route.gateway)
            )
        if errno and errno not in _ABSENT:
            self._fail(operation, errno, words)

    def _fail(self, operation: Operation, errno: int, words: str) -> None:
        self._failures.append(Failure(operation, errno, words or os.strerror(errno)))

    def _forget(self, ifindex: int, gateway: bytes) -> None:
        object_id = self._nexthops.id_of(ifindex, gateway)
        if object_id is not None:
            self._nexthops.forget(object_id)

    # Questions

    def _single(self, build: Callable[[int], bytes]) -> tuple[int, str]:
        seq = self._requests.next_seq()
        return self._requests.send([(seq, build(seq))]).get(seq, (0, ""))

    def _ifindex(self, name: str) -> int:
        link = find_link(self._requests, name)
        return 0 if link is None else link.ifindex
