"""Which offloads the userspace data plane has and lacks, and the lines in the log about it.

Without one it works all the same, packet by packet where it could be dozens at once. One can also be lost while it
runs: for an underlay without checksum offload (Linux before 6.11) or with IPsec the kernel cuts no datagrams.
"""

from __future__ import annotations

from flanneld_py.agent.log import facts, log
from flanneld_py.encap.datapath.control.messages import Status

MEANINGS = {
    "csum": "the kernel sums every packet before it hands it over",
    "tso4": "TCP over IPv4 comes packet by packet",
    "tso6": "TCP over IPv6 comes packet by packet",
    "uso4": "UDP over IPv4 comes packet by packet; Linux before 6.2 cannot do otherwise",
    "uso6": "UDP over IPv6 comes packet by packet; Linux before 6.2 cannot do otherwise",
    "udp-segment": "datagrams are sent one by one; the kernel cuts none where the underlay interface sums nothing "
    "(ethtool -K <interface> tx on), or IPsec is on the way",
    "udp-gro": "datagrams are received one by one; Linux before 5.0 cannot do otherwise",
    "accelerator": "packets are cut and merged in Python: install again where gcc and Python's headers are",
}
"""All there are, by the name that operators see, and what it means to lack one: the device's, the wire's, our own."""


def in_use(status: Status) -> tuple[str, ...]:
    """Return the offloads that the process uses, in the order of MEANINGS."""
    ours = {"udp-segment": status.segmentation, "udp-gro": status.coalescing, "accelerator": status.accelerated}
    there = {*status.offloads, *(name for name, used in ours.items() if used)}
    return tuple(name for name in MEANINGS if name in there)


def lacking(status: Status) -> tuple[str, ...]:
    """Return the others."""
    there = in_use(status)
    return tuple(name for name in MEANINGS if name not in there)


class Offloads:
    """What was said of them last."""

    def __init__(self) -> None:
        self._said: tuple[str, ...] | None = None

    def note(self, status: Status) -> None:
        """Log what the process has and what it lacks, when that is new."""
        there = in_use(status)
        if not status.configured or there == self._said:
            return
        self._said = there
        log.info("offloads of the data plane in use", **facts(device=status.device, offloads=",".join(there) or "none"))
        if missing := lacking(status):
            means = "; ".join(dict.fromkeys(MEANINGS[name] for name in missing))
            log.warning(
                "the data plane lacks offloads and is slower",
                **facts(device=status.device, lacking=",".join(missing), means=means),
            )
