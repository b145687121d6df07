"""What the packet filter should do for the overlay, as data: pure, and the same for nftables and iptables.

    masquerade, after routing, first rule that fits          forward
      marked by kube-proxy (0x4000)     leave alone            from Network   accept
      from our subnet to Network        leave alone            to Network     accept
      from Network to our subnet        leave alone
      from outside to our subnet        leave alone
      from Network to an excluded CIDR  leave alone
      from Network, not to multicast    masquerade
      from outside to Network           masquerade

The rules and their order are flannel's, but for the excluded CIDRs. Containers see each other's addresses; what leaves
Network goes with the host's address; what comes from outside to another host's containers goes with ours, so that the
answer comes back through us. Not here: how they are written (nft.py, iptables.py), and where (enforce.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

KUBE_MARK = 0x4000
"""kube-proxy marks what it masquerades itself."""

_MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}


class Verdict(Enum):
    """What happens to a packet that a rule fits."""

    RETURN = "return"
    ACCEPT = "accept"
    MASQUERADE = "masquerade"
    MASQUERADE_RANDOM = "masquerade from a random port"


@dataclass(frozen=True, slots=True)
class In:
    """An address within the network."""

    network: Network


@dataclass(frozen=True, slots=True)
class NotIn:
    """An address outside the network."""

    network: Network


Match = In | NotIn


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; what is None fits every packet. `marked`: only packets with kube-proxy's mark."""

    verdict: Verdict
    source: Match | None = None
    destination: Match | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted for one address family. `excluded` of the other family are of no account."""

    network: Network
    subnet: Network
    masquerade: bool = False
    forward: bool = True
    random_fully: bool = True
    excluded: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one address family (4 or 6), in order; none at all where that part is switched off."""

    family: int
    masquerade: tuple[Rule, ...]
    forward: tuple[Rule, ...]


def rules(policy: Policy) -> Rules:
    """Work out the rules that a policy means."""
    family = policy.network.version
    return Rules(
        family,
        _masquerade(policy, _MULTICAST[family]) if policy.masquerade else (),
        _forward(policy.network) if policy.forward else (),
    )


def _masquerade(policy: Policy, multicast: Network) -> tuple[Rule, ...]:
    inside, outside = In(policy.network), NotIn(policy.network)
    ours = In(policy.subnet)
    masquerade = Verdict.MASQUERADE_RANDOM if policy.random_fully else Verdict.MASQUERADE
    excluded = [cidr for cidr in policy.excluded if cidr.version == policy.network.version]
    return (
        Rule(Verdict.RETURN, marked=True),
        Rule(Verdict.RETURN, ours, inside),
        Rule(Verdict.RETURN, inside, ours),
        Rule(Verdict.RETURN, outside, ours),
        *(Rule(Verdict.RETURN, inside, In(cidr)) for cidr in excluded),
        Rule(masquerade, inside, NotIn(multicast)),
        Rule(masquerade, outside, inside),
    )


def _forward(network: Network) -> tuple[Rule, ...]:
    return Rule(Verdict.ACCEPT, source=In(network)), Rule(Verdict.ACCEPT, destination=In(network))
