"""The run before ours, by the word of the subnet file: network and subnet, and whether our network's agent wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.signature import signature_of
from flanneld_py.encap.family import IPAddress, Network


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """Network and subnet of each family back then. `ours`: an agent of our network wrote it, so what it made is ours.

    Another network's agent, which was given the same file by mistake, may run, or be stopped for a moment.
    `addresses` were the underlay's: of several on an interface, keepalived's among them, that one stays.
    `neighbours` are the networks of other agents on this host, be they stopped, by their subnet files beside ours.
    """

    families: tuple[tuple[Network, Network], ...] = ()
    ours: bool = False
    addresses: tuple[IPAddress, ...] = ()
    neighbours: tuple[Network, ...] = ()

    @property
    def networks(self) -> list[Network]:
        """Its networks, if it was ours."""
        return [network for network, _ in self.families] if self.ours else []

    @property
    def subnets(self) -> tuple[Network, ...]:
        """Its subnets, if it was ours."""
        return tuple(subnet for _, subnet in self.families) if self.ours else ()


def read_previous_run(path: Path, network: str) -> PreviousRun:
    """Read the subnet file of the network with this etcd prefix, before it is written."""
    families, signature = subnetfile.previous(path), signature_of(path)
    ours = signature is not None and signature.network == network
    if signature is None or not ours:
        if signature is not None:
            log.warning(
                "the subnet file is another network's; it will be ours, and what the other has made stays",
                **facts(file=path, network=signature.network, ours=network),
            )
        return PreviousRun(families)
    addresses: tuple[IPAddress, ...] = ()
    with suppress(ValueError):
        addresses = tuple(ip_address(address) for address in signature.addresses)
    return PreviousRun(families, ours, addresses, tuple(_neighbours(path, network)))


def _neighbours(path: Path, network: str) -> Iterator[Network]:
    """Give the networks of other agents whose subnet files are in the same folder."""
    for file in sorted(path.parent.glob("*.env")):
        signature = signature_of(file)
        if file != path and signature is not None and signature.network != network:
            yield from (whole for whole, _ in subnetfile.previous(file))
