"""The Vagrant lab without Vagrant's machines: what the Vagrantfile says, on booted Debians.

   192.168.56.0/24, bridge br0 in the core namespace
    |           |           |           |
   etcd       agent1      agent2      agent3      host0: the private network
                |           |           |         nat0: the default route, 10.0.2.15 on each, leads nowhere

Vagrant reads the Vagrantfile; the scripts that it names are run as Vagrant would, then vagrant/check.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from tests.boot.conftest import SETTINGS, Packages, show_if_failed
from tests.boot.debian import ROOT
from tests.boot.machine import NAT_ADDRESS, Machine
from tests.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import until

pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.timeout(600)]

FOLDER = ROOT / "vagrant"
PRIVATE = IPv4Network("192.168.56.0/24")


@dataclass(frozen=True, slots=True)
class Planned:
    """A machine of the Vagrantfile: folders by path on the host, and provisioning scripts with their arguments."""

    name: str
    address: IPv4Address
    folders: dict[str, str]
    scripts: tuple[tuple[str, ...], ...]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For Vagrant's own files."""
    return {**os.environ, "VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dotfile")}


@pytest.fixture
def plan(environment: dict[str, str]) -> list[Planned]:
    reader = ["ruby", str(ROOT / "tests/boot/vagrantfile.rb"), str(FOLDER)]
    said = subprocess.run(reader, env=environment, capture_output=True, text=True, check=True).stdout
    return [
        Planned(item["name"], IPv4Address(address), item["folders"], tuple(map(tuple, item["scripts"])))
        for item in json.loads(said)
        for address in item["addresses"]
    ]


@pytest.fixture
def machines(
    request: pytest.FixtureRequest, make_lab: MakeLab, plan: list[Planned], packages: Packages
) -> Iterator[dict[str, Machine]]:
    """All machines, booted at once, with the package where the Vagrantfile puts it; nothing is provisioned."""
    lab: Lab = make_lab(hosts=1, containers=0, overlay="none", underlay=PRIVATE)
    with ExitStack() as running:
        made = {}
        for planned in plan:
            name = f"{lab.run.name}-{planned.name}"
            machine = made[planned.name] = Machine(name, lab.core, lab.run.directory, planned.address, None)
            running.callback(machine.close)
            running.callback(show_if_failed, request.node, machine)
            machine.start()
        for planned, machine in zip(plan, made.values(), strict=True):
            machine.wait_booted()
            place = machine.root / planned.folders["../dist"].lstrip("/")
            place.mkdir()
            shutil.copy(packages.first, place)
        yield made


def test_vagrant_finds_nothing_wrong(environment: dict[str, str], plan: list[Planned]) -> None:
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [planned.name for planned in plan] == ["etcd", "agent1", "agent2", "agent3"]
    done = subprocess.run(
        command, cwd=FOLDER, env={**environment, "AGENTS": "no"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AGENTS" in done.stderr


def test_the_lab_connects_every_pair_over_the_private_network(
    machines: dict[str, Machine], plan: list[Planned], tmp_path: Path
) -> None:
    for machine in machines.values():
        assert "default via 10.0.2.2 dev nat0" in machine.ask("ip", "route")
    provision(machines, plan[:1])
    provision(machines, plan[1:])
    reach = ways_in(machines, tmp_path)
    code, table = check(reach)
    print(table)
    assert code == 0, table
    rows = [line.split() for line in table.splitlines()[1:]]
    agents = [planned.name for planned in plan[1:]]
    assert [(row[0], row[1]) for row in rows] == [(a, b) for a in agents for b in agents if a != b]
    assert {row[4] for row in rows} == {"0%"}
    assert published(machines) == {planned.address for planned in plan[1:]}

    machines["agent2"].reboot()
    ways_in(machines, tmp_path)
    until(lambda: check(reach, agents=2)[0] == 0, "agent2 and its container are back after a reboot", timeout=30)

    # The trap: the agent left to the default route publishes what every machine has.
    settings = machines["agent1"].root / SETTINGS
    settings.write_text("".join(line for line in settings.read_text().splitlines(keepends=True) if "IFACE" not in line))
    machines["agent1"].run("systemctl", "restart", "flanneld-py")
    assert NAT_ADDRESS in published(machines)
    code, table = check(reach, agents=2)
    assert code == 1
    assert [row.split()[-1] for row in table.splitlines()[1:]] == ["100%", "100%"]

    provision(machines, plan)
    code, table = check(reach)
    assert code == 0, f"provisioned again it is well: {table}"


@pytest.mark.parametrize(("network", "said"), [("203.0.113.0/24", "203.0.113.0/24"), ("127.0.0.0/8", "make deb")])
def test_an_agent_host_outside_the_private_network_or_without_a_package_is_told(
    tmp_path: Path, plan: list[Planned], network: str, said: str
) -> None:
    command = [str(FOLDER / plan[1].scripts[0][0]), network, "203.0.113.1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr


def test_the_table_shows_a_machine_that_is_not_there(tmp_path: Path) -> None:
    script = tmp_path / "reach"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1 $3" in\n'
        "agent2*) echo no such machine >&2; exit 1 ;;\n"
        "*address*) echo 2: eth0 inet 10.42.${1#agent}.2/24 scope global eth0 ;;\n"
        "*) echo to 10.42.3.2; echo 3 packets transmitted, 3 received, 0% packet loss, time 402ms ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    code, table = check(script)
    assert code == 1
    assert [line.split() for line in table.splitlines()[1:3]] == [
        ["agent1", "agent2", "-", "-", "-"],
        ["agent1", "agent3", "10.42.3.2", "-", "0%"],
    ]


def test_a_number_of_agents_that_is_none_is_no_success() -> None:
    assert check(Path("/bin/false"), agents="none") == (2, "")


def provision(machines: dict[str, Machine], plan: list[Planned]) -> None:
    """Upload the scripts and run them, as Vagrant's shell provisioner does; the machines at once."""

    def one(planned: Planned) -> None:
        machine = machines[planned.name]
        for path, *arguments in planned.scripts:
            shutil.copy(FOLDER / path, machine.root / "root/vagrant-shell")
            print(planned.name, machine.run("/root/vagrant-shell", *arguments, timeout=120).stdout)

    with ThreadPoolExecutor() as threads:
        list(threads.map(one, plan))


def ways_in(machines: dict[str, Machine], folder: Path) -> Path:
    """Write what stands for `vagrant ssh`: a script that takes NAME -c COMMAND."""
    cases = [f'{name}) exec {shlex.join(machine.command("sh", "-c"))} "$3" ;;\n' for name, machine in machines.items()]
    script = folder / "reach"
    script.write_text("#!/bin/sh\ncase $1 in\n" + "".join(cases) + "esac\n")
    script.chmod(0o755)
    return script


def check(reach: Path, agents: int | str = 3) -> tuple[int, str]:
    """Return vagrant/check's exit code and table."""
    environment = {**os.environ, "REACH": str(reach), "AGENTS": str(agents)}
    done = subprocess.run([FOLDER / "check"], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def published(machines: dict[str, Machine]) -> set[IPv4Address]:
    """What the agents tell each other to send to."""
    values = machines["etcd"].ask("etcdctl", "get", "--prefix", "--print-value-only", "/coreos.com/network/subnets/")
    return {IPv4Address(json.loads(line)["PublicIP"]) for line in values.splitlines() if line}
