"""What both daemons are asked: a network config, flags and environment each. Pure.

A question has a name by which differences.py speaks of it. Where nothing is said, the config is `PLAIN` and the flags
are the lab's (`DEFAULTS`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

DEFAULTS = ("--etcd-endpoints", "{etcd}", "--etcd-prefix", "{prefix}", "--iface", "eth0")
"""Flags that a daemon gets if a question does not say otherwise; `{address}` is the host's own on the underlay."""

PLAIN: dict[str, object] = {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}
DUAL: dict[str, object] = {**PLAIN, "EnableIPv6": True, "IPv6Network": "fd42::/48"}


@dataclass(frozen=True, slots=True)
class Question:
    """One of them; `config` as it stands in etcd, `without` the default flags that are left out."""

    name: str
    config: str = json.dumps(PLAIN)
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def _configs() -> Iterator[tuple[str, object]]:
    """Configs by name: a text as it is, all else as JSON."""
    yield from _backends()
    yield from _networks()
    yield from _both_families()
    yield "config: blank", " "
    yield "config: no JSON", "Network: 10.42.0.0/16"
    yield "config: a list", [PLAIN]
    yield "config: null", None
    yield "config: something behind it", json.dumps(PLAIN) + "}"
    yield "config: blanks around it", f"\n {json.dumps(PLAIN)} \n"
    yield "config: further keys", {**PLAIN, "Comment": "ours", "Backend": {"Type": "vxlan", "Comment": 1}}
    yield (
        "config: names in other case",
        {"network": "10.42.0.0/16", "BACKEND": {"TYPE": "VXLAN", "vni": 7, "PORT": 4789}},
    )
    yield "config: a key twice", '{"Network": "10.9.0.0/16", "Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}'


def _backends() -> Iterator[tuple[str, object]]:
    for name, backend in {
        "vxlan": {"Type": "vxlan"},
        "vxlan, VNI 42": {"Type": "vxlan", "VNI": 42},
        "vxlan, VNI 0": {"Type": "vxlan", "VNI": 0},
        "vxlan, VNI 9999999": {"Type": "vxlan", "VNI": 9_999_999},
        "vxlan, VNI 10000000": {"Type": "vxlan", "VNI": 10_000_000},
        "vxlan, VNI 16777215": {"Type": "vxlan", "VNI": 2**24 - 1},
        "vxlan, VNI 16777216": {"Type": "vxlan", "VNI": 2**24},
        "vxlan, VNI -1": {"Type": "vxlan", "VNI": -1},
        "vxlan, VNI a text": {"Type": "vxlan", "VNI": "1"},
        "vxlan, VNI null": {"Type": "vxlan", "VNI": None},
        "vxlan, VNI a fraction": {"Type": "vxlan", "VNI": 1.5},
        "vxlan, Port 4789": {"Type": "vxlan", "Port": 4789},
        "vxlan, Port 0": {"Type": "vxlan", "Port": 0},
        "vxlan, Port 70000": {"Type": "vxlan", "Port": 70000},
        "vxlan, Port a text": {"Type": "vxlan", "Port": "8472"},
        "vxlan, MTU 1400": {"Type": "vxlan", "MTU": 1400},
        "vxlan, MTU 0": {"Type": "vxlan", "MTU": 0},
        "vxlan, GBP": {"Type": "vxlan", "GBP": True},
        "vxlan, GBP a text": {"Type": "vxlan", "GBP": "true"},
        "vxlan, Learning": {"Type": "vxlan", "Learning": True},
        "vxlan, DirectRouting": {"Type": "vxlan", "DirectRouting": True},
        "vxlan, DirectRouting a text": {"Type": "vxlan", "DirectRouting": "yes"},
        "host-gw": {"Type": "host-gw"},
        "host-gw, in capitals": {"Type": "HOST-GW"},
        "host-gw, MTU 1400": {"Type": "host-gw", "MTU": 1400},
        "udp": {"Type": "udp"},
        "udp, Port 8286": {"Type": "udp", "Port": 8286},
        "udp, Port 0": {"Type": "udp", "Port": 0},
        "udp, Port 70000": {"Type": "udp", "Port": 70000},
        "alloc": {"Type": "alloc"},
        "extension": {"Type": "extension", "PreStartupCommand": "true"},
        "of no such type": {"Type": "carrier-pigeon"},
        "without Type": {},
        "null": None,
        "a list": [],
        "a text": "vxlan",
    }.items():
        yield f"Backend {name}", {**PLAIN, "Backend": backend}
    yield "no Backend", {"Network": "10.42.0.0/16"}


def _networks() -> Iterator[tuple[str, object]]:
    for name, network in {
        "/22": "10.42.0.0/22",
        "/24": "10.42.0.0/24",
        "/28": "10.42.0.0/28",
        "/29": "10.42.0.0/29",
        "with bits of a host": "10.42.5.5/16",
        "of IPv6": "fd42::/48",
        "without length": "10.42.0.0",
        "no network": "ten",
        "a number": 10,
    }.items():
        yield f"Network {name}", {**PLAIN, "Network": network}
    yield "no Network", {"Backend": {"Type": "vxlan"}}
    further: dict[str, dict[str, object]] = {
        "SubnetLen 26": {"SubnetLen": 26},
        "SubnetLen 30": {"SubnetLen": 30},
        "SubnetLen 31": {"SubnetLen": 31},
        "SubnetLen 17": {"SubnetLen": 17},
        "SubnetLen 18": {"SubnetLen": 18},
        "SubnetLen 0": {"SubnetLen": 0},
        "SubnetLen a text": {"SubnetLen": "24"},
        "SubnetMin and SubnetMax": {"SubnetMin": "10.42.10.0", "SubnetMax": "10.42.20.0"},
        "SubnetMin is SubnetMax": {"SubnetMin": "10.42.10.0", "SubnetMax": "10.42.10.0"},
        "SubnetMin above SubnetMax": {"SubnetMin": "10.42.20.0", "SubnetMax": "10.42.10.0"},
        "SubnetMin not at a boundary": {"SubnetMin": "10.42.10.7"},
        "SubnetMin outside Network": {"SubnetMin": "10.43.0.0"},
        "SubnetMax outside Network": {"SubnetMax": "10.43.0.0"},
        "SubnetMin no address": {"SubnetMin": "first"},
        "EnableIPv4 false": {"EnableIPv4": False},
        "EnableIPv4 a text": {"EnableIPv4": "true"},
        "EnableNFTables": {"EnableNFTables": True},
    }
    for name, options in further.items():
        yield name, {**PLAIN, **options}


def _both_families() -> Iterator[tuple[str, object]]:
    further: dict[str, dict[str, object]] = {
        "vxlan": {},
        "vxlan, DirectRouting": {"Backend": {"Type": "vxlan", "DirectRouting": True}},
        "vxlan, VNI 9999": {"Backend": {"Type": "vxlan", "VNI": 9999}},
        "vxlan, VNI 10000": {"Backend": {"Type": "vxlan", "VNI": 10000}},
        "host-gw": {"Backend": {"Type": "host-gw"}},
        "udp": {"Backend": {"Type": "udp"}},
        "IPv6SubnetLen 80": {"IPv6SubnetLen": 80},
        "IPv6SubnetLen 127": {"IPv6SubnetLen": 127},
        "IPv6SubnetMin and IPv6SubnetMax": {"IPv6SubnetMin": "fd42:0:0:10::", "IPv6SubnetMax": "fd42:0:0:20::"},
        "IPv6SubnetMin written out": {"IPv6SubnetMin": "FD42:0000:0000:0010:0:0:0:0"},
        "IPv6SubnetMin not at a boundary": {"IPv6SubnetMin": "fd42:0:0:10::7"},
        "IPv6SubnetMin outside": {"IPv6SubnetMin": "fd43::"},
        "IPv6Network of IPv4": {"IPv6Network": "10.43.0.0/16"},
        "IPv6Network /126": {"IPv6Network": "fd42::/126"},
        "no IPv6Network": {"IPv6Network": None},
    }
    for name, options in further.items():
        yield f"dual stack, {name}", {**DUAL, **options}


def _asked() -> Iterator[Question]:
    """Flags and environments."""

    def flags(name: str, *given: str, without: tuple[str, ...] = ()) -> Question:
        return Question(name, flags=given, without=without)

    yield flags("--ip-masq", "--ip-masq")
    yield flags("-ip-masq=false", "-ip-masq=false")
    yield flags("--ip-masq=perhaps", "--ip-masq=perhaps")
    yield flags("--public-ip of its own", "--public-ip={address}")
    yield flags("--public-ip of nobody", "--public-ip=198.51.100.7")
    yield flags("--public-ip of nobody, no --iface", "--public-ip=198.51.100.7", without=("--iface",))
    yield flags("--public-ip no address", "--public-ip=here")
    yield flags("--iface by address", "--iface={address}", without=("--iface",))
    yield flags("--iface not there", "--iface=eth7", without=("--iface",))
    yield flags("--iface, the second is there", "--iface=eth7", "--iface=eth0", without=("--iface",))
    yield flags("--iface-regex by name", "--iface-regex=^eth", without=("--iface",))
    yield flags("--iface-regex by address", r"--iface-regex=172\.30\..*", without=("--iface",))
    yield flags("--iface-regex, none fits", "--iface-regex=^wlan", without=("--iface",))
    yield flags("--iface-regex no expression", "--iface-regex=(", without=("--iface",))
    yield flags("--iface-can-reach", "--iface-can-reach=172.30.0.1", without=("--iface",))
    yield flags("no --iface", without=("--iface",))
    yield flags("--subnet-lease-renew-margin 30", "--subnet-lease-renew-margin=30")
    yield flags("--subnet-lease-renew-margin 1440", "--subnet-lease-renew-margin=1440")
    yield flags("--subnet-lease-renew-margin 0", "--subnet-lease-renew-margin=0")
    yield flags("--subnet-lease-renew-margin no number", "--subnet-lease-renew-margin=1h")
    yield flags("an endpoint without a scheme", "--etcd-endpoints={host}")
    yield flags("an endpoint with a path", "--etcd-endpoints={etcd}/v3")
    yield flags("an endpoint with a slash", "--etcd-endpoints={etcd}/")
    yield flags("endpoints, the first one dead", "--etcd-endpoints=http://172.30.0.1:1,{etcd}")
    yield flags("endpoints with blanks", "--etcd-endpoints=http://172.30.0.1:1, {etcd}")
    yield flags("an endpoint of no known scheme", "--etcd-endpoints=ftp://{host}")
    yield flags("certificates beside http", "--etcd-cafile={ca}", "--etcd-certfile={cert}", "--etcd-keyfile={key}")
    yield flags("a CA that is not there", "--etcd-cafile=/nonexistent/ca.pem")
    yield flags("a user where none is needed", "--etcd-username=flannel", "--etcd-password=not-to-be-shown")
    yield flags("--etcd-prefix with a slash", "--etcd-prefix={prefix}/")
    yield flags("--healthz-port 0", "--healthz-port=0")
    yield flags("--healthz-port no number", "--healthz-port=http")
    yield flags("--iptables-forward-rules=false", "--iptables-forward-rules=false")
    yield flags("--iptables-resync 10", "--iptables-resync=10")
    yield flags("--ip-blackhole-route", "--ip-blackhole-route")
    yield flags("--kube-subnet-mgr=false", "--kube-subnet-mgr=false")
    yield flags("--v 5", "--v", "5")
    yield flags("--vmodule and --log_backtrace_at", "--vmodule=network=5", "--log_backtrace_at=main.go:1")
    yield flags("the end of flags", "--")
    yield flags("a stray word", "up")
    yield flags("no such flag", "--nonsense")
    yield flags("a flag without its value", "--etcd-prefix")
    yield flags("--version", "--version")
    yield flags("--help", "--help")
    environment = {
        "FLANNELD_ETCD_PREFIX": ("{prefix}", "--etcd-prefix"),
        "FLANNELD_ETCD_ENDPOINTS": ("{etcd}", "--etcd-endpoints"),
        "FLANNELD_IFACE": ("eth0", "--iface"),
        "FLANNELD_IP_MASQ": ("true", ""),
        "FLANNELD_PUBLIC_IP": ("{address}", ""),
        "FLANNELD_V": ("5", ""),
        "FLANNELD_NONSENSE": ("1", ""),
        "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": ("30", ""),
    }
    for variable, (value, flag) in environment.items():
        yield Question(f"{variable} set", env={variable: value}, without=(flag,))
    yield Question("FLANNELD_IP_MASQ no boolean", env={"FLANNELD_IP_MASQ": "perhaps"})
    yield Question("FLANNELD_IFACE empty", env={"FLANNELD_IFACE": ""})
    yield Question("a flag against its variable", env={"FLANNELD_ETCD_PREFIX": "/elsewhere", "FLANNELD_IFACE": "eth7"})


def _text(config: object) -> str:
    return config if isinstance(config, str) else json.dumps(config)


QUESTIONS: tuple[Question, ...] = (
    *(Question(name, _text(config)) for name, config in _configs()),
    *_asked(),
)
