"""The project in Debian's releases: their Python, etcd, container engines and tools. One table: release x question."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.matrix import recorder, table
from tests.matrix.debian import RELEASES, MatrixError
from tests.matrix.recorder import Outcome
from tests.matrix.userland import Userland

VERSIONS = {
    "Python": "python3 --version",
    "etcd": "etcd --version",
    "Docker": "dockerd --version",
    "podman": "podman --version",
    "netavark": "/usr/lib/podman/netavark --version",
    "LXC": "lxc-info --version",
    "nft": "nft --version",
    "iptables": "iptables --version",
    "iproute2": "ip -V",
}
LABS = {
    "lab": "python -m tests.lab --once",
    "lab docker": "python -m tests.lab.engine docker",
    "lab podman": "python -m tests.lab.engine podman",
    "lab lxc": "python -m tests.lab.engine lxc",
}
TESTS: Mapping[str, Sequence[str]] = {
    "docker": ["tests/netns/test_docker.py", "tests/netns/test_raw.py"],
    "podman": ["tests/netns/test_podman.py", "tests/netns/test_netavark.py"],
    "lxc": ["tests/netns/test_lxc.py"],
    "etcd": ["tests/contract/test_etcd.py", "tests/contract/test_store.py", "tests/contract/test_claims.py"],
    "cni": ["tests/netns/test_cni.py"],
    "netlink": ["tests/netns/test_netlink.py"],
    "enforce": ["tests/netns/test_enforce.py"],
    "firewall": ["tests/netns/test_firewall.py"],
    "vxlan": ["tests/netns/test_agent.py::test_what_others_see_is_flannels", "tests/netns/test_idle.py"],
    "ipv6": ["tests/netns/test_ipv6.py::test_dual_stack"],
    "udp": ["tests/netns/test_udp.py::test_every_pair_answers_up_to_the_whole_mtu"],
    "userspace": ["tests/netns/test_userspace.py::test_every_pair_answers_whatever_carries_its_packets"],
    "cleanup": ["tests/netns/test_cleanup.py"],
}
GROUPS: Mapping[str, Sequence[str]] = {**{name: [script] for name, script in LABS.items()}, **TESTS}


def test(releases: Sequence[str], names: Sequence[str], build: Path) -> tuple[list[str], list[list[str]], bool]:
    """Put the questions to each release; return the table's head and rows, and whether all is good."""
    chosen = {name: GROUPS[name] for name in names}
    versions, counted = [], []
    for release in releases:
        userland = Userland(release, build / release, build / f"{release}.run")
        print(f"{RELEASES[release]}: what it says is in {build / release}.run", file=sys.stderr)
        userland.prepare()
        versions.append(_versions(userland))
        outcomes = _ask(userland, chosen, build / f"{release}.run/record")
        for line in table.failures(outcomes):
            print(f"{RELEASES[release]}: {line}")
        counted.append(table.groups(outcomes, chosen))
    rows = [[f"{name}'s version", *(each[name] for each in versions)] for name in VERSIONS]
    rows += [[name, *(str(each[name]) for each in counted)] for name in chosen]
    good = all(cell.good for each in counted for cell in each.values())
    return ["", *(RELEASES[release] for release in releases)], rows, good


def _ask(userland: Userland, chosen: Mapping[str, Sequence[str]], record: Path) -> dict[str, Outcome]:
    outcomes = {}
    for name, [script, *_] in chosen.items():
        if name in LABS:
            began = time.monotonic()
            outcome = _passed(userland, name, f".venv/bin/{script}")
            outcomes[script] = Outcome(script, outcome, time.monotonic() - began)
    tests = [each for name, arguments in chosen.items() if name in TESTS for each in arguments]
    if tests:
        pytest = ".venv/bin/pytest -v --tb=short -p no:cacheprovider -p tests.matrix.recorder"
        _passed(userland, "tests", f"{pytest} {' '.join(tests)}", {recorder.VARIABLE: "/run/shared/record"})
    return {**outcomes, **recorder.read(record)}


def _passed(userland: Userland, name: str, script: str, environment: Mapping[str, str] | None = None) -> str:
    try:
        userland.ask(name, script, environment=environment)
    except MatrixError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return "failed"
    return "passed"


def _versions(userland: Userland) -> dict[str, str]:
    """What is installed; "none" if it is not."""
    said = userland.ask("versions", "".join(f"{script} 2>&1 | head -n 1 || true\n" for script in VERSIONS.values()))
    found = [re.search(r"\d+(?:\.\d+)+", line) for line in said.splitlines()]
    return {name: each[0] if each else "none" for name, each in zip(VERSIONS, found, strict=True)}
