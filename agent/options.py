"""Command line and environment to one frozen `Options`: flannel's flags, names, defaults and FLANNELD_* variables.

Rules that flannel's users know (Go's flag package): one dash or two; `-flag value` or `-flag=value`; a switch takes its
value only after `=`. An environment variable counts where its flag is not given and it is not empty. Unlike flannel, a
bad value is an error wherever it comes from: exit code 2 and one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any, Literal

from flanneld_py.agent.flags import FLAGS, KUBE
from flanneld_py.agent.settings import FirewallSettings
from flanneld_py.agent.values import UsageError, address, endpoints, file, is_ip, public, regex
from flanneld_py.registry.etcd.endpoint import Tls

MAX_WORKERS = 32
"""What the data-plane process takes (encap/datapath/control/protocol.py)."""

MAX_TTL = 525_600
"""Minutes; a year. What is longer is a reservation."""


class Exit(Exception):
    """Print `text` and exit with code 0 (`--help`, `--version`)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


_BY_NAME = {flag.name: flag for flag in FLAGS} | {"h": next(flag for flag in FLAGS if flag.name == "help")}

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


@dataclass(frozen=True, slots=True)
class Options:
    """What the daemon was told, checked. The password is kept out of every representation."""

    endpoints: tuple[str, ...]
    prefix: str
    tls: Tls | None
    username: str
    password: str = field(repr=False)
    client: Literal["grpc", "etcd3"]
    interfaces: tuple[str, ...]
    interface_regexes: tuple[str, ...]
    can_reach: IPv4Address | IPv6Address | None
    public_ip: IPv4Address | None
    public_ip6: IPv6Address | None
    subnet_file: Path
    margin: float
    lease_ttl: int
    subnet_len: int | None
    release: bool
    release_on_stop: bool
    healthz: tuple[str, int] | None
    datapath: Literal["auto", "kernel", "userspace"]
    firewall: FirewallSettings
    blackhole: bool
    datapath_workers: int | None
    datapath_stop: bool
    cleanup: bool
    log_json: bool
    verbose: bool

    @property
    def unprotected(self) -> tuple[str, ...]:
        """The flags that ask for protection which etcd's endpoints, all of them http, do not give."""
        if self.endpoints[0].startswith("https:"):
            return ()
        tls = self.tls or Tls()
        asked = {
            "--etcd-cafile": tls.ca,
            "--etcd-certfile": tls.certificate,
            "--etcd-keyfile": tls.key,
            "--etcd-password": self.password,
        }
        return tuple(flag for flag, value in asked.items() if value)


def parse(arguments: Sequence[str], environment: Mapping[str, str], version: Callable[[], str]) -> Options:
    """Read and check all options. Raises UsageError and Exit."""
    given = _split(arguments)
    for flag in FLAGS:
        value = environment.get(flag.variable, "")
        if value and flag.name not in given and flag.kind != "switch":
            given[flag.name] = [value]
        elif value and flag.name not in given and flag.name not in ("version", "help"):
            given[flag.name] = [_switch(flag.variable, value)]
    if "help" in given:
        raise Exit(help_text())
    if "version" in given:
        raise Exit(version())
    for name, values in given.items():
        if _BY_NAME[name].kind == "refused" and values[-1] != "false":
            raise UsageError(f"--{name} is not supported. {KUBE}. Remove the flag or {_BY_NAME[name].variable}.")
    return _check(given)


def default_workers(cores: int) -> int:
    """Return how many processes carry packets in userspace if nobody says: what the host can spare."""
    return max(1, min(4, cores // 4))


def help_text() -> str:
    """Return the text of `--help`."""
    lines = ["usage: flanneld-py [flags]", ""]
    for flag in FLAGS:
        default = f" (default {flag.default})" if flag.default and flag.kind != "switch" else ""
        lines.append(f"  --{flag.name}\n        {flag.meaning.replace('`', '')}{default}")
    return "\n".join(
        [*lines, "", "Every flag can be given as an environment variable, --etcd-prefix as FLANNELD_ETCD_PREFIX."]
    )


def _split(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Read the command line as Go's flag package does."""
    given: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--" and not rest:
            break
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if not argument.startswith("-") or not name:
            word = rest[0] if argument == "--" else argument
            raise UsageError(f"unexpected argument {word!r}; all arguments are flags, see --help")
        flag = _BY_NAME.get(name)
        if flag is None:
            raise UsageError(f"there is no flag --{name}, see --help")
        if flag.kind == "switch" or name in ("kube-subnet-mgr", "set-node-network-unavailable"):
            value = _switch(f"--{name}", value) if equals else "true"
        elif not equals:
            if not rest:
                raise UsageError(f"--{name} needs a value")
            value = rest.pop(0)
        if flag.kind == "list":
            given.setdefault(flag.name, []).append(value)
        else:
            given[flag.name] = [value]
    return given


def _switch(name: str, value: str) -> str:
    if value not in _TRUE + _FALSE:
        raise UsageError(f"{name} is {value!r}; it must be true or false")
    return "true" if value in _TRUE else "false"


def _check(given: Mapping[str, list[str]]) -> Options:
    def text(name: str) -> str:
        return given.get(name, [_BY_NAME[name].default])[-1]

    def number(name: str, least: int, most: int) -> int:
        value = text(name)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise UsageError(f"--{name} is {value!r}; it must be a number from {least} to {most}")
        return int(value)

    if text("etcd") and "etcd-endpoints" in given:
        raise UsageError("--etcd and --etcd-endpoints are the same flag; give only one of them")
    client: Any = text("etcd-client")
    if client not in ("grpc", "etcd3"):
        raise UsageError(f"--etcd-client is {client!r}; it must be grpc or etcd3")
    datapath: Any = text("datapath")
    if datapath not in ("auto", "kernel", "userspace"):
        raise UsageError(f"--datapath is {datapath!r}; it must be auto, kernel or userspace")
    if bool(text("etcd-keyfile")) != bool(text("etcd-certfile")):
        raise UsageError("--etcd-keyfile and --etcd-certfile go together; give both or neither")
    if bool(text("etcd-username")) != bool(text("etcd-password")):
        raise UsageError("--etcd-username and --etcd-password go together; give both or neither")
    files = {name: file(f"etcd-{name}file", text(f"etcd-{name}file")) for name in ("key", "cert", "ca")}
    tls = Tls(files["ca"], files["cert"], files["key"]) if any(files.values()) else None
    subnet_file = Path(text("subnet-file"))
    if not subnet_file.name:
        raise UsageError(f"--subnet-file is {text('subnet-file')!r}; it must be the path of a file")
    if not text("etcd-prefix").strip("/"):
        raise UsageError("--etcd-prefix is empty; the default is /coreos.com/network")
    healthz_ip = text("healthz-ip")
    if not is_ip(healthz_ip):
        raise UsageError(f"--healthz-ip is {healthz_ip!r}; it must be an IP address")
    port = number("healthz-port", 0, 65535)
    minutes = number("lease-ttl", 10, MAX_TTL)
    margin = min(60, minutes // 2)
    if "subnet-lease-renew-margin" in given:
        margin = number("subnet-lease-renew-margin", 1, minutes - 1)
    return Options(
        endpoints=endpoints(text("etcd") if "etcd" in given else text("etcd-endpoints"), tls),
        prefix=text("etcd-prefix"),
        tls=tls,
        username=text("etcd-username"),
        password=text("etcd-password"),
        client=client,
        interfaces=tuple(given.get("iface", ())),
        interface_regexes=tuple(regex(pattern) for pattern in given.get("iface-regex", ())),
        can_reach=address("iface-can-reach", text("iface-can-reach")),
        public_ip=public("public-ip", text("public-ip"), IPv4Address),
        public_ip6=public("public-ipv6", text("public-ipv6"), IPv6Address),
        subnet_file=subnet_file,
        margin=60.0 * margin,
        lease_ttl=60 * minutes,
        subnet_len=number("subnet-len", 1, 30) if "subnet-len" in given else None,
        release=text("release") == "true",
        release_on_stop=text("release-on-stop") == "true",
        healthz=(healthz_ip, port) if port else None,
        datapath=datapath,
        blackhole=given.get("ip-blackhole-route") == ["true"],
        firewall=_firewall(given, text("firewall"), number("iptables-resync", 0, 10**6)),
        datapath_workers=number("datapath-workers", 1, MAX_WORKERS) if "datapath-workers" in given else None,
        datapath_stop=text("datapath-stop") == "true",
        cleanup=text("cleanup") == "true",
        log_json=text("log-json") == "true",
        verbose=number("v", 0, 100) > 0,
    )


def _firewall(given: Mapping[str, list[str]], asked: Any, resync: int) -> FirewallSettings:
    if asked not in ("auto", "nftables", "iptables", "none"):
        raise UsageError(f"--firewall is {asked!r}; it must be auto, nftables, iptables or none")
    masquerade, own_only = (given.get(name) == ["true"] for name in ("ip-masq", "forward-own-only"))
    if masquerade and asked == "none":
        raise UsageError("--ip-masq needs rules, and --firewall none makes none; leave one of them out")
    if own_only and (asked == "none" or given.get("iptables-forward-rules") == ["false"]):
        raise UsageError("--forward-own-only is a forward rule, and none are to be made; leave it or that out")
    excluded = []
    for cidr in filter(None, ",".join(given.get("snat-exclude", ())).replace(" ", "").split(",")):
        try:
            excluded.append(ip_network(cidr))
        except ValueError:
            raise UsageError(f"--snat-exclude is {cidr!r}; it must be a network such as 10.0.0.0/8") from None
    return FirewallSettings(
        asked=asked,
        masquerade=masquerade,
        forward=given.get("iptables-forward-rules") != ["false"],
        random_fully=given.get("ip-masq-fully-random-disable") != ["true"],
        excluded=tuple(excluded),
        resync=resync,
        own_only=own_only,
    )
