"""`flanneld-py-docker-opts`: from subnet.env to a file of Docker's options.

Its own options and its output are those of flannel's mk-docker-opts.sh.

    FLANNEL_SUBNET, FLANNEL_IPMASQ, FLANNEL_MTU -> DOCKER_OPT_BIP="--bip=…" … and DOCKER_OPTS=" --bip=… …"

Other exported DOCKER_OPT_* variables are options as well, and what the combined variable holds already comes first.
Other than flannel's, it fails without a subnet.env that is right: a Docker on another subnet would reach no other host.
"""

from __future__ import annotations

import getopt
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.subnetfile import SubnetFile, replace

USAGE = """\
usage: flanneld-py-docker-opts [-f file] [-d file] [-i] [-c] [-m] [-k name]
Write Docker's options for the subnet of this host.

  -f file  the subnet file (/run/flannel/subnet.env)
  -d file  the file to write (/run/docker_opts.env)
  -i       only the individual variables, DOCKER_OPT_*
  -c       only the combined variable
  -m       leave out --ip-masq
  -k name  the combined variable's name (DOCKER_OPTS)"""

ROUTES = Path("/proc/net/route")
RTF_GATEWAY = 2  # linux/route.h


class OptsError(Exception):
    """The options cannot be written; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The command line."""

    subnet_file: Path = Path("/run/flannel/subnet.env")
    output: Path = Path("/run/docker_opts.env")
    individual: bool = True
    combined: bool = True
    ip_masq: bool = True
    key: str = "DOCKER_OPTS"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit code: 0, or 1 and a sentence on stderr."""
    try:
        wish = parse(sys.argv[1:] if arguments is None else arguments)
        write(wish, os.environ, ROUTES)
    except OptsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str]) -> Wish:
    """Read the command line. Raises OptsError, with the usage, also for -h."""
    try:
        flags, rest = getopt.getopt(list(arguments), "f:d:icmk:h?")
    except getopt.GetoptError as error:
        raise OptsError(f"{error}\n{USAGE}") from error
    given = dict(flags)
    if rest or "-h" in given or "-?" in given:
        raise OptsError(USAGE)
    only_one = ("-i" in given) != ("-c" in given)
    return Wish(
        Path(given.get("-f", Wish().subnet_file)),
        Path(given.get("-d", Wish().output)),
        individual=not only_one or "-i" in given,
        combined=not only_one or "-c" in given,
        ip_masq="-m" not in given,
        key=given.get("-k", "DOCKER_OPTS"),
    )


def write(wish: Wish, environment: Mapping[str, str], routes: Path) -> None:
    """Write the file. Raises OptsError, also if it was written and another route to our subnet is in the way."""
    subnets = _read(wish.subnet_file)
    try:
        replace(wish.output, render(wish, subnets, environment), 0o644)
    except OSError as error:
        raise OptsError(f"cannot write {wish.output}: {error.strerror}") from error
    own = _own(subnets)
    if _is_via(own, routes):
        raise OptsError(
            f"a route to this host's own subnet {own} leads to another host: remove it (ip route del), then run again"
        )


def render(wish: Wish, subnets: SubnetFile, environment: Mapping[str, str]) -> str:
    """Return the file's text. Raises OptsError if there is no IPv4 subnet."""
    own = _own(subnets)
    options = {name: value for name, value in environment.items() if name.startswith("DOCKER_OPT_")}
    options["DOCKER_OPT_BIP"] = f"--bip={own.network_address + 1}/{own.prefixlen}"
    if wish.ip_masq:
        # Who masquerades: if we do, Docker does not.
        options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={'false' if subnets.ipmasq else 'true'}"
    options["DOCKER_OPT_MTU"] = f"--mtu={subnets.mtu}"
    lines = [f'{name}="{options[name]}"\n' for name in sorted(options)] if wish.individual else []
    if wish.combined:
        before = environment.get(wish.key, "")
        all_of_them = "".join(f" {options[name]}" for name in sorted(options))
        lines.append(f'{wish.key}="{before + " " if before else ""}{all_of_them}"\n')
    return "".join(lines)


def _read(subnet_file: Path) -> SubnetFile:
    try:
        return subnetfile.read(subnet_file)
    except OSError as error:
        raise OptsError(
            f"cannot read the subnet file {subnet_file} ({error.strerror}): has flanneld-py a lease yet?"
        ) from error
    except ValueError as error:
        raise OptsError(f"the subnet file {subnet_file}: {error}") from error


def _own(subnets: SubnetFile) -> IPv4Network:
    for _, subnet in subnets.families:
        if isinstance(subnet, IPv4Network):
            return subnet
    raise OptsError("no FLANNEL_SUBNET is in the subnet file: Docker's bridge needs an IPv4 subnet")


def _is_via(subnet: IPv4Network, routes: Path) -> bool:
    """Tell whether the kernel has a route to exactly this subnet by way of a gateway."""
    for line in routes.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        destination, mask = (socket.inet_ntoa(struct.pack("=I", int(fields[i], 16))) for i in (1, 7))
        if int(fields[3], 16) & RTF_GATEWAY and IPv4Network(f"{destination}/{mask}") == subnet:
            return True
    return False
