"""The kernel as the rest of the program sees it: read, apply, listen.

Two implementations pass one contract suite (`tests/contract/test_kernel.py`): `netlink.Netlink` for real, and the
tests' `FakeKernel`.

What keeps a belief about the kernel true (the order matters):
- `apply` is synchronous: request sent, answer read, nothing in between. So no event that happened after our change
  can be told before `apply` returns.
- Events of our own changes are not reported; everybody else's are, in the kernel's order. One from the moment of our
  change to the same entry may come although our change was the later: whoever believes it does his own once more.
- A reading (`dump`) comes in parts; each part is true at the moment it is returned.
- What cannot be told exactly (a queue overflowed) is `Lost`: read all again. That a nexthop is `Gone` says it of the
  routes by way of it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from flanneld_py.encap.family import Network
from flanneld_py.encap.state import Entry, Failure, Key, Link, Operation, OurLink, VxlanLink


class KernelError(Exception):
    """The kernel refused a device operation. The text names the device and what to do."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Somebody else made or changed an entry on one of our devices; this is its value now."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Gone:
    """Somebody else deleted an entry on one of our devices, or changed it into something that is no entry of ours
    (a neighbour that is not permanent any more)."""

    key: Key


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A device was made, changed or deleted; `present` is False for deleted. Its entries may have gone unreported."""

    name: str
    present: bool


@dataclass(frozen=True, slots=True)
class HostChanged:
    """An address (of `device`) or a default route of the host changed: the underlay may be another one now."""

    device: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Events were lost or cannot be told exactly: read everything again."""


@dataclass(frozen=True, slots=True)
class Rerouted:
    """Somebody else has changed an address or a route of this host, on whatever device: see `on_link`."""


Event = Seen | Gone | LinkChanged | HostChanged | Rerouted | Lost


class Kernel(Protocol):
    """See the module's docstring for the ordering that every implementation keeps."""

    nexthop_objects: bool
    """Whether the kernel has nexthop objects (5.3 and later). Without them Nexthop entries must not be applied."""

    def listen(self, devices: Sequence[str], notify: Callable[[Sequence[Event]], None]) -> None:
        """Report events about these devices (by name, whether they exist yet or not), in batches, to `notify`.

        LinkChanged, Rerouted and HostChanged are reported for every device of the host, entries only for `devices`.
        Called inside a running event loop, before the first `dump`. Called again, it is about these devices from then
        on, and Lost is told: what happened in between is not known.
        """
        ...

    def link(self, name: str) -> Link | None:
        """Read one device."""
        ...

    def on_link(self, interface: str, addresses: Iterable[bytes]) -> set[bytes]:
        """Ask to which of these addresses packets go over the interface without a gateway; blocks 20 us for each."""
        ...

    async def why_no_vxlan(self) -> str:
        """Say why the kernel cannot make VXLAN devices; nothing if it can."""
        ...

    async def create_link(self, want: VxlanLink) -> None:
        """Create the device with its MAC from the first moment and bring it up. Raises KernelError."""
        ...

    async def change_link(self, have: OurLink, want: OurLink) -> None:
        """Bring MTU, MAC, learning, local address, parent and up-state of an existing device to what is wanted.

        Entries on it are kept, except that Linux drops the neighbours when the MAC changes. Raises KernelError.
        """
        ...

    async def delete_link(self, name: str, successor: OurLink | None = None) -> None:
        """Delete a device and with it all entries; an absent device is no error. Raises KernelError.

        `successor` is what is to take its place: if that cannot be made, as far as one can know, nothing is deleted.
        """
        ...

    def devices_in(self, subnets: Collection[Network]) -> list[str]:
        """List VXLAN devices with our mark, and TUN devices, that have an address in a subnet. Raises KernelError."""
        ...

    def remove_routes(
        self, networks: Collection[Network], keep: Collection[tuple[int, str]], others: Collection[Network] = ()
    ) -> list[str]:
        """Remove our routes into these networks, whatever their device; name them. Raises KernelError.

        Those into `others` stay, and those of an IP version on a device to keep, those through a nexthop object, which
        go with it, and those that are not to a host (blackhole). Ours bear our protocol, now or formerly.
        """
        ...

    def routes_beside(
        self, subnets: Collection[tuple[bytes, int]], devices: Collection[str]
    ) -> dict[tuple[bytes, int], str]:
        """Find what others have to these subnets with another metric, on none of these devices. Raises KernelError."""
        ...

    def dump(self) -> Iterator[list[Entry]]:
        """Read every entry on the listened-to devices, part by part.

        Neighbours and FDB entries only if permanent; FDB entries only with a unicast MAC and a destination; routes
        only of the main table, unicast, with a single nexthop and no protocol `kernel`; nexthops only with our
        mark, now or formerly; addresses without IPv6 link-local ones.
        """
        ...

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Do the operations in order, each on its own: one that fails does not stop the others.

        Removing what is not there is no failure. Returns what failed; keep a call to about a hundred operations,
        it blocks. A Route goes through the Nexthop of its gateway if there is one.

        REPLACE of a Route also takes the place of a route of ours to that subnet on another device. ADD of a Route
        that is there in exactly its form succeeds if that is ours, or flannel's (protocol `boot`): it is ours then.
        """
        ...

    def close(self) -> None:
        """Close all sockets; kernel state stays."""
        ...
