"""Machines with the package installed, made on demand, removed also on failure."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.machine import Machine
from tests.lab.lab import Lab
from tests.lab.namespace import Namespace
from tests.netns.conftest import FAILED, make_lab, pytest_runtest_makereport
from tests.netns.test_agent import until

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
def build_packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Packages]:
    """`build_packages(release)`: once for each release, while the Debian that is booted is made."""

    @cache
    def build(release: str) -> Packages:
        folder = tmp_path_factory.mktemp(release)
        with ThreadPoolExecutor() as threads:
            image, package = threads.submit(debian.booted, release), threads.submit(debian.build, release, folder)
            image.result()
            first = package.result()
        tree, second = folder / "tree", folder / "second.deb"
        subprocess.run(["dpkg-deb", "--raw-extract", first, tree], check=True)
        control = tree / "DEBIAN/control"
        control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:"))
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, second], check=True)
        return Packages(first, second)

    return build


@pytest.fixture
def release(request: pytest.FixtureRequest) -> str:
    """The Debian that is booted; a test's parameters may name others."""
    return str(getattr(request, "param", debian.RELEASE))


@pytest.fixture
def packages(release: str, build_packages: Callable[[str], Packages]) -> Packages:
    return build_packages(release)


MakeMachine = Callable[..., Machine]


@pytest.fixture
def make_machine(request: pytest.FixtureRequest, release: str, packages: Packages) -> Iterator[MakeMachine]:
    """`make_machine(lab, NAME="value")`: booted, the package installed, its settings written, nothing started.

    `udev` and `more` are Machine's.
    """
    with ExitStack() as machines:

        def make(lab: Lab, *, udev: bool = False, more: debian.More = debian.PLAIN, **settings: str) -> Machine:
            name, address = f"{lab.run.name}-m1", lab.plan.underlay[60]
            machine = Machine(
                name, lab.core, lab.run.directory, address, lab.plan.gateway, release, udev=udev, more=more
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
