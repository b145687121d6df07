"""The quadlet and the compose file as they are shipped, on a booted Debian with its own podman and Docker.

h1's container ── flannel.1 ═══ flannel.1 of the machine, whose agent is the container of podman or Docker
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.conftest import active, forward, main_pid, replaced, settle, show_if_failed
from tests.boot.debian import ENGINES, ROOT
from tests.boot.machine import Machine
from tests.boot.test_service import pinged, status
from tests.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import etcd, until

# The first one that runs makes the Debian.
pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.timeout(900)]

NAME = "flanneld-py"
SHIPPED = ROOT / "deploy/container"
CHECKED_SECONDS = 45
"""The image's health check is asked every 30 s."""
DOCKER = '{"storage-driver": "vfs"}\n'
PODMAN = '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n'
"""The machine's own root is an overlay, and there is none over another."""
UNLIMITED = "[containers]\npids_limit = 0\n"
"""Not every machine that runs the tests hands this controller on."""


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(hosts=1)


@pytest.fixture
def machine(request: pytest.FixtureRequest, lab: Lab, archive: Path) -> Iterator[Machine]:
    """Booted, with its settings and the image, which no engine knows yet."""
    name, address = f"{lab.run.name}-m1", lab.plan.underlay[60]
    machine = Machine(name, lab.core, lab.run.directory, address, lab.plan.gateway, more=ENGINES)
    try:
        machine.boot()
        forward(machine)
        engines = {"docker/daemon.json": DOCKER, "containers/storage.conf": PODMAN}
        for path, text in {**engines, "containers/containers.conf": UNLIMITED}.items():
            file = machine.root / "etc" / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        settle(machine, FLANNELD_ETCD_ENDPOINTS=f"http://{lab.plan.gateway}:2379", FLANNELD_IP_MASQ="true")
        shutil.copy(archive, machine.root / "root/image.tar")
        yield machine
    finally:
        show_if_failed(request.node, machine)
        machine.close()


def test_the_quadlet_is_a_service(lab: Lab, machine: Machine) -> None:
    machine.run("podman", "load", "--quiet", "--input", "/root/image.tar", timeout=300)
    machine.run("mkdir", "-p", "/etc/containers/systemd")
    shutil.copy(SHIPPED / "flanneld-py.container", machine.root / "etc/containers/systemd")
    machine.run("systemctl", "daemon-reload")
    etcd(lab).stop()
    machine.run("systemctl", "start", "--no-block", NAME)
    until(lambda: "waiting for a network config" in status(machine), "it says what it waits for", timeout=60)
    assert not active(machine)
    etcd(lab).start()
    until(lambda: active(machine), "it is ready once etcd is there", timeout=30)
    with pinged(lab, machine):
        before = main_pid(machine)
        machine.run("systemctl", "restart", NAME)
        replaced(machine, before)
        before = main_pid(machine)
        machine.run("podman", "kill", "--signal", "KILL", NAME)
        replaced(machine, before)
    until(lambda: "(healthy)" in listed(machine, "podman"), "podman calls it healthy", timeout=CHECKED_SECONDS)
    leases = etcd(lab).ctl("get", "--prefix", "/coreos.com/network/subnets")
    machine.reboot()
    until(lambda: active(machine), "it starts at boot", timeout=60)
    assert etcd(lab).ctl("get", "--prefix", "/coreos.com/network/subnets") == leases
    with pinged(lab, machine):
        machine.run("systemctl", "stop", NAME)
    assert machine.unit(NAME, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert listed(machine, "podman") == ""


def test_compose_brings_it_up_and_down(lab: Lab, machine: Machine) -> None:
    machine.run("systemctl", "start", "docker", timeout=120)
    machine.run("docker", "load", "--quiet", "--input", "/root/image.tar", timeout=300)
    shutil.copy(SHIPPED / "compose.yaml", machine.root / "root")
    compose = ("docker", "compose", "--file", "/root/compose.yaml")
    before = others(machine)
    machine.run(*compose, "up", "--detach", timeout=120)
    until(lambda: "(healthy)" in listed(machine, "docker"), "Docker calls it healthy", timeout=CHECKED_SECONDS)
    with pinged(lab, machine):
        machine.run(*compose, "restart", timeout=120)
        until(lambda: "(healthy)" in listed(machine, "docker"), "and after a restart", timeout=CHECKED_SECONDS)
        machine.run(*compose, "down", timeout=120)
    assert listed(machine, "docker") == ""
    machine.run(*compose, "run", "--rm", NAME, "--cleanup", timeout=120)
    assert others(machine) == before


def listed(machine: Machine, engine: str) -> str:
    """What an engine says of all containers it has."""
    return machine.ask(engine, "ps", "--all", "--format", "{{.Names}} {{.Status}}")


def others(machine: Machine) -> list[str]:
    """What is there beside the agent: containers, networks, devices, routes, files; and no rule of ours."""
    assert NAME not in machine.ask("nft", "list", "ruleset")
    assert machine.ask("ip", "route", "show", "table", "all", "proto", "76") == ""
    words = [("docker", "ps", "--all", "--quiet"), ("docker", "network", "ls", "--format", "{{.Name}}")]
    words += [("docker", "volume", "ls", "--quiet"), ("sh", "-c", "ip -brief link | cut -d' ' -f1")]
    return [machine.ask(*each) for each in words] + [machine.ask("sh", "-c", "ls /run/flannel 2>/dev/null || true")]
