"""What netavark asks of a plugin and what it is answered, in its own words and in CNI's. No I/O.

    create             network            -> created    -> the network as podman keeps it
    setup, teardown    network, container -> container_call -> ContainerCall: of CNI, to the bridge and to portmap
                       CNI's result       -> status     -> what `podman inspect` shows

https://github.com/containers/netavark/blob/main/plugin-API.md, the same from netavark 1.6 to 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from flanneld_py.agent.cni.conf import BRIDGE, CHAIN, SUBNET_FILE
from flanneld_py.agent.cni.spec import CONTAINER, INTERFACE, CniError, Code, Json, Request, listed, section, text, wrong

API_VERSION = "1.0.0"
DATA_DIR = "/run/flannel-py"
"""Gone after a reboot, as are network namespaces, interfaces and rules."""
CNI_PATH = "/usr/libexec/cni:/usr/lib/cni:/opt/cni/bin"
CNI_VERSION = "1.0.0"
NETNS = "flannel-py/netns"
"""In what is kept of an attachment: the network namespace that it was made in."""

# host-local keeps addresses by network. All networks of this driver are one overlay, so they are one to it.
_NAME = "flannel-py"
_PATHS = {"subnet_file": SUBNET_FILE, "data_dir": DATA_DIR, "cni_path": CNI_PATH}
_NO_DEFAULT_ROUTE = "no_default_route"
_PROTOCOLS = {"tcp", "udp", "sctp"}
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

# What is asked for with these options, the overlay cannot give; key, flag, why.
_REFUSED = (
    ("subnets", "--subnet", "the subnet is this host's lease"),
    ("routes", "--route", "its routes are the overlay and the default route"),
    ("network_dns_servers", "--dns", "it resolves no names; podman run --dns gives a container a server"),
)


@dataclass(frozen=True, slots=True)
class ContainerCall:
    """A container's interface in a network: `request` is the CNI call, `directory` where attachments are kept."""

    request: Request
    directory: str
    wants_ipv6: bool


def created(network: Json) -> Json:
    """Return the network that podman is to keep. Raises CniError."""
    _network(network)
    for key, flag, why in _REFUSED:
        if network.get(key):
            raise CniError(Code.CONFIG, f"{why}: leave out {flag}")
    if (bridge := text(network, "network_interface")) not in ("", BRIDGE):
        why = f"the bridge of all networks of this driver is {BRIDGE}"
        raise CniError(Code.CONFIG, f"{why}: leave out --interface-name {bridge}")
    if (ipam := text(section(network, "ipam_options") or {}, "driver", "ipam_options.")) not in ("", "none"):
        raise CniError(Code.CONFIG, f"addresses are of this host's lease: leave out --ipam-driver {ipam}")
    answer: Json = {
        "network_interface": BRIDGE,
        "subnets": [],
        "dns_enabled": False,
        "ipam_options": {"driver": "none"},
    }
    return {**network, **answer}


def container_call(command: str, asked: Json, netns: str) -> ContainerCall:
    """Read setup's (ADD) or teardown's (DEL) input. Raises CniError."""
    network, options = section(asked, "network"), section(asked, "network_options")
    if network is None or options is None:
        raise CniError(Code.CONFIG, '"network" and "network_options" are needed, as netavark sends them')
    name, settings = _network(network)
    container, interface = text(asked, "container_id"), text(options, "interface_name", "network_options.")
    for key, value, pattern in (("container_id", container, CONTAINER), ("interface_name", interface, INTERFACE)):
        if not pattern.fullmatch(value):
            raise wrong(key, value, f"what matches {pattern.pattern}")
    if options.get("options"):
        raise CniError(Code.CONFIG, f"network {name} has no options for a container: {options['options']}")
    paths = {key: settings.get(key, default) for key, default in _PATHS.items()}
    directory = f"{paths['data_dir']}/attachments"
    internal = network.get("internal") is True
    # Published ports are then of the container's other networks.
    ports = [] if internal else _ports(asked)
    kept: Json = {NETNS: netns, CHAIN: [_portmap(name, ports)] if ports else []}
    alone = internal or settings.get(_NO_DEFAULT_ROUTE) in ("true", "1")
    conf: Json = {
        "cniVersion": CNI_VERSION,
        "name": _NAME,
        "subnetFile": paths["subnet_file"],
        "dataDir": directory,
        "ipam": {"dataDir": f"{paths['data_dir']}/addresses"},
        # hairpinMode: a container may ask its own published port.
        "delegate": {"bridge": BRIDGE, "hairpinMode": True, "isDefaultGateway": not alone, **kept},
        "runtimeConfig": _asked_for(options),
    }
    path = tuple(part for part in paths["cni_path"].split(":") if part)
    request = Request(command, container, netns, interface, path, CNI_VERSION, conf)
    return ContainerCall(request, directory, network.get("ipv6_enabled") is True)


def variables(request: Request, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a CNI call's environment: the caller's, without any other CNI call's."""
    others = {name: value for name, value in environment.items() if not name.startswith("CNI_")}
    own = {
        "CNI_CONTAINERID": request.container,
        "CNI_NETNS": request.netns,
        "CNI_IFNAME": request.interface,
        "CNI_PATH": ":".join(request.path),
    }
    return {**others, **own}


def status(interface: str, result: Json) -> Json:
    """Return setup's answer for the result of CNI's ADD. Raises CniError."""
    macs = [each.get("mac") for each in _objects(result, "interfaces") if each.get("sandbox")]
    ips = _objects(result, "ips")
    if not (macs and ips):
        raise CniError(Code.DELEGATE, f"bridge: its result has no interface with an address: {result}")
    subnets = [{"ipnet": ip.get("address"), **_gateway(ip)} for ip in ips]
    return {"interfaces": {interface: {"mac_address": macs[0], "subnets": subnets}}}


def _network(network: Json) -> tuple[str, dict[str, str]]:
    """Return a network's name and options, which are checked."""
    name = text(network, "name", "network.")
    if not _NETWORK.fullmatch(name):
        raise wrong("network.name", name, "a network's name")
    options = section(network, "options", "network.") or {}
    known = (*_PATHS, _NO_DEFAULT_ROUTE)
    for key, value in options.items():
        if key not in known:
            raise CniError(Code.CONFIG, f"network {name} has an option {key}: expected one of {', '.join(known)}")
        if key == _NO_DEFAULT_ROUTE and value not in ("true", "1", "false", "0"):
            raise wrong(f"options.{key}", value, "true or false")
        if key in _PATHS and not (isinstance(value, str) and value.startswith("/")):
            raise wrong(f"options.{key}", value, "a path from /")
    return name, {key: str(value) for key, value in options.items()}


def _asked_for(options: Json) -> Json:
    """Return the addresses that a container asks for, in the words of CNI's capabilities."""
    runtime: Json = {}
    if ips := listed(options, "static_ips", "network_options."):
        try:
            runtime["ips"] = [str(ip_address(str(ip))) for ip in ips]
        except ValueError as error:
            raise wrong("network_options.static_ips", ips, "addresses") from error
    if mac := text(options, "static_mac", "network_options."):
        if not _MAC.fullmatch(mac):
            raise wrong("network_options.static_mac", mac, "an Ethernet address")
        runtime["mac"] = mac
    return runtime


def _ports(asked: Json) -> list[Json]:
    """Return the published ports, one by one, in CNI's words."""
    return [port for mapping in listed(asked, "port_mappings") or [] for port in _mapped(mapping)]


def _mapped(mapping: object) -> list[Json]:
    if not isinstance(mapping, dict):
        raise wrong("port_mappings", mapping, "objects")
    host, container, count = (_number(mapping.get(key)) for key in ("host_port", "container_port", "range"))
    protocols, host_ip = str(mapping.get("protocol") or "tcp").lower().split(","), str(mapping.get("host_ip") or "")
    count = count or 1
    if not (set(protocols) <= _PROTOCOLS and min(host, container, count) > 0 and max(host, container) + count <= 65536):
        raise wrong("port_mappings", mapping, "ports of 1 to 65535, of tcp, udp or sctp")
    try:
        ip_address(host_ip or "::")
    except ValueError as error:
        raise wrong("port_mappings.host_ip", host_ip, "an address") from error
    return [
        {"hostPort": host + i, "containerPort": container + i, "protocol": protocol, "hostIP": host_ip}
        for i in range(count)
        for protocol in protocols
    ]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _portmap(name: str, ports: list[Json]) -> Json:
    return {
        "cniVersion": CNI_VERSION,
        "name": name,
        "type": "portmap",
        "capabilities": {"portMappings": True},
        "snat": True,
        "runtimeConfig": {"portMappings": ports},
    }


def _gateway(ip: Json) -> Json:
    return {"gateway": gateway} if (gateway := ip.get("gateway")) else {}


def _objects(result: Json, key: str) -> list[Json]:
    found = result.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
