"""flanneld-py as a service on a booted Debian (the picture: tests/boot/__init__.py)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot.conftest import (
    MakeMachine,
    Packages,
    active,
    enable,
    install,
    main_pid,
    overlay,
    replaced,
    settle,
)
from tests.boot.debian import OLDSTABLE, RELEASE
from tests.boot.machine import Machine
from tests.lab.lab import Lab
from tests.lab.measure import ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import etcd, nothing_lost, until

# The first one that runs makes the Debian and the package.
pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.timeout(600)]

USERSPACE = {"FLANNELD_DATAPATH": "userspace"}


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab(hosts=1)


@pytest.mark.parametrize("release", sorted({RELEASE, OLDSTABLE}, reverse=True), indirect=True)
def test_it_runs_as_its_own_user_with_little_else(lab: Lab, make_machine: MakeMachine, release: str) -> None:
    machine = make_machine(lab)
    if release == "sid":  # Its os-release has the codename of the release to come.
        assert machine.ask("cat", "/etc/debian_version").strip().endswith("/sid")
    else:
        assert f"VERSION_CODENAME={release}\n" in machine.ask("cat", "/etc/os-release")
    assert machine.unit("flanneld-py", "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive",
        "UnitFileState": "disabled",
    }, "the administrator decides when it starts"
    enable(machine)
    with pinged(lab, machine):
        pass
    assert machine.ask("ps", "-o", "user=", "-p", str(main_pid(machine))) == "flanneld-py"
    assert machine.ask("stat", "-c", "%U %a", "/run/flannel/subnet.env") == "flanneld-py 644"
    assert '"api_version": "1.0.0"' in machine.ask("/usr/lib/netavark/flannel-py", "info"), "podman 5 finds it"
    # A device of ours takes no router advertisements: a sysctl, written in the sandbox.
    assert machine.ask("cat", "/proc/sys/net/ipv6/conf/flannel.1/accept_ra") == "0"
    for unit in ("flanneld-py", "flanneld-py-docker"):
        print(machine.ask("systemd-analyze", "security", "--no-pager", "--threshold=30", f"{unit}.service"))


@pytest.mark.parametrize("firewall", ["nftables", "iptables", "iptables-legacy"])
def test_it_keeps_the_firewall_without_being_root(lab: Lab, make_machine: MakeMachine, firewall: str) -> None:
    command, _, legacy = firewall.partition("-")
    machine = make_machine(lab, FLANNELD_IP_MASQ="true", FLANNELD_FIREWALL=command)
    if legacy:
        for family in ("iptables", "ip6tables"):
            machine.run("update-alternatives", "--quiet", "--set", family, f"/usr/sbin/{family}-legacy")
        machine.run("iptables", "-A", "INPUT", "-j", "ACCEPT")
    enable(machine)
    listing = ("nft", "list", "ruleset") if firewall == "nftables" else ("iptables-save", "-t", "nat")
    until(lambda: "10.42.0.0/16" in machine.ask(*listing), "masquerade rules", timeout=30)
    assert "firewall rules cannot" not in machine.ask("journalctl", "-u", "flanneld-py", "--no-pager")
    if legacy:
        # Seen and repaired: it can read which tables there are.
        machine.run("iptables", "-t", "nat", "-F")
        until(lambda: "10.42.0.0/16" in machine.ask(*listing), "the rules are back", timeout=30)


def test_a_killed_and_a_restarted_agent_lose_no_packet_in_userspace(lab: Lab, make_machine: MakeMachine) -> None:
    machine = make_machine(lab, **USERSPACE)
    enable(machine)
    carrier = datapath(machine)
    with pinged(lab, machine):
        before = main_pid(machine)
        machine.run("kill", "-KILL", str(before))
        replaced(machine, before)
        before = main_pid(machine)
        machine.run("systemctl", "restart", "flanneld-py")
        replaced(machine, before)
        machine.run("systemctl", "stop", "flanneld-py")
        machine.run("systemctl", "start", "flanneld-py")
    assert datapath(machine) == carrier
    machine.run("systemctl", "stop", "flanneld-py")
    machine.run("flanneld-py", "--datapath-stop")
    assert datapath(machine) == []


def test_an_agent_that_hangs_is_replaced_by_the_watchdog(lab: Lab, make_machine: MakeMachine) -> None:
    machine = make_machine(lab, **USERSPACE)
    folder = machine.root / "etc/systemd/system/flanneld-py.service.d"
    folder.mkdir()
    (folder / "soon.conf").write_text("[Service]\nWatchdogSec=2\nRestartSec=1\n")
    machine.run("systemctl", "daemon-reload")
    enable(machine)
    carrier = datapath(machine)
    with pinged(lab, machine):
        before = main_pid(machine)
        machine.run("kill", "-STOP", str(before))
        replaced(machine, before)
    assert "Watchdog timeout" in machine.ask("journalctl", "-u", "flanneld-py", "--no-pager")
    assert datapath(machine) == carrier


@pytest.mark.parametrize("settings", [{}, USERSPACE], ids=["kernel", "userspace"])
def test_a_reboot_keeps_subnet_and_mac(lab: Lab, make_machine: MakeMachine, settings: dict[str, str]) -> None:
    machine = make_machine(lab, **settings)
    enable(machine)
    leases = etcd(lab).ctl("get", "--prefix", "/coreos.com/network/subnets")
    subnet = machine.ask("cat", "/run/flannel/subnet.env")
    machine.reboot()
    until(lambda: active(machine), "it started by itself", timeout=30)
    assert machine.ask("cat", "/run/flannel/subnet.env") == subnet
    assert etcd(lab).ctl("get", "--prefix", "/coreos.com/network/subnets") == leases, "MACs are in the leases"
    with pinged(lab, machine):
        pass


def test_a_lease_is_given_back_at_a_shutdown_and_at_nothing_else(lab: Lab, make_machine: MakeMachine) -> None:
    """A restart is what an upgrade does as well. A reboot goes down as a shutdown does."""

    def written() -> set[str]:
        return set(etcd(lab).ctl("get", "--prefix", "--keys-only", "/coreos.com/network/").split())

    before = written()
    machine = make_machine(lab, FLANNELD_RELEASE_ON_STOP="true")
    enable(machine)
    leased = written()
    assert leased > before
    for verb in ("restart", "stop", "start"):
        machine.ask("systemctl", verb, "flanneld-py")
        assert written() == leased
    until(lambda: active(machine), "it runs again", timeout=30)
    machine.ask("systemctl", "disable", "flanneld-py")
    machine.reboot()
    assert written() == before


@pytest.mark.parametrize("settings", [{}, USERSPACE], ids=["kernel", "userspace"])
def test_an_upgrade_loses_no_packet(
    lab: Lab, make_machine: MakeMachine, packages: Packages, settings: dict[str, str]
) -> None:
    machine = make_machine(lab, **settings)
    enable(machine)
    with pinged(lab, machine):
        before = main_pid(machine)
        install(machine, packages.second)
        replaced(machine, before)
    assert machine.ask("dpkg-query", "-W", "-f", "${Version}", "flanneld-py").startswith("1:")


@pytest.mark.parametrize("settings", [{}, USERSPACE], ids=["kernel", "userspace"])
def test_a_purge_leaves_nothing(lab: Lab, make_machine: MakeMachine, settings: dict[str, str]) -> None:
    machine = make_machine(lab, FLANNELD_IP_MASQ="true", **settings)
    machine.run("systemctl", "enable", "--now", "--quiet", "flanneld-py", "flanneld-py-docker")
    assert "flannel" in accounts(machine)
    machine.run("sh", "-c", "rm /root/*.deb; dpkg --purge flanneld-py")
    files = ("find", "/", "/run", "/tmp", "-xdev", "-name", "*flannel*", "-not", "-path", "/var/log/journal/*")
    assert machine.ask(*files) == ""
    assert "flannel" not in accounts(machine)
    assert "flannel" not in machine.ask("ps", "-eo", "args")
    # systemd forgets a unit that is gone when it next has time.
    until(lambda: "flannel" not in machine.ask("systemctl", "list-units", "--all", "--no-pager"), "no unit is known")
    assert "flannel" not in machine.ask("ip", "-brief", "link")
    assert machine.ask("ip", "route", "show", "proto", "76") == ""
    assert "flannel" not in machine.ask("nft", "list", "ruleset")


def test_removing_the_package_leaves_the_routes_of_others(lab: Lab, make_machine: MakeMachine) -> None:
    machine = make_machine(lab)
    enable(machine)
    # 84 is OVN's, and was ours; our Network is 10.42.0.0/16.
    gateway = str(lab.plan.gateway)
    for route in ("10.99.0.0/24", "10.42.251.0/24 table 100", "198.51.100.0/24 table 100"):
        machine.run("ip", "route", "add", *route.split(), "via", gateway, "proto", "84")
    machine.run("ip", "nexthop", "add", "id", "7", "via", gateway, "dev", "host0", "proto", "84")
    machine.run("ip", "route", "add", "203.0.113.0/24", "nhid", "7", "proto", "84")
    others = [("ip", "route", "show", "table", "all", "proto", "84"), ("ip", "nexthop", "show", "protocol", "84")]
    before = [machine.ask(*shown).splitlines() for shown in others]
    assert [len(lines) for lines in before] == [4, 1]
    assert machine.ask("ip", "route", "show", "proto", "76")
    removed = machine.run("apt-get", "remove", "--yes", "--quiet", "flanneld-py")
    assert "is left" not in removed.stderr + removed.stdout
    assert [machine.ask(*shown).splitlines() for shown in others] == before
    assert machine.ask("ip", "route", "show", "table", "all", "proto", "76") == ""
    assert "flannel" not in machine.ask("ip", "-brief", "link")


def test_docker_gets_its_options(lab: Lab, make_machine: MakeMachine) -> None:
    machine = make_machine(lab)
    (machine.root / "etc/systemd/system/docker.service").write_text("[Service]\nExecStart=/bin/false\n")
    dockerd = machine.root / "usr/local/bin/dockerd"
    dockerd.write_text('#!/bin/sh\necho "$@" >/run/dockerd; exec sleep 900\n')
    dockerd.chmod(0o755)
    machine.run("cp", "-r", "/usr/share/doc/flanneld-py/examples/docker.service.d", "/etc/systemd/system/")
    machine.run("systemctl", "daemon-reload")
    # Nothing else is started by hand: the drop-in asks for what Docker needs.
    machine.run("systemctl", "start", "docker")
    until(lambda: machine.run("cat", "/run/dockerd", check=False).stdout, "Docker is started", timeout=30)
    env = dict(line.split("=", 1) for line in machine.ask("cat", "/run/flannel/subnet.env").splitlines())
    docker = main_pid(machine, "docker")
    assert machine.ask("cat", "/run/dockerd").endswith(f"--bip={env['FLANNEL_SUBNET']} --ip-masq=true --mtu=1450")
    machine.run("systemctl", "restart", "flanneld-py")
    machine.run("systemctl", "stop", "flanneld-py")
    assert main_pid(machine, "docker") == docker, "Docker goes on without the agent"


def test_an_etcd_that_is_not_there_at_boot_is_waited_for_also_by_lxcs_bridge(
    lab: Lab, make_machine: MakeMachine
) -> None:
    machine = make_machine(lab)
    install_lxc_net(machine)
    etcd(lab).stop()
    machine.run("systemctl", "enable", "--quiet", "flanneld-py", "lxc-net")
    machine.run("systemctl", "start", "--no-block", "flanneld-py", "lxc-net")
    until(lambda: "waiting for a network config" in status(machine), "it says what it waits for", timeout=30)
    assert machine.unit("flanneld-py", "ActiveState", "NRestarts") == {"ActiveState": "activating", "NRestarts": "0"}
    assert machine.unit("lxc-net", "ActiveState") == {"ActiveState": "inactive"}
    etcd(lab).start()
    until(lambda: active(machine), "it is ready once etcd is there", timeout=30)
    lxc_net = {"ActiveState": "active"}
    until(lambda: machine.unit("lxc-net", "ActiveState") == lxc_net, "LXC's bridge comes after it", timeout=30)
    env = dict(line.split("=", 1) for line in machine.ask("cat", "/run/flannel/subnet.env").splitlines())
    assert f" {env['FLANNEL_SUBNET']} " in machine.ask("ip", "-4", "-o", "addr", "show", "lxcbr0")


def install_lxc_net(machine: Machine) -> None:
    """Put LXC's own script and unit into the machine, with our settings as the guide has it."""
    for file in ("usr/libexec/lxc/lxc-net", "usr/lib/systemd/system/lxc-net.service", "etc/default/lxc"):
        target = machine.root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("/", file), target)
    dnsmasq = machine.root / "usr/local/bin/dnsmasq"
    dnsmasq.write_text("#!/bin/sh\n")
    dnsmasq.chmod(0o755)
    machine.run("cp", "/usr/share/doc/flanneld-py/examples/lxc-net", "/etc/default/lxc-net")
    machine.run("systemctl", "daemon-reload")


@pytest.mark.parametrize(
    ("setting", "value", "code", "said"),
    [
        ("FLANNELD_ETCD_CAFILE", "/etc/absent.pem", "2", "/etc/absent.pem"),
        ("FLANNELD_HEALTHZ_PORT", "22222", "1", "cannot serve health on 0.0.0.0:22222"),
        ("FLANNELD_SUBNET_FILE", "/etc/subnet.env", "1", "/etc/subnet.env"),
    ],
)
def test_a_fault_is_said_tried_again_and_over_once_it_is_mended(
    lab: Lab, make_machine: MakeMachine, setting: str, value: str, code: str, said: str
) -> None:
    endpoints = f"http://{lab.plan.gateway}:2379"
    machine = make_machine(lab, **{setting: value})
    other = ["python3", "-c", "import socket,time;s=socket.create_server(('',22222));time.sleep(900)"]
    machine.run("systemd-run", "--quiet", "--unit=other", *other)
    machine.run("systemctl", "start", "--no-block", "flanneld-py")
    until(lambda: int(machine.unit("flanneld-py", "NRestarts")["NRestarts"]) >= 1, "tried again", timeout=30)
    journal = machine.ask("journalctl", "-u", "flanneld-py", "--no-pager")
    assert said in machine.ask("journalctl", "-u", "flanneld-py", "--no-pager", "-p", "err")
    assert f"Main process exited, code=exited, status={code}/" in journal
    settle(machine, FLANNELD_ETCD_ENDPOINTS=endpoints)
    until(lambda: active(machine), "it needs nobody to start it", timeout=30)


@contextmanager
def pinged(lab: Lab, machine: Machine) -> Iterator[None]:
    """Ping the machine from a container of its peer meanwhile; every packet has to come back."""
    source, target = lab.containers[0], overlay(machine)
    reach = ["ping", "-c1", "-W1", str(target.address)]
    until(lambda: source.namespace.run(reach, check=False).returncode == 0, "the peer reaches it", timeout=30)
    with ping_through(source, target) as replies:
        replies.wait_replies(5)
        yield
        nothing_lost(replies)


def datapath(machine: Machine) -> list[str]:
    return machine.run("pgrep", "-f", "flanneld_py.encap.datapath", check=False).stdout.split()


def status(machine: Machine) -> str:
    return machine.unit("flanneld-py", "StatusText")["StatusText"]


def accounts(machine: Machine) -> str:
    return machine.ask("cat", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
