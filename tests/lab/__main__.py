"""`python -m tests.lab`: start a lab, show that it works, hold it until Ctrl-C, leave nothing behind.

    arguments -> root and tools there? -> start, one line a step -> table of all pairs -> how to look inside -> wait

Exit codes: 0 every pair answered without loss; 1 a pair did not, or the lab could not be built; 2 wrong arguments,
not root, or a tool is missing.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from types import FrameType

from tests.lab.host import Container
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.lab.measure import ping, throughput
from tests.lab.namespace import LabError
from tests.lab.programs import program
from tests.lab.report import Pair, document, table
from tests.lab.run import leftovers
from tests.lab.topology import DEFAULT_NETWORK, DEFAULT_UNDERLAY, Plan

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEBIAN_PACKAGE = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ping": "iputils-ping",
    "iperf3": "iperf3",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "curl": "curl",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    try:
        plan = _plan(options)
    except ValueError as error:
        return _refuse(str(error))
    if os.geteuid() != 0:
        return _refuse("The lab makes network namespaces and needs root: run it with sudo.")
    if problem := _missing(plan, options.seconds):
        return _refuse(problem)
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        return _clean() if options.clean else _hold(plan, options)
    except (LabError, TimeoutError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1  # stopped before the table was there


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Real hosts on one machine.")
    parser.add_argument("--hosts", type=int, default=3, metavar="N", help="hosts (default 3)")
    parser.add_argument("--containers", type=int, default=1, metavar="M", help="containers on each host (default 1)")
    parser.add_argument("--backend", default="vxlan", help="backend type in the network config (default vxlan)")
    parser.add_argument("--network", type=IPv4Network, default=DEFAULT_NETWORK, metavar="CIDR", help="overlay network")
    parser.add_argument("--underlay", type=IPv4Network, default=DEFAULT_UNDERLAY, metavar="CIDR", help="hosts' network")
    parser.add_argument("--once", action="store_true", help="end after the table instead of waiting for Ctrl-C")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome there as well")
    parser.add_argument("--seconds", type=int, default=1, metavar="S", help="iperf3 for each pair; 0 = skip")
    parser.add_argument("--manual", action="store_true", help="program VXLAN by hand: no agents, no etcd")
    parser.add_argument("--flanneld", type=Path, metavar="PATH", help="another daemon with flannel's command line")
    parser.add_argument("--clean", action="store_true", help="only remove what crashed labs left")
    parser.add_argument("--verbose", action="store_true", help="show every command")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    if options.seconds < 0:
        raise ValueError(f"--seconds {options.seconds}: expected 0 (no iperf3) or more")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no directory {options.json.parent}")
    return Plan(
        hosts=options.hosts,
        containers=options.containers,
        network=options.network,
        backend=options.backend,
        overlay="manual" if options.manual else "agents",
        flanneld=options.flanneld,
        underlay=options.underlay,
    )


def _refuse(why: str) -> int:
    print(f"lab: {why}", file=sys.stderr)
    return 2


def _missing(plan: Plan, seconds: int) -> str | None:
    """Name the first tool that is not there, and its Debian package."""
    unneeded = {"etcd", "etcdctl", "curl"} if plan.overlay == "manual" else set()
    if seconds == 0:
        unneeded.add("iperf3")
    for tool, package in DEBIAN_PACKAGE.items():
        if tool not in unneeded and shutil.which(program(tool)) is None:
            return f"{tool} is not installed: apt install {package}"
    daemon = plan.flanneld or DEFAULT_FLANNELD
    if plan.overlay == "agents" and shutil.which(daemon) is None:
        return f"{daemon} is no executable: install the package into this Python, or name a daemon with --flanneld"
    return None


def _stop(number: int, frame: FrameType | None) -> None:
    # From here on only the clean-up runs, and neither it nor the commands it starts can be interrupted again.
    _ignore_stop_signals()
    raise KeyboardInterrupt


def _ignore_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _clean() -> int:
    for run in leftovers():
        run.remove()
        print(f"removed what run {run.name} left")
    return 0


def _hold(plan: Plan, options: argparse.Namespace) -> int:
    lab = Lab(plan, progress=lambda line: print(line, flush=True))
    try:
        lab.start()
        print(f"{lab.start_seconds:6.2f} s  together; run {lab.run.name}", flush=True)
        _wait_connected(lab)
        pairs = [_measure(source, target, options.seconds) for source, target in lab.pairs()]
        print(f"{table(pairs)}\n", flush=True)
        if options.json:
            options.json.write_text(document(pairs, _about(lab)))
        if not options.once:
            _wait_for_stop(_directions(lab))
        return 0 if all(pair.good for pair in pairs) else 1
    finally:
        _ignore_stop_signals()
        lab.close()


def _wait_connected(lab: Lab) -> None:
    began = time.monotonic()
    silent = lab.wait_connected()
    print(
        f"{time.monotonic() - began:6.2f} s  {len(lab.pairs())} pairs pinged, {len(silent)} without an answer\n",
        flush=True,
    )


def _measure(source: Container, target: Container, seconds: int) -> Pair:
    outcome = ping(source, target)
    gbit = throughput(source, target, seconds) if seconds > 0 and outcome.received else None
    return Pair(source.name, target.name, str(target.address), outcome.average_ms, outcome.loss, gbit)


def _about(lab: Lab) -> dict[str, object]:
    plan = lab.plan
    return {
        "run": lab.run.name,
        "hosts": plan.hosts,
        "containers": plan.containers,
        "network": str(plan.network),
        "backend": plan.backend,
        "overlay": plan.overlay,
        "start_seconds": round(lab.start_seconds, 3),
    }


def _directions(lab: Lab) -> str:
    containers = [f"  sudo ip netns exec {c.namespace.name} bash    # {c.name} {c.address}" for c in lab.containers]
    hosts = [f"  sudo ip netns exec {h.namespace.name} bash    # {h.name} {h.address}" for h in lab.hosts]
    first = lab.hosts[0]
    return "\n".join(
        [
            "A shell in a container:",
            *containers,
            "A shell on a host:",
            *hosts,
            "What the overlay looks like, and its packets:",
            f"  sudo ip -n {first.namespace.name} -d link",
            f"  sudo ip netns exec {first.namespace.name} tcpdump -ni eth0 udp port 8472",
            f"Logs: {lab.run.directory}/*/agent.log, {lab.run.directory}/etcd.log" if lab.etcd else "No agents run.",
            "Ctrl-C ends the lab and removes everything.",
        ]
    )


def _wait_for_stop(directions: str) -> None:
    try:
        print(directions, flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        print("\nremoving everything", flush=True)


if __name__ == "__main__":
    sys.exit(main())
