"""The tests of what the kernel does, on Debian's kernels. One table: kernel x group of tests.

Emulated, a kernel runs the tests some ten times slower than the machine does, so it is a choice of them, and deadlines
are eight times as long; `FLANNELD_PY_PATIENCE` stretches them further. What an idle agent uses is compared with the
newest kernel of the same run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.matrix import recorder, table
from tests.matrix.debian import RELEASES, ROOT, command, kernel, version
from tests.matrix.machine import run
from tests.matrix.recorder import Outcome
from tests.patience import VARIABLE, patient

IDLE = "tests/netns/test_idle.py"
GROUPS: Mapping[str, Sequence[str]] = {
    "idle": [IDLE],
    "contract": ["tests/contract/test_kernel.py"],
    "netlink": ["tests/netns/test_netlink.py"],
    "vxlan": [
        "tests/netns/test_agent.py::test_what_others_see_is_flannels",
        "tests/netns/test_agent.py::test_a_deleted_device_comes_back_with_its_peers_and_its_mac",
    ],
    "hostgw": [
        "tests/netns/test_hostgw.py::test_two_hosts_on_one_link_need_no_tunnel",
        "tests/netns/test_hostgw.py::test_a_change_of_the_underlay_decides_again_and_loses_no_packet",
    ],
    "ipv6": ["tests/netns/test_ipv6.py::test_dual_stack"],
    "udp": ["tests/netns/test_udp.py::test_every_pair_answers_up_to_the_whole_mtu"],
    "userspace": [
        "tests/netns/test_userspace.py::test_every_pair_answers_whatever_carries_its_packets",
        "tests/netns/test_datapath.py::test_userspace_and_kernel_vxlan_understand_each_other",
        "tests/netns/test_datapath.py::test_without_checksum_offload_of_the_underlay_everything_arrives",
    ],
    "firewall": [
        "tests/netns/test_firewall.py::test_who_sees_whose_address",
        "tests/netns/test_firewall.py::test_forwarding_goes_on_when_docker_drops_by_policy",
    ],
    "enforce": ["tests/netns/test_enforce.py"],
}
PATIENCE = 8
LIMIT = 2400.0
"""Seconds a machine may run, whatever its tests do."""


@dataclass(frozen=True, slots=True)
class Column:
    """What was seen on one kernel."""

    release: str
    version: str
    outcomes: Mapping[str, Outcome]

    @property
    def name(self) -> str:
        """What it is called in a table."""
        return f"{self.version} ({RELEASES[self.release]})"

    def figure(self, name: str) -> float | None:
        """A figure that the idle agent's test recorded."""
        found = [each.figures[name] for test, each in self.outcomes.items() if test.startswith(IDLE) and each.figures]
        return found[0] if found else None


def test(releases: Sequence[str], names: Sequence[str], build: Path) -> tuple[list[str], list[list[str]], bool]:
    """Run groups of tests on the kernels of releases; return the table's head and rows, and whether all is good."""
    chosen = {name: GROUPS[name] for name in names}
    tests = _collect(chosen)
    trees = {release: kernel(release, build / release) for release in releases}
    # A machine has one processor, as a second one gains nothing. So a kernel has as many machines as there is room for.
    parts = max(1, min(len(tests), (os.cpu_count() or 1) // len(releases)))
    jobs = [(release, part) for release in releases for part in range(parts)]
    with ThreadPoolExecutor(len(jobs)) as machines:
        places = [build / f"{release}.run.{part}" for release, part in jobs]
        seen = machines.map(
            _run, (trees[release] for release, _ in jobs), places, (tests[part::parts] for _, part in jobs)
        )
    found: dict[str, dict[str, Outcome]] = {release: {} for release in releases}
    for (release, _), outcomes in zip(jobs, seen, strict=True):
        found[release].update(outcomes)
    columns = [Column(release, version(trees[release]), found[release]) for release in releases]
    for column in columns:
        for line in table.failures(column.outcomes):
            print(f"{column.name}: {line}")
    counted = [table.groups(column.outcomes, chosen) for column in columns]
    rows = [[name, *(str(each[name]) for each in counted)] for name in chosen]
    if "idle" in chosen:
        rows += idle_rows(columns)
    good = all(cell.good for each in counted for cell in each.values())
    return ["", *(column.name for column in columns)], rows, good


def _collect(chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """List the tests, here: one that is not there any more is named, and pytest compiles what it only reads there."""
    arguments = [argument for group in chosen.values() for argument in group]
    listed = command(sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "root", *arguments, cwd=ROOT)
    return [line for line in listed.splitlines() if "::" in line]


def _run(tree: Path, shared: Path, tests: Sequence[str]) -> Mapping[str, Outcome]:
    """Run tests on a machine; return what became of them."""
    print(f"{version(tree)}: {len(tests)} tests; what they say is in {shared}/output", file=sys.stderr)
    listed = shared.with_suffix(f"{shared.suffix}.tests")
    listed.write_text("\n".join(tests))
    environment = [
        f"{VARIABLE}={patient(PATIENCE):g}",
        "PYTHONDONTWRITEBYTECODE=1",
        f"{recorder.VARIABLE}=/run/shared/record",
    ]
    pytest = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    argv = ["env", *environment, *pytest, "-p", "tests.matrix.recorder", f"@{listed}"]
    if run(tree, shared, ROOT, argv, patient(LIMIT)) is None:
        print(f"{version(tree)}: the machine did not come to its end, see {shared}/console", file=sys.stderr)
    return {**{test: Outcome(test) for test in tests}, **recorder.read(shared / "record")}


def idle_rows(columns: Sequence[Column]) -> list[list[str]]:
    """Rows with the idle agent's figures; the newest kernel is the measure of CPU."""
    told = [column.figure("notifications") for column in columns]
    shares = [column.figure("CPU share") for column in columns]
    newest = shares[-1]
    return [
        [
            "idle: forwarding entries told of in 30 s",
            *("not measured" if each is None else f"{each:.0f}" for each in told),
        ],
        [
            f"idle: CPU, as a multiple of that on {columns[-1].version}",
            *("not measured" if each is None or not newest else f"{each / newest:.2f}" for each in shares),
        ],
    ]
