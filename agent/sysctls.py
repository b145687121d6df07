"""Kernel settings that keep the overlay's packets from passing, named while they are so. They are others' to change.

    net.ipv4.ip_forward, net.ipv6.conf.all.forwarding   off: containers reach nobody
    net.ipv4.conf.<interface>.forwarding                the same, by one interface
    net.ipv6.conf.<underlay>.accept_ra                  1, and forwarding on: routers are not heard
    net.ipv4.conf.<interface>.rp_filter                 1 with DirectRouting: a host that sends to us by another way
                                                        than we to it is not heard

Nobody tells of a change without another netlink socket, and reading takes some 0.1 ms: they are read every EVERY
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Never

from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.encap.family import IPV4

EVERY = 3.0
SOON = 1.0
"""Seconds, as EVERY: until there is a lease."""

_GLOBAL, _PERMANENT = "00", 0x80  # IPV6_ADDR_*, IFA_F_PERMANENT

Read = Callable[[str], str | None]
"""Returns what a file below /proc says; None if there is none."""


def read_setting(path: str) -> str | None:
    """See Read."""
    try:
        return Path("/proc", path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def complaints(wanted: Iterable[Desired], read: Read) -> dict[str, str]:
    """Say what is wrong and what to do about it: by what is to be set, which is said once each."""
    found: dict[str, str] = {}
    for each in wanted:
        backend = each.backend
        interfaces = [name for name in (backend.device, backend.parent) if name is not None]
        if backend.family is IPV4:
            found |= _forwarding4(interfaces, read)
            if backend.device is not None and backend.asks_on_link:
                found |= _strict(interfaces, read)
        else:
            found |= _forwarding6(backend.parent, read)
    return found


def _forwarding4(interfaces: Sequence[str], read: Read) -> dict[str, str]:
    if read("sys/net/ipv4/ip_forward") == "0":
        return {"sysctl -w net.ipv4.ip_forward=1": "IPv4 forwarding is off, so containers reach nobody"}
    off = [name for name in interfaces if read(f"sys/net/ipv4/conf/{name}/forwarding") == "0"]
    return {
        f"sysctl -w {_dotted('net/ipv4/conf', name)}.forwarding=1": f"what comes in by {name} is not forwarded"
        for name in off
    }


def _forwarding6(underlay: str, read: Read) -> dict[str, str]:
    forwards = read("sys/net/ipv6/conf/all/forwarding")
    # With 1 a host that forwards takes no router's word, and a default route that it took before goes at once.
    deaf = read(f"sys/net/ipv6/conf/{underlay}/accept_ra") == "1"
    accept = f"sysctl -w {_dotted('net/ipv6/conf', underlay)}.accept_ra=2"
    if forwards == "0":
        do = "sysctl -w net.ipv6.conf.all.forwarding=1"
        if deaf:
            do = f"{accept}, or a default route by router advertisement is lost; then {do}"
        return {do: "IPv6 forwarding is off, so containers reach nobody by IPv6"}
    if forwards == "1" and deaf and _learns_addresses(underlay, read):
        return {
            accept: f"{underlay} has a learned address, and since IPv6 forwarding is on router advertisements "
            "are not heard any more: its default route is lost, and its address will be"
        }
    return {}


def _learns_addresses(interface: str, read: Read) -> bool:
    """Tell whether an interface has a global address that ends some day (/proc/net/if_inet6)."""
    for line in (read("net/if_inet6") or "").splitlines():
        _, _, _, scope, flags, name = line.split()
        if name == interface and scope == _GLOBAL and not int(flags, 16) & _PERMANENT:
            return True
    return False


def _strict(interfaces: Sequence[str], read: Read) -> dict[str, str]:
    of_all = read("sys/net/ipv4/conf/all/rp_filter")
    strict = [
        name for name in interfaces if max(of_all or "0", read(f"sys/net/ipv4/conf/{name}/rp_filter") or "0") == "1"
    ]
    if not strict:
        return {}
    names = " and ".join(strict)
    return {
        "sysctl -w net.ipv4.conf.all.rp_filter=2": f"rp_filter of {names} is 1, and DirectRouting knows two ways: of a "
        "host that has us on its link while we have not, or the other way round, every packet is dropped"
    }


def _dotted(folder: str, interface: str) -> str:
    """Write a setting's path as sysctl(8) does, where a dot in an interface's name is a slash."""
    return f"{folder.replace('/', '.')}.{interface.replace('.', '/')}"


class Sysctls:
    """`wanted` tells this host as it should be, nothing before there is a lease. `found`: see `complaints`."""

    def __init__(self, wanted: Callable[[], Sequence[Desired]], clock: Clock, read: Read = read_setting) -> None:
        self._wanted = wanted
        self._clock = clock
        self._read = read
        self.found: dict[str, str] = {}

    async def run(self) -> Never:
        """Look now and then, for good."""
        while True:
            self.look()
            await self._clock.sleep(EVERY if self._wanted() else SOON)

    def look(self) -> None:
        """Look now."""
        before, self.found = self.found, complaints(self._wanted(), self._read)
        for do, reason in self.found.items():
            if do not in before:
                log.warning("a kernel setting keeps packets from passing", **facts(reason=reason, do=do))
        if before and not self.found:
            log.info("no kernel setting keeps packets from passing any more")
