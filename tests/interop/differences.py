"""Where the two daemons may differ, and why. Pure.

What is not here has to be the same; what is here has to differ, and just so: `theirs` and `ours` are what
answers.differences says of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """What each of them does, and why ours is right or deliberate."""

    theirs: str
    ours: str
    why: str


_TELLS = "ours says what is wrong, and waits until it is mended"
_CONFIGS_THAT_END_FLANNEL = (
    "Backend vxlan, VNI 16777216",
    "Backend vxlan, VNI -1",
    "Backend vxlan, VNI a text",
    "Backend vxlan, VNI a fraction",
    "Backend vxlan, Port a text",
    "Backend vxlan, GBP a text",
    "Backend vxlan, DirectRouting a text",
    "Backend udp, Port 70000",
    "Backend of no such type",
    "Backend without Type",
    "Backend null",
    "SubnetMin above SubnetMax",
    "EnableIPv4 false",
    "--iface not there",
    "--iface-regex, none fits",
)

_FITS = "a device's name that fits the kernel's 15 bytes"
_NAMES_THAT_ARE_TOO_LONG = (
    "Backend vxlan, VNI 10000000",
    "Backend vxlan, VNI 16777215",
    "dual stack, vxlan, VNI 10000",
)

_ROOM = "VXLAN over IPv6 takes 70 bytes, not 50"
_TOO_LARGE_AN_MTU = (
    "dual stack, vxlan",
    "dual stack, vxlan, DirectRouting",
    "dual stack, vxlan, VNI 9999",
    "dual stack, IPv6SubnetLen 80",
    "dual stack, IPv6SubnetMin and IPv6SubnetMax",
    "dual stack, IPv6SubnetMin written out",
)

_CODE = "a mistake in flags is exit code 2"
_WRONG_FLAGS = {
    "--ip-masq=perhaps": "exit 0",
    "--public-ip no address": "exit 1",
    "--iface-regex no expression": "exit 1",
    "--subnet-lease-renew-margin 1440": "exit 1",
    "--subnet-lease-renew-margin 0": "exit 1",
    "--subnet-lease-renew-margin no number": "exit 0",
    "--healthz-port no number": "exit 0",
    "no such flag": "exit 0",
    "a flag without its value": "exit 0",
    "an endpoint of no known scheme": "waits",
    "a CA that is not there": "ready",
    "a stray word": "ready",
    "FLANNELD_IP_MASQ no boolean": "ready",
}

_UDP6 = 'value={"PublicIP":"ADDRESS","PublicIPv6":%s}'

EXPECTED: Mapping[str, Difference] = {
    **{name: Difference("exit 1", "waits", _TELLS) for name in _CONFIGS_THAT_END_FLANNEL},
    **{name: Difference("exit 1", "ready", _FITS) for name in _NAMES_THAT_ARE_TOO_LONG},
    **{name: Difference("FLANNEL_MTU=1450", "FLANNEL_MTU=1430", _ROOM) for name in _TOO_LARGE_AN_MTU},
    **{name: Difference(theirs, "exit 2", _CODE) for name, theirs in _WRONG_FLAGS.items()},
    "Backend vxlan, Port 70000": Difference("ready", "waits", "there is no such port; flannel takes 4464"),
    "Backend vxlan, MTU 0": Difference("FLANNEL_MTU=-50", "FLANNEL_MTU=1450", "0 is the default"),
    "Backend udp, Port 0": Difference("ready", "waits", "the peers would not know the port that the kernel chooses"),
    "Backend extension": Difference("ready", "waits", "it runs commands that are written in etcd; not there"),
    "--public-ip of nobody, no --iface": Difference(
        "exit 1", "ready", "it is published, as the host may be behind NAT"
    ),
    "endpoints with blanks": Difference("waits", "ready", "blanks around an endpoint mean nothing"),
    "dual stack, udp": Difference(
        f"FLANNEL_MTU=1472; device flannel0-v6=none; {_UDP6 % 'null'}",
        "FLANNEL_MTU=1452; device flannel0-v6=tun mtu 1452 FLANNEL_IPV6_SUBNET/128; " + _UDP6 % '"ADDRESS6"',
        "flannel leases an IPv6 subnet and carries none of it; ours does",
    ),
}

BOTH_WAIT = frozenset(
    {
        "Backend a list",
        "Backend a text",
        "Network /29",
        "Network of IPv6",
        "Network without length",
        "Network no network",
        "Network a number",
        "no Network",
        "SubnetLen 31",
        "SubnetLen 17",
        "SubnetLen a text",
        "SubnetMin not at a boundary",
        "SubnetMin outside Network",
        "SubnetMax outside Network",
        "SubnetMin no address",
        "EnableIPv4 a text",
        "dual stack, IPv6SubnetLen 127",
        "dual stack, IPv6SubnetMin not at a boundary",
        "dual stack, IPv6SubnetMin outside",
        "dual stack, IPv6Network of IPv4",
        "dual stack, IPv6Network /126",
        "dual stack, no IPv6Network",
        "config: blank",
        "config: no JSON",
        "config: a list",
        "config: null",
        "config: something behind it",
    }
)
"""The questions to which neither of them is ever ready, and goes on."""


def expected(name: str) -> Difference:
    """Return how the answers to a question are to differ: not at all, if both are empty."""
    return EXPECTED.get(name, Difference("", "", ""))


def waits(name: str) -> tuple[bool, bool]:
    """Say whether flannel's daemon, and whether ours, is expected to wait for ever."""
    both = name in BOTH_WAIT
    return both or expected(name).theirs == "waits", both or expected(name).ours == "waits"
