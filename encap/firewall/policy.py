"""What the packet filter should do for the overlay, as data: pure, and the same for nftables and iptables.

    masquerade, after routing, first rule that fits          forward
      marked by kube-proxy (0x4000)     leave alone            from Network   accept
      from our subnet to Network        leave alone            to Network     accept
      from Network to our subnet        leave alone
      from outside to our subnet        leave alone          raw, before anything else; all to our subnet
      from Network to an excluded CIDR  leave alone            by the tunnel's device                  accept
      by this host, if inside Network   leave alone            from an excluded CIDR                   accept
      from Network, not to multicast    masquerade             by the underlay, from Network or a
      from outside to Network           masquerade             host that sends without a tunnel        accept

The rules and their order are flannel's, but for the excluded CIDRs, the host's own address and raw. An underlay inside
Network makes the tunnel's own packets look like containers': masqueraded, each would leave by another port.
Containers see each other's addresses; what leaves Network goes with the host's address; what comes from outside to
another host's containers goes with ours, so that the answer comes back through us. Raw's are for engines that drop
there what does not come over their own bridge (Docker since 28.0): what the overlay brings is let through, all else is
left to them. And before anything else, where there is a tunnel, UDP to its port from Network to elsewhere is dropped,
but for what the underlay brings to this host: a container could send tunnel packets that way, which its host,
masquerading, would make its own. Not here: how they are written (nft.py, chains.py), and where (enforce.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network

from flanneld_py.encap.family import IPAddress

Network = IPv4Network | IPv6Network

KUBE_MARK = 0x4000
"""kube-proxy marks what it masquerades itself."""

_MULTICAST = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}


class Verdict(Enum):
    """What happens to a packet that a rule fits."""

    RETURN = "return"
    ACCEPT = "accept"
    DROP = "drop"
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
    """One rule; what is None fits every packet. `marked`: only packets with kube-proxy's mark.

    `came_by` is the name of the interface that a packet came in by, `leaves_by` of the one that it is to leave by.
    `port`: only UDP datagrams to it.
    """

    verdict: Verdict
    source: Match | None = None
    destination: Match | None = None
    marked: bool = False
    came_by: str | None = None
    leaves_by: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted for one address family. `excluded` of the other family are of no account.

    `own_only`: forward for this host's own containers only, and be no way to those of other hosts.

    `device` is the tunnel's; a network without one has None. `direct` are the hosts, by their underlay addresses, whose
    packets come without a tunnel, over the interface `underlay`. `host` is our own address there.

    `port` is where the tunnel's datagrams go, None without a tunnel; `answered`: one may be the answer to one of ours,
    as to conntrack, since both ends use one port.
    """

    network: Network
    subnet: Network
    masquerade: bool = False
    forward: bool = True
    random_fully: bool = True
    excluded: tuple[Network, ...] = ()
    device: str | None = None
    underlay: str | None = None
    direct: frozenset[IPAddress] = frozenset()
    own_only: bool = False
    host: IPAddress | None = None
    port: int | None = None
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one address family (4 or 6), in order; none at all where that part is switched off.

    `subnet` is the one whose packets those in `raw` let through. `closed` are the drops among `forward`. `tunnel` comes
    before all else, and keeps containers from the hosts' tunnel.
    """

    family: int
    subnet: Network
    masquerade: tuple[Rule, ...]
    forward: tuple[Rule, ...]
    closed: tuple[Rule, ...]
    raw: tuple[Rule, ...]
    underlay: str | None
    tunnel: tuple[Rule, ...] = ()


def name_suffix(device: str | None) -> str:
    """Return what tells the tables and chains of several networks on one host apart.

    Nothing for flannel's default, and for a backend without a device, of which a host has one.
    """
    if device in (None, "flannel.1", "flannel-v6.1"):
        return ""
    # A chain of iptables has at most 28 bytes: of the names that were made to fit only what tells them apart.
    return "-" + device.rpartition(".")[2].removeprefix("flannel4").removeprefix("flannel6")


def rules(policy: Policy) -> Rules:
    """Work out the rules that a policy means."""
    family = policy.network.version
    return Rules(
        family,
        policy.subnet,
        _masquerade(policy, _MULTICAST[family]) if policy.masquerade else (),
        _forward(policy) if policy.forward else (),
        _closed(policy) if policy.forward else (),
        _arriving(policy, _excluded(policy) if policy.masquerade else ()) if policy.forward else (),
        policy.underlay,
        _tunnel(policy) if policy.forward or policy.masquerade else (),
    )


def _tunnel(policy: Policy) -> tuple[Rule, ...]:
    """Drop what a container sends to a host's tunnel: masqueraded, it would come from the address of a peer.

    A peer may be inside Network though we are not: what it sends to us comes by the underlay interface.
    """
    if policy.port is None:
        return ()
    inside, port = In(policy.network), policy.port
    drop = Rule(Verdict.DROP, inside, NotIn(policy.network), port=port)
    if policy.host is None or policy.underlay is None or policy.host in policy.network:
        return (drop,)
    return Rule(Verdict.RETURN, inside, In(ip_network(policy.host)), came_by=policy.underlay, port=port), drop


def _masquerade(policy: Policy, multicast: Network) -> tuple[Rule, ...]:
    inside, outside = In(policy.network), NotIn(policy.network)
    ours = In(policy.subnet)
    masquerade = Verdict.MASQUERADE_RANDOM if policy.random_fully else Verdict.MASQUERADE
    return (
        Rule(Verdict.RETURN, marked=True),
        Rule(Verdict.RETURN, ours, inside),
        Rule(Verdict.RETURN, inside, ours),
        Rule(Verdict.RETURN, outside, ours),
        *(Rule(Verdict.RETURN, inside, In(cidr)) for cidr in _excluded(policy)),
        *([Rule(Verdict.RETURN, In(ip_network(policy.host)))] if policy.host and policy.host in policy.network else []),
        Rule(masquerade, inside, NotIn(multicast)),
        Rule(masquerade, outside, inside),
    )


def _forward(policy: Policy) -> tuple[Rule, ...]:
    inside = In(policy.network)
    if not policy.own_only:
        return Rule(Verdict.ACCEPT, source=inside), Rule(Verdict.ACCEPT, destination=inside)
    ours = In(policy.subnet)
    leaving = [Rule(Verdict.ACCEPT, ours, leaves_by=policy.device)] if policy.device else []
    if policy.direct:
        leaving.append(Rule(Verdict.ACCEPT, ours, inside, leaves_by=policy.underlay))
    return (*_closed(policy), *leaving, *_arriving(policy))


def _closed(policy: Policy) -> tuple[Rule, ...]:
    """Drop what came by the underlay interface and would go on to another host's containers."""
    if not policy.own_only or policy.underlay is None:
        return ()
    by, inside = policy.underlay, In(policy.network)
    tunnel = [Rule(Verdict.DROP, came_by=by, leaves_by=policy.device)] if policy.device else []
    return (*tunnel, *((Rule(Verdict.DROP, destination=inside, came_by=by, leaves_by=by),) if policy.direct else ()))


def _arriving(policy: Policy, excluded: Iterable[Network] = ()) -> tuple[Rule, ...]:
    """Accept what the overlay brings to our subnet, and what comes from the excluded networks."""
    ours = In(policy.subnet)
    tunnel = [Rule(Verdict.ACCEPT, destination=ours, came_by=policy.device)] if policy.device else []
    # They see our containers' own addresses, so they answer to these.
    beside = [Rule(Verdict.ACCEPT, In(cidr), ours) for cidr in excluded]
    if not policy.direct:
        return (*tunnel, *beside)
    senders = [policy.network, *(ip_network(host) for host in sorted(policy.direct, key=int))]
    return (
        # No packet but those to our subnet is held against every host, and of these only those of hosts.
        Rule(Verdict.RETURN, destination=NotIn(policy.subnet)),
        *tunnel,
        *beside,
        *(Rule(Verdict.ACCEPT, In(sender), ours, came_by=policy.underlay) for sender in senders),
    )


def _excluded(policy: Policy) -> list[Network]:
    return [cidr for cidr in policy.excluded if cidr.version == policy.network.version]
