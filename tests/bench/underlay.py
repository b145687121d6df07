"""What the underlay cuts: as between namespaces, where super-packets travel whole, or as with a plain network card.

A veth pair passes on what it is given, up to 64 KiB at once, so in a lab nobody ever cuts what a tunnel carries. With a
card that has no offloads for tunnels the sender's kernel cuts it, and the receiver gets packet by packet. Segmentation
of plain TCP stays: every card has it. What a card's driver merges before the host sees it is not imitated.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from tests.lab.host import Host

NOT_IN_A_PLAIN_CARD = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation")
"""Features as `ethtool --features` names them."""


class Underlay(Enum):
    """A kind of underlay, by the name that `--underlay` takes."""

    LAB = "lab"
    NIC = "nic"

    def label(self, benchmark: str) -> str:
        """The name of a benchmark that was measured on it."""
        return benchmark if self is Underlay.LAB else f"{benchmark}, NIC-like"

    def apply(self, hosts: Iterable[Host]) -> None:
        """Make the underlay interfaces of these hosts such; running connections go on. Raises LabError."""
        state = "on" if self is Underlay.LAB else "off"
        settings = [word for feature in NOT_IN_A_PLAIN_CARD for word in (feature, state)]
        for host in hosts:
            host.namespace.run(["ethtool", "--features", "eth0", *settings])


def underlays(text: str) -> tuple[Underlay, ...]:
    """Read names, separated by commas. Raises ValueError."""
    return tuple(map(Underlay, text.split(",")))
