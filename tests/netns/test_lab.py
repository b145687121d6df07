"""The lab itself, with the overlay programmed by hand: what it builds works, and nothing of it stays behind.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core        (the picture: tests/lab/__init__.py)
h3c1 ── h3 ──┘
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through, throughput
from tests.lab.namespace import LabError
from tests.lab.run import Run
from tests.lab.topology import Plan
from tests.netns.conftest import MakeLab
from tests.patience import patient, within

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
LAB = [sys.executable, "-m", "tests.lab"]
ICMP_AND_IP = 28

STAND_IN = """#!{python}
import argparse, os, signal, socket
parser = argparse.ArgumentParser()
for flag in ("etcd-endpoints", "etcd-prefix", "iface", "subnet-file", "healthz-ip", "healthz-port", "number"):
    parser.add_argument("--" + flag)
options = parser.parse_args()
with open(options.subnet_file, "w") as file:
    file.write("FLANNEL_NETWORK=10.42.0.0/16\\nFLANNEL_SUBNET=10.42.%s.1/24\\n" % options.number.lstrip("h"))
    file.write("FLANNEL_MTU=1450\\nFLANNEL_IPMASQ=false\\n")
print("stand-in for", options.number, flush=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
    ready.sendto(b"STATUS=up\\nREADY=1\\n", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Lab(Plan(hosts=3, overlay="manual")) as running:
        yield running


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A daemon with flannel's command line that writes the subnet file, says it is ready and programs nothing."""
    path = tmp_path / "stand-in"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_every_pair_answers(lab: Lab) -> None:
    assert len(lab.pairs()) == 6
    assert lab.wait_connected() == []
    assert [ping(*pair).loss for pair in lab.pairs()] == [0.0] * 6


def test_a_packet_of_the_overlays_mtu_passes_whole_and_no_larger_one(lab: Lab) -> None:
    source, target = lab.containers[0], lab.containers[1]
    assert ping(source, target, payload=1450 - ICMP_AND_IP).loss == 0
    assert ping(source, target, payload=1451 - ICMP_AND_IP).received == 0


def test_hosts_reach_each_other_over_the_underlay(lab: Lab) -> None:
    assert ping(lab.hosts[0], lab.hosts[2], payload=1500 - ICMP_AND_IP).loss == 0


def test_a_containers_packets_travel_as_vxlan(lab: Lab) -> None:
    source, target = lab.containers[0], lab.containers[1]
    peer = lab.hosts[1].address
    lab.hosts[0].namespace.run(["nft", "-f", "-"], stdin=count_vxlan_to(peer))
    try:
        assert ping(source, target, count=7).received == 7
        counted = lab.hosts[0].namespace.run(["nft", "list", "table", "inet", "count"]).stdout
    finally:
        lab.hosts[0].namespace.run(["nft", "delete", "table", "inet", "count"])
    assert "counter packets 7 " in counted


def count_vxlan_to(peer: IPv4Address) -> str:
    hook = "type filter hook output priority 0;"
    return f"table inet count {{ chain out {{ {hook} ip daddr {peer} udp dport 8472 counter; }}\n}}\n"


def test_a_running_ping_loses_nothing_if_nothing_happens_and_shows_the_gap_if_something_does(lab: Lab) -> None:
    source, target = lab.containers[0], lab.containers[1]
    with ping_through(source, target) as stream:
        stream.wait_replies(30)
        calm = stream.stop()
    assert calm.received == calm.sent >= 30

    route = "10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink"
    with ping_through(source, target) as stream:
        stream.wait_replies(5)
        lab.hosts[0].namespace.ip(f"route del {route}")
        try:
            began = time.monotonic()
            assert ping(source, target, patience=0.3).received == 0
        finally:
            lab.hosts[0].namespace.ip(f"route add {route}")
        outage = time.monotonic() - began
        stream.wait_replies(5)
        broken = stream.stop()
    assert broken.received < broken.sent
    assert broken.longest_gap >= outage


def test_a_tcp_stream_arrives(lab: Lab) -> None:
    assert throughput(lab.containers[0], lab.containers[1], seconds=1) > 0


def test_close_leaves_no_namespace_no_process_and_no_directory(make_lab: MakeLab) -> None:
    lab = make_lab(overlay="manual")
    run = lab.run
    forgotten = lab.hosts[0].namespace.popen(["sleep", "600"])
    deadline = within(5)
    while Path(f"/proc/{forgotten.pid}/comm").read_text() != "sleep\n":  # It is on its way into the namespace.
        assert time.monotonic() < deadline
    lab.close()
    assert forgotten.wait(patient(5)) == -signal.SIGKILL
    assert_gone(run)
    lab.close()


def test_two_labs_run_side_by_side(make_lab: MakeLab) -> None:
    one, other = make_lab(overlay="manual"), make_lab(overlay="manual")
    assert one.wait_connected() == other.wait_connected() == []
    one.close()
    assert [ping(*pair).loss for pair in other.pairs()] == [0.0, 0.0]


def test_a_lab_of_agents_starts_them_and_attaches_the_containers_to_their_subnets(
    make_lab: MakeLab, stand_in: Path
) -> None:
    lab = make_lab(containers=2, flanneld=stand_in, agent_args=("--number", "{host}"), config={})
    assert lab.etcd is not None
    stored = lab.etcd.ctl("get", "--print-value-only", "/coreos.com/network/config")
    assert json.loads(stored) == {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}
    assert [str(c.address) for c in lab.containers] == ["10.42.1.2", "10.42.1.3", "10.42.2.2", "10.42.2.3"]
    assert {host.agent.subnet_env()["FLANNEL_MTU"] for host in lab.hosts} == {"1450"}
    assert ping(lab.containers[0], lab.containers[1]).loss == 0
    assert {(a.host, b.host) for a, b in lab.wait_connected(1)} == {("h1", "h2"), ("h2", "h1")}


def test_an_agent_can_be_terminated_killed_and_restarted(make_lab: MakeLab, stand_in: Path) -> None:
    agent = make_lab(hosts=1, flanneld=stand_in, agent_args=("--number", "{host}")).hosts[0].agent
    first = agent.pid
    agent.restart()
    agent.wait_ready()
    agent.wait_ready()
    assert agent.alive
    assert agent.pid != first
    assert agent.log_tail().splitlines() == ["stand-in for h1"] * 2
    with pytest.raises(LabError, match="runs already"):
        agent.start()
    assert agent.terminate() == 0
    assert not agent.alive
    agent.start()
    agent.wait_ready()
    agent.kill()
    assert not agent.alive


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot do it >&2\nexit 3\n")
    broken.chmod(0o755)
    lab, before = Lab(Plan(hosts=2, flanneld=broken)), own_namespaces()
    with pytest.raises(LabError, match=r"agent h1 ended with exit code 3:\ncannot do it"):
        lab.start()
    assert own_namespaces() == before


def own_namespaces() -> set[Path]:
    return set(Path("/run/netns").glob(f"fpy-{os.getpid()}-*"))


def test_the_command_measures_every_pair_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "lab.json"
    done = subprocess.run(
        [*LAB, "--manual", "--once", "--seconds", "1", "--hosts", "2", "--json", out],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    outcome = json.loads(out.read_text())
    assert outcome["good"] is True
    assert [(pair["source"], pair["target"], pair["loss"]) for pair in outcome["pairs"]] == [
        ("h1c1", "h2c1", 0),
        ("h2c1", "h1c1", 0),
    ]
    assert all(pair["gbit_per_second"] > 0 and pair["ping_ms"] > 0 for pair in outcome["pairs"])
    assert_gone(Run(outcome["run"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_cleans_up_and_a_second_one_does_not_disturb(number: signal.Signals) -> None:
    with held_lab() as (process, run):
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(patient(20)) == 0
        assert_gone(run)


def test_what_a_killed_lab_left_is_removed_by_clean() -> None:
    with held_lab() as (process, run):
        inside = run.namespace("h1").path
        escaped = subprocess.Popen(["nsenter", f"--net={inside}", "--", "sleep", "600"])
        try:
            process.kill()
            process.wait(patient(20))
            subprocess.run(
                [*LAB, "--clean"], cwd=REPOSITORY, check=True, timeout=patient(60), stdout=subprocess.DEVNULL
            )
            assert escaped.wait(patient(5)) == -signal.SIGKILL
        finally:
            escaped.kill()
            escaped.wait()
        assert_gone(run)


@contextmanager
def held_lab() -> Iterator[tuple[subprocess.Popen[str], Run]]:
    """The command, holding its lab; its run."""
    with subprocess.Popen(
        [*LAB, "--manual", "--seconds", "0", "--hosts", "2"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, _run_of(process)
        finally:
            process.terminate()


def _run_of(process: subprocess.Popen[str]) -> Run:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Ctrl-C"):
            break
    name = re.search(r"run (fpy-\d+-\d+)$", said, re.MULTILINE)
    assert name is not None, said
    run = Run(name[1])
    assert len(run.namespaces()) == 5
    return run


def assert_gone(run: Run) -> None:
    assert run.namespaces() == []
    assert not run.directory.exists()
