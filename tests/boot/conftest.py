"""Machines with the package installed, made on demand, removed also on failure."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from tests.boot.machine import ROOT, Machine
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace
from tests.netns.conftest import FAILED, make_lab, pytest_runtest_makereport
from tests.netns.test_agent import until
from tests.patience import patient

__all__ = ["make_lab", "pytest_runtest_makereport"]

SETTINGS = "etc/default/flanneld-py"


@dataclass(frozen=True, slots=True)
class Packages:
    """The package, and the same with a higher version."""

    first: Path
    second: Path


@dataclass(frozen=True, slots=True)
class Subnet:
    """What a ping goes to: the machine's own address in the overlay."""

    name: str
    namespace: Namespace
    address: IPv4Address


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("packages")
    done = subprocess.run(
        [ROOT / "deploy/debian/build"], cwd=ROOT, capture_output=True, text=True, timeout=patient(300), check=False
    )
    assert done.returncode == 0, done.stderr
    first = shutil.copy(ROOT / done.stdout.strip(), folder)
    tree, second = folder / "tree", folder / "second.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", first, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, second], check=True)
    return Packages(Path(first), second)


MakeMachine = Callable[..., Machine]


@pytest.fixture
def make_machine(request: pytest.FixtureRequest, packages: Packages) -> Iterator[MakeMachine]:
    """`make_machine(lab, NAME="value")`: booted, the package installed, its settings written, nothing started."""
    with ExitStack() as machines:

        def make(lab: Lab, **settings: str) -> Machine:
            machine = Machine(
                f"{lab.run.name}-m1", lab.core, lab.run.directory, lab.plan.underlay[60], lab.plan.gateway
            )
            machines.callback(machine.close)
            machines.callback(show_if_failed, request.node, machine)
            machine.boot()
            forward(machine)
            install(machine, packages.first)
            settle(machine, FLANNELD_ETCD_ENDPOINTS=f"http://{lab.plan.gateway}:2379", **settings)
            return machine

        yield make


def show_if_failed(item: pytest.Item, machine: Machine) -> None:
    if item.stash.get(FAILED, False):
        print(f"--- {machine.name}\n{machine.said()}")


def install(machine: Machine, package: Path) -> None:
    shutil.copy(package, machine.root / "root")
    machine.run("dpkg", "--install", f"/root/{package.name}")


def forward(machine: Machine) -> None:
    (machine.root / "etc/sysctl.d/forward.conf").write_text("net.ipv4.ip_forward = 1\n")
    machine.run("sysctl", "--quiet", "--load", "/etc/sysctl.d/forward.conf")


def settle(machine: Machine, **settings: str) -> None:
    """Write what the administrator writes."""
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    (machine.root / SETTINGS).write_text(text)


def enable(machine: Machine) -> None:
    machine.run("systemctl", "enable", "--now", "--quiet", "flanneld-py")


def active(machine: Machine) -> bool:
    return machine.unit("flanneld-py", "ActiveState") == {"ActiveState": "active"}


def main_pid(machine: Machine, unit: str = "flanneld-py") -> int:
    return int(machine.unit(unit, "MainPID")["MainPID"])


def replaced(machine: Machine, pid: int) -> None:
    """Wait until another agent than `pid` is ready."""
    until(lambda: active(machine) and main_pid(machine) not in (0, pid), f"an agent after {pid}", timeout=30)


def overlay(machine: Machine) -> Subnet:
    """Return what a peer's container reaches."""
    text = machine.ask("cat", "/run/flannel/subnet.env")
    env = dict(line.split("=", 1) for line in text.splitlines())
    return Subnet(machine.name, machine.core, IPv4Interface(env["FLANNEL_SUBNET"]).network.network_address)
