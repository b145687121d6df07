"""The network's configuration as flannel's CNI plugin reads it, and the one that its delegate gets. No I/O.

    network configuration -> netconf -> NetConf --+-> delegate_conf -> the delegate's configuration
    subnet.env ---------------------> SubnetFile -+

A key that the operator gave in `delegate` wins, except `name`, `ipam` and `cniVersion`, which are the network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface

from flanneld_py.agent.cni.spec import CniError, Code, Json, listed, section, text
from flanneld_py.agent.subnetfile import SubnetFile

SUBNET_FILE = "/run/flannel/subnet.env"
DATA_DIR = "/var/lib/cni/flannel"
BRIDGE = "cni0"
"""The bridge that the reference plugin makes unless told otherwise."""
VALID_ATTACHMENTS = "cni.dev/valid-attachments"
CHAIN = "flannel-py/chain"
"""In the delegate's configuration: those of the plugins that come after it, where no runtime runs them."""


@dataclass(frozen=True, slots=True)
class NetConf:
    """A network's configuration, its types checked. `valid` is GC's list of (container, interface)."""

    name: str
    version: str
    subnet_file: str
    data_dir: str
    delegate: Json
    ipam: Json
    routes: list[Json]
    runtime: Json | None
    previous: Json | None
    valid: frozenset[tuple[str, str]] | None


def netconf(conf: Json) -> NetConf:
    """Read a configuration. Raises CniError."""
    name = text(conf, "name")
    if not name or "/" in name or name in (".", ".."):
        raise CniError(Code.CONFIG, f'the network\'s "name" is {name!r}: expected a name without "/"')
    delegate, ipam = section(conf, "delegate") or {}, section(conf, "ipam") or {}
    for key in ("name", "ipam"):
        if key in delegate:
            raise CniError(
                Code.CONFIG, f'network {name}: "{key}" does not belong in "delegate": it is set by flannel-py'
            )
    for place, plugin in (("delegate", delegate), ("ipam", ipam)):
        kind = text(plugin, "type", f"{place}.")
        if "type" in plugin and (not kind or "/" in kind):
            raise CniError(Code.CONFIG, f'network {name}: "{place}.type" is {kind!r}: expected a plugin\'s file name')
    return NetConf(
        name=name,
        version=text(conf, "cniVersion"),
        subnet_file=text(conf, "subnetFile") or SUBNET_FILE,
        data_dir=text(conf, "dataDir") or DATA_DIR,
        delegate=delegate,
        ipam=ipam,
        routes=listed(ipam, "routes", "ipam.") or [],
        runtime=section(conf, "runtimeConfig"),
        previous=section(conf, "prevResult"),
        valid=_attachments(conf),
    )


def delegate_conf(conf: NetConf, subnets: SubnetFile) -> Json:
    """Return the delegate's configuration, as flannel's plugin makes it."""
    kind = conf.delegate.get("type", "bridge")
    defaults: Json = {
        "type": kind,
        # One of the two masquerades: the agent, or the delegate if the agent does not.
        "ipMasq": not subnets.ipmasq,
        "mtu": subnets.mtu,
        **({"isGateway": True} if kind == "bridge" else {}),
    }
    ipam = {
        "type": "host-local",
        **conf.ipam,
        "ranges": [[{"subnet": str(subnet)}] for _, subnet in subnets.families],
        "routes": [*conf.routes, *({"dst": str(network)} for network, _ in subnets.families)],
    }
    runtime: Json = {} if conf.runtime is None else {"runtimeConfig": conf.runtime}
    return {**defaults, **conf.delegate, **runtime, "cniVersion": conf.version, "name": conf.name, "ipam": ipam}


def chain(conf: Json) -> list[Json]:
    """Return the configurations of the plugins that come after the delegate."""
    return [each for each in listed(conf, CHAIN) or [] if isinstance(each, dict)]


def with_gateways(result: Json) -> Json:
    """Return a result whose routes name the gateway that they were made with: that of the family's address.

    The reference plugins make a route without a gateway through that one, and their CHECK (at least up to 1.1.1) then
    looks for one without.
    """
    routes = result.get("routes")
    if not isinstance(routes, list):
        return result
    gateways = {
        ":" in str(ip.get("address")): gateway for ip in reversed(_ips(result)) if (gateway := ip.get("gateway"))
    }
    return {**result, "routes": [_through(route, gateways) for route in routes]}


def _through(route: object, gateways: dict[bool, object]) -> object:
    if not isinstance(route, dict):
        return route
    gateway = gateways.get(":" in str(route.get("dst")))
    return {"gw": gateway, **route} if gateway else route


def outside(result: Json, subnets: SubnetFile) -> list[str]:
    """Return the addresses of a result that are in no subnet of this host's."""
    addresses = [str(ip.get("address")) for ip in _ips(result)]
    return [address for address in addresses if not _inside(address, subnets)]


def asked_outside(conf: NetConf, subnets: SubnetFile) -> list[str]:
    """Return the addresses that the runtime asks for and that are in no subnet of this host's."""
    asked = listed(conf.runtime or {}, "ips", "runtimeConfig.") or []
    return [str(address) for address in asked if not _inside(str(address), subnets)]


def _ips(result: Json) -> list[Json]:
    ips = result.get("ips")
    return [ip for ip in ips if isinstance(ip, dict)] if isinstance(ips, list) else []


def _inside(address: str, subnets: SubnetFile) -> bool:
    try:
        ip = ip_interface(address).ip
    except ValueError:
        return False
    return any(ip in subnet for _, subnet in subnets.families)


def _attachments(conf: Json) -> frozenset[tuple[str, str]] | None:
    valid = listed(conf, VALID_ATTACHMENTS)
    if valid is None:
        return None
    try:
        return frozenset((str(each["containerID"]), str(each["ifname"])) for each in valid)
    except (TypeError, KeyError) as error:
        expected = 'expected objects with "containerID" and "ifname"'
        raise CniError(Code.CONFIG, f'"{VALID_ATTACHMENTS}": {expected}') from error
