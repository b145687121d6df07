"""A bridge that has the address of an earlier lease, and what is to be done about it before an ADD.

    no port in it    removed: the delegate makes it anew
    ports in it      IPv4: the ADD is refused, as the delegate would; IPv6: the delegate adds the new address

The reference bridge plugin keeps the address: it refuses every ADD for ever (IPv4), or has both (IPv6), and then this
host does not reach whoever has the earlier subnet now.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flanneld_py.agent.cni.conf import BRIDGE
from flanneld_py.agent.cni.spec import CniError, Code, Json
from flanneld_py.agent.subnetfile import SubnetFile


def renew(conf: Json, subnets: SubnetFile, directory: Path) -> None:
    """Remove the bridge of a delegate's configuration if it is of an earlier lease and no port is in it.

    `directory` is the lock of those who do. Raises CniError if the delegate could not use the bridge; OSError.
    """
    if conf.get("type") != "bridge" or conf.get("forceAddress"):
        return
    if not (conf.get("isGateway") or conf.get("isDefaultGateway")):
        return  # Its address is none of ours.
    name = str(conf.get("bridge") or BRIDGE)
    if not earlier(_shown("-details", "address", "show", "dev", name), subnets):
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Between the two looks another call may have made the bridge anew.
        fcntl.flock(lock, fcntl.LOCK_EX)
        addresses = earlier(_shown("-details", "address", "show", "dev", name), subnets)
        ports = len(_shown("link", "show", "master", name))
        if addresses and not ports:
            subprocess.run(["ip", "link", "delete", "dev", name], stdout=subprocess.DEVNULL, check=False)
        elif ipv4 := [address for address in addresses if ":" not in address]:
            todo = f"remove the containers in it ({ports}), and the next one makes it anew"
            raise CniError(Code.BRIDGE, f"{name} still has {', '.join(ipv4)} of an earlier lease: {todo}")
    finally:
        os.close(lock)


def has_ports(conf: Json) -> bool:
    """Tell whether a container is in the bridge of a delegate's configuration, if that is a bridge."""
    return conf.get("type") == "bridge" and bool(_shown("link", "show", "master", str(conf.get("bridge") or BRIDGE)))


def earlier(shown: Sequence[Json], subnets: SubnetFile) -> list[str]:
    """Return the addresses of a bridge, as `ip` shows it, in the families whose gateway address it does not have."""
    infos = [info for link in shown if _kind(link) == "bridge" for info in _addresses(link)]
    found = [f"{info.get('local')}/{info.get('prefixlen')}" for info in infos if info.get("scope") == "global"]
    stale: list[str] = []
    for _, subnet in subnets.families:
        own = [address for address in found if (":" in address) == (subnet.version == 6)]
        if f"{subnet.network_address + 1}/{subnet.prefixlen}" not in own:
            stale += own
    return stale


def _kind(link: Json) -> object:
    info = link.get("linkinfo")
    return info.get("info_kind") if isinstance(info, dict) else None


def _addresses(link: Json) -> list[Json]:
    infos = link.get("addr_info")
    return [info for info in infos if isinstance(info, dict)] if isinstance(infos, list) else []


def _shown(*words: str) -> list[Json]:
    """Return what `ip` shows; nothing if there is no such device, or no `ip`."""
    with suppress(FileNotFoundError, ValueError):
        done = subprocess.run(["ip", "-json", *words], capture_output=True, check=False)
        return [link for link in json.loads(done.stdout) if link]
    return []
