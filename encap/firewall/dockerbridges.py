"""Docker's own nftables table (its nftables backend, from 29.0 on), and how it is told to let our packets pass. Pure.

    table ip docker-bridges                                                                  and ip6 likewise
      raw-PREROUTING           ip daddr <container> iifname != "docker0" drop "DROP DIRECT ACCESS"
                                                                              unless allow-direct-routing
      filter-forward-in__...   meta mark <mark> accept "ALLOW FW MARK"        if bridge-accept-fwmark
                               drop "UNPUBLISHED PORT DROP"

A drop there is final, whatever we accept elsewhere, and the table is written anew whenever a container starts. So
Docker has to be told, once, to leave direct access to others and to accept a mark; ours is set in our own table
(nft.py), which drops strangers in Docker's stead.
"""

from __future__ import annotations

import re
from ipaddress import ip_network

from flanneld_py.encap.firewall.policy import Network

TABLE = "docker-bridges"
MARK = 0x100000
"""The bit that we set on packets that the overlay brings."""

SETTINGS = f'"allow-direct-routing": true and "bridge-accept-fwmark": "0x{MARK:x}/0x{MARK:x}"'

REMEDY = f"put {SETTINGS} into /etc/docker/daemon.json, and restart Docker: its nftables backend needs them"


def advice(listed: str, subnet: Network) -> str:
    """Say what to set, given the table as nft lists it; nothing if Docker lets what we mark pass to our subnet."""
    lines = listed.splitlines()
    dropped = any("DROP DIRECT ACCESS" in line and _concerns(line, subnet) for line in lines)
    unpublished = any("UNPUBLISHED PORT DROP" in line for line in lines)
    marked = any("ALLOW FW MARK" in line and re.search(rf"0x0*{MARK:x}\b", line) for line in lines)
    if not dropped and (marked or not unpublished):
        return ""
    return REMEDY


def _concerns(line: str, subnet: Network) -> bool:
    found = re.search(r" daddr (\S+) ", line)
    try:
        return found is not None and subnet.overlaps(ip_network(found[1]))
    except (TypeError, ValueError):  # Another family's, or not an address.
        return False
