"""The flags: the only list of them. Parser, help text and (held against it by a test) the README's table follow it.

Flannel's names and defaults; what is ours alone is marked nowhere, it is simply more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "switch", "number", "list", "refused", "ignored"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. A `list` may be given several times; a `refused` one is flannel's and not supported here."""

    name: str
    kind: Kind
    default: str
    meaning: str

    @property
    def variable(self) -> str:
        """The environment variable that stands in for it."""
        return "FLANNELD_" + self.name.upper().replace("-", "_")


KUBE = "Kubernetes is not supported: leases are kept in etcd"

FLAGS = (
    Flag("etcd-endpoints", "text", "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd's URLs, separated by commas"),
    Flag("etcd", "text", "", "short for `--etcd-endpoints`"),
    Flag("etcd-prefix", "text", "/coreos.com/network", "where the network's config and leases are in etcd"),
    Flag("etcd-keyfile", "text", "", "key of the client certificate"),
    Flag("etcd-certfile", "text", "", "client certificate, for mutual TLS"),
    Flag("etcd-cafile", "text", "", "authority that signed etcd's certificate; enough alone"),
    Flag("etcd-username", "text", "", "etcd user"),
    Flag("etcd-password", "text", "", "its password; better given as `FLANNELD_ETCD_PASSWORD`"),
    Flag("etcd-client", "text", "grpc", "`grpc`, or `etcd3`: the package of that name, from `flanneld-py[etcd3]`"),
    Flag("iface", "list", "", "underlay interface, by name or address; repeatable, the first that fits is taken"),
    Flag("iface-regex", "list", "", "the same by regular expression on addresses, then names; after all `--iface`"),
    Flag("iface-can-reach", "text", "", "the interface that the kernel would use to reach this address; tried last"),
    Flag("public-ip", "text", "", "address that the other hosts send to, if not the interface's own (NAT)"),
    Flag("public-ipv6", "text", "", "the same for IPv6"),
    Flag("subnet-file", "text", "/run/flannel/subnet.env", "where the leased subnet is written for container engines"),
    Flag(
        "subnet-lease-renew-margin", "number", "60", "warn if the lease is not renewed this many minutes before it ends"
    ),
    Flag("lease-ttl", "number", "1440", "minutes that the lease lasts if it is not renewed; at least 10"),
    Flag("release-on-stop", "switch", "false", "give the lease back when the host shuts down (systemd tells)"),
    Flag("release", "switch", "false", "give the lease back (the agent must be stopped), and exit"),
    Flag(
        "subnet-len",
        "number",
        "",
        "prefix length of this host's IPv4 subnet, for one smaller than the network's SubnetLen; at most 30",
    ),
    Flag(
        "ip-masq",
        "switch",
        "false",
        "masquerade what leaves the network; FLANNEL_IPMASQ says so to the container engine",
    ),
    Flag("ip-masq-fully-random-disable", "switch", "false", "masquerade without choosing source ports at random"),
    Flag(
        "snat-exclude",
        "list",
        "",
        "CIDR (or several, with commas) towards which containers keep their own addresses; repeatable",
    ),
    Flag(
        "iptables-resync",
        "number",
        "5",
        "seconds between looks at what tells of no change: legacy iptables, the blackhole route; 0: five minutes",
    ),
    Flag("iptables-forward-rules", "switch", "true", "accept forwarded packets from and to the network in iptables"),
    Flag(
        "forward-own-only",
        "switch",
        "false",
        "forward for this host's own containers only: nobody gets through this host to those of other hosts",
    ),
    Flag(
        "firewall", "text", "auto", "where the rules go: `nftables`, `iptables`, `none`, or `auto`: what the host uses"
    ),
    Flag(
        "ip-blackhole-route",
        "switch",
        "false",
        "drop packets to containers of ours that are not there, by a route of the worst metric",
    ),
    Flag("healthz-ip", "text", "0.0.0.0", "address of the health server"),
    Flag("healthz-port", "number", "0", "port of `/healthz`, `/readyz` and `/status`; 0 is off"),
    Flag(
        "datapath",
        "text",
        "auto",
        "`kernel` VXLAN, `userspace`, or `auto`: kernel if it has VXLAN devices; `udp` is always userspace",
    ),
    Flag(
        "datapath-workers",
        "number",
        "",
        "processes that carry packets in userspace, in each family; else a quarter of the cores, from 1 to 4",
    ),
    Flag("datapath-stop", "switch", "false", "end the userspace data plane, which outlives the agent, and exit"),
    Flag("cleanup", "switch", "false", "remove all that was made on this host (the agent must be stopped), and exit"),
    Flag("log-json", "switch", "false", "log JSON objects instead of text"),
    Flag("v", "number", "0", "1 and more: log details"),
    Flag("vmodule", "ignored", "", "accepted, without effect"),
    Flag("log_backtrace_at", "ignored", "", "accepted, without effect"),
    Flag("kube-subnet-mgr", "refused", "", KUBE),
    Flag("kube-api-url", "refused", "", KUBE),
    Flag("kubeconfig-file", "refused", "", KUBE),
    Flag("kube-annotation-prefix", "refused", "", KUBE),
    Flag("net-config-path", "refused", "", KUBE),
    Flag("set-node-network-unavailable", "refused", "", KUBE),
    Flag("version", "switch", "false", "print the version and exit"),
    Flag("help", "switch", "false", "print this and exit"),
)
