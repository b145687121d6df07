"""The run before ours, by the word of the subnet file: network and subnet, and whether our network's agent wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.signature import signed_for
from flanneld_py.encap.family import Network


@dataclass(frozen=True, slots=True)
class Earlier:
    """Network and subnet of each family back then. `ours`: an agent of our network wrote it, so what it made is ours.

    Another network's agent, which was given the same file by mistake, may run, or be stopped for a moment.
    """

    families: tuple[tuple[Network, Network], ...] = ()
    ours: bool = False

    @property
    def networks(self) -> list[Network]:
        """Its networks, if it was ours."""
        return [network for network, _ in self.families] if self.ours else []

    @property
    def subnets(self) -> tuple[Network, ...]:
        """Its subnets, if it was ours."""
        return tuple(subnet for _, subnet in self.families) if self.ours else ()


def read_earlier(path: Path, network: str) -> Earlier:
    """Read the subnet file of the network with this etcd prefix, before it is written."""
    families, signer = subnetfile.previous(path), signed_for(path)
    if signer not in (network, None):
        log.warning(
            "the subnet file is another network's; it will be ours, and what the other has made stays",
            **facts(file=path, network=signer, ours=network),
        )
    return Earlier(families, signer == network)
