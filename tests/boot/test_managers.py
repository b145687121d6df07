"""Other managers of the host, the real ones, beside the agent on a booted Debian (the picture: tests/boot/__init__.py).

    h1's container ── flannel.1 ═══ flannel.1 ── cni0 ── the machine's container
                                       |
                      networkd, NetworkManager or dhcpcd with settings for every interface; firewalld or ufw

Those who set up interfaces are met by a host whose agent is stopped: nobody repairs, so nothing may be changed. What
firewalld and ufw are told is what docs/firewall.md tells the operator, word for word. How long no ping passed while
they load their rules is printed (pytest -s), not judged.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from ipaddress import IPv4Interface

import pytest

from tests.boot.conftest import MakeMachine, Subnet, enable
from tests.boot.debian import MANAGERS, OLDSTABLE, ROOT
from tests.boot.machine import Machine
from tests.lab.lab import Lab
from tests.lab.measure import ping, ping_through
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import nothing_lost, until

pytestmark = [pytest.mark.root, pytest.mark.etcd, pytest.mark.timeout(600)]
MORE = pytest.mark.managers

DEVICE = "flannel.1"
NETWORKD = "systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service"
EVERY = "[Match]\nName=!cni0 veth*\n[Network]\nDHCP=yes\n"
"""For networkd: all interfaces but those of the container engine."""
KEEP = "[Network]\nKeepConfiguration=static\n"
"""For networkd of Debian 12, which else takes the underlay's own address off and puts it on again, at each start."""
PROFILES = {
    "host0": "interface-name=host0\n[ipv4]\nmethod=manual\naddresses={address}/24\ngateway={gateway}\n",
    "every": "autoconnect-priority=-10\nmulti-connect=3\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=auto\n",
}
"""For NetworkManager: the underlay's interface, and whatever looks like Ethernet."""
DHCPCD = "interface host0\nstatic ip_address={address}/24\nstatic routers={gateway}\n"
GUIDE = (ROOT / "docs/firewall.md").read_text()

TRUSTED = ("firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16",)
ZONE = (
    "firewall-cmd --permanent --new-zone=overlay",
    "firewall-cmd --permanent --zone=overlay --add-source=10.42.0.0/16",
    "firewall-cmd --permanent --zone=overlay --add-forward",
    "firewall-cmd --permanent --new-policy=overlay-out",
    "firewall-cmd --permanent --policy=overlay-out --add-ingress-zone=overlay",
    "firewall-cmd --permanent --policy=overlay-out --add-egress-zone=ANY",
    "firewall-cmd --permanent --policy=overlay-out --set-target=ACCEPT",
)
DATA_PORT = (
    "firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=172.30.0.0/24"
    " port port=8472 protocol=udp accept'",
    "firewall-cmd --reload",
)
UFW = "ufw allow from 172.30.0.0/24 to any port 8472 proto udp"


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("vxlan", {}),
        ("host-gw", {"FLANNELD_IP_BLACKHOLE_ROUTE": "true"}),
        pytest.param("vxlan", {"FLANNELD_DATAPATH": "userspace"}, marks=MORE),
    ],
    ids=["vxlan", "host-gw", "userspace"],
)
def test_networkd_with_a_file_for_every_interface(
    make_lab: MakeLab, make_machine: MakeMachine, release: str, backend: str, settings: dict[str, str]
) -> None:
    lab = make_lab(hosts=1, backend=backend)
    machine = make_machine(lab, udev=True, **settings)
    networks = machine.root / "etc/systemd/network"
    (networks / "90-every.network").write_text(EVERY)
    if release == OLDSTABLE:
        (networks / "10-host0.network.d").mkdir()
        (networks / "10-host0.network.d/keep.conf").write_text(KEEP)
    machine.run("systemctl", "restart", "systemd-networkd")
    target = container(machine)
    until(lambda: ping(lab.containers[0], target, count=1, patience=0.3).received, "the peer reaches it", timeout=30)
    settled = "/usr/lib/systemd/systemd-networkd-wait-online --interface=host0"
    unharmed(
        lab,
        machine,
        target,
        "networkctl reload",
        *("systemctl restart systemd-networkd", settled) * 2,
        "udevadm trigger --action=add --subsystem-match=net",
        "udevadm settle",
    )
    if backend == "vxlan":
        link = machine.ask("udevadm", "info", "--query=property", f"--path=/sys/class/net/{DEVICE}")
        assert "ID_NET_LINK_FILE=/usr/lib/systemd/network/05-flanneld-py.link" in link


@MORE
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_networkmanager_that_manages_every_device(make_lab: MakeLab, make_machine: MakeMachine, backend: str) -> None:
    lab = make_lab(hosts=1, backend=backend)
    machine = make_machine(lab, udev=True, more=MANAGERS, FLANNELD_IP_BLACKHOLE_ROUTE="true")
    for name, rest in PROFILES.items():
        file = machine.root / f"etc/NetworkManager/system-connections/{name}.nmconnection"
        rest = rest.format(address=machine.address, gateway=machine.gateway)
        file.write_text(f"[connection]\nid={name}\ntype=ethernet\n{rest}")
        file.chmod(0o600)
    settings = machine.root / "etc/NetworkManager/conf.d/every.conf"
    settings.write_text("[device-every]\nmatch-device=*\nmanaged=1\n")
    instead_of_networkd(machine, "NetworkManager")
    target = container(machine)
    until(lambda: ping(lab.containers[0], target, count=1, patience=0.3).received, "the peer reaches it", timeout=30)
    unharmed(
        lab,
        machine,
        target,
        "nmcli general reload",
        *("systemctl restart NetworkManager", "nm-online -q -s") * 2,
        "nmcli device reapply host0",
    )
    if backend == "vxlan":
        shown = ("nmcli", "-g", "GENERAL.STATE", "device", "show", DEVICE)
        assert machine.ask(*shown) == "10 (unmanaged)"
        # An administrator's list of devices takes the place of ours.
        settings.write_text("[keyfile]\nunmanaged-devices=interface-name:other\n")
        machine.run("sh", "-c", "systemctl stop NetworkManager; rm -r /run/NetworkManager/devices")
        machine.run("systemctl", "start", "NetworkManager")
        assert machine.ask(*shown) == "10 (unmanaged)"


@MORE
def test_dhcpcd_that_runs_on_every_interface(make_lab: MakeLab, make_machine: MakeMachine) -> None:
    lab = make_lab(hosts=1)
    machine = make_machine(lab, udev=True, more=MANAGERS)
    settings = machine.root / "etc/dhcpcd.conf"
    own = DHCPCD.format(address=machine.address, gateway=machine.gateway)
    (machine.root / "etc/resolv.conf").write_text("")  # Its unit does not start without one.
    settings.write_text(f"denyinterfaces flannel* cni* veth*\n{settings.read_text()}\n{own}")
    instead_of_networkd(machine, "dhcpcd")
    target = container(machine)
    until(lambda: ping(lab.containers[0], target, count=1, patience=0.3).received, "the peer reaches it", timeout=30)
    unharmed(lab, machine, target, "dhcpcd -n", *("systemctl restart dhcpcd", "sleep 3") * 2)
    assert DEVICE not in machine.ask("journalctl", "-u", "dhcpcd", "--no-pager")


@MORE
@pytest.mark.parametrize("zone", [TRUSTED, ZONE], ids=["trusted", "a zone of its own"])
def test_firewalld(make_lab: MakeLab, make_machine: MakeMachine, zone: Sequence[str]) -> None:
    lab = make_lab(hosts=1)
    machine = make_machine(lab, more=MANAGERS, FLANNELD_IP_MASQ="true")
    target = container(machine)
    machine.run("systemctl", "enable", "--now", "--quiet", "firewalld")
    told = "--zone=trusted --add-source=10.42.0.0/16"
    until(lambda: told in warnings(machine), "the agent says what to do", timeout=30)
    assert ping(lab.containers[0], target, count=2, patience=0.3).received == 0
    follow(machine, *zone, *DATA_PORT)
    complete(lab, machine, target)
    before = warnings(machine)
    passed(
        lab, machine, target, "firewall-cmd --reload", "firewall-cmd --complete-reload", "systemctl restart firewalld"
    )
    assert warnings(machine) == before


@MORE
def test_ufw(make_lab: MakeLab, make_machine: MakeMachine) -> None:
    lab = make_lab(hosts=1)
    machine = make_machine(lab, more=MANAGERS, FLANNELD_IP_MASQ="true")
    target = container(machine)
    machine.run("ufw", "--force", "enable")
    assert ping(lab.containers[0], target, count=2, patience=0.3).received == 0
    follow(machine, UFW)
    complete(lab, machine, target)
    passed(lab, machine, target, "ufw reload", "systemctl restart ufw", "ufw disable", "ufw --force enable")
    # What the operator denies stays denied: ours stands behind ufw's rules, however often these are loaded.
    deny = f"deny from {lab.containers[0].address}"
    machine.run("ufw", "route", *deny.split())
    until(lambda: not answered(lab, target), "it is denied", timeout=30)
    machine.run("ufw", "reload")
    assert not answered(lab, target)
    machine.run("ufw", "route", "delete", *deny.split())
    complete(lab, machine, target)
    assert warnings(machine) == ""


def container(machine: Machine) -> Subnet:
    """Start the agent, and make a container on a bridge with its subnet."""
    enable(machine)
    env = dict(line.split("=", 1) for line in machine.ask("cat", "/run/flannel/subnet.env").splitlines())
    gateway, mtu = IPv4Interface(env["FLANNEL_SUBNET"]), env["FLANNEL_MTU"]
    own = gateway.ip + 1
    lines = [
        "link add cni0 type bridge",
        f"address add {gateway} dev cni0",
        "link set cni0 up",
        "netns add c1",
        f"link add veth1 mtu {mtu} type veth peer name eth0 netns c1",
        "link set veth1 master cni0 up",
        f"-n c1 address add {own}/24 dev eth0",
        f"-n c1 link set eth0 mtu {mtu} up",
        f"-n c1 route add default via {gateway.ip}",
    ]
    for line in lines:
        machine.run("ip", *line.split())
    return Subnet(f"{machine.name}'s container", machine.core, own)


def instead_of_networkd(machine: Machine, unit: str) -> None:
    """Boot it with another manager of its interfaces."""
    machine.run("systemctl", "disable", "--quiet", *NETWORKD.split())
    machine.run("systemctl", "enable", "--quiet", unit)
    machine.reboot()
    assert machine.unit("systemd-networkd", "ActiveState") == {"ActiveState": "inactive"}


def ours(machine: Machine) -> list[str]:
    """What the kernel has of the agent's."""
    device = [
        f"ip -d -o link show dev {DEVICE}",
        f"ip -o address show dev {DEVICE}",
        f"ip neighbour show dev {DEVICE} nud permanent",
        f"bridge fdb show dev {DEVICE}",
    ]
    there = machine.run("ip", "link", "show", "dev", DEVICE, check=False).returncode == 0
    looks = ["ip route show root 10.42.0.0/16", "ip nexthop", *(device if there else [])]
    return [line for look in looks for line in machine.ask(*look.split()).splitlines()]


def unharmed(lab: Lab, machine: Machine, target: Subnet, *commands: str) -> None:
    """Stop the agent and run commands; nothing of the agent's is changed by them, and no packet is lost."""
    journal = machine.ask("journalctl", "-u", "flanneld-py", "--no-pager")
    assert "somebody else changed" not in journal, "there was something to repair"
    machine.run("systemctl", "stop", "flanneld-py")
    until(lambda: not machine.ask("ip", "address", "show", "tentative"), "no address is tentative", timeout=30)
    before = ours(machine)
    with ping_through(lab.containers[0], target) as replies:
        replies.wait_replies(5)
        for command in commands:
            machine.run(*command.split())
            replies.wait_replies(20)
        nothing_lost(replies)
    assert ours(machine) == before


def follow(machine: Machine, *commands: str) -> None:
    """Run commands of the guide."""
    for command in commands:
        assert command in GUIDE
        machine.run(*shlex.split(command))


def passed(lab: Lab, machine: Machine, target: Subnet, *commands: str) -> None:
    """Run commands; afterwards all is as before, and meanwhile a ping that began before goes on."""
    for command in commands:
        with ping_through(lab.containers[0], target) as replies:
            replies.wait_replies(5)
            machine.run(*command.split())
            replies.wait_replies(20)
            print(f"\n{command}: {replies.stop().longest_gap:.3f} s without a reply at most")
        complete(lab, machine, target)


def complete(lab: Lab, machine: Machine, target: Subnet) -> None:
    """Wait until containers reach each other, either way, and the world, where their addresses are not known."""
    until(lambda: answered(lab, target), "in", timeout=30)
    for address in (lab.containers[0].address, lab.plan.gateway):
        out = ["ip", "netns", "exec", "c1", "ping", "-c1", "-W1", str(address)]
        until(lambda out=out: machine.run(*out, check=False).returncode == 0, f"out to {address}", timeout=30)  # type: ignore[misc]


def answered(lab: Lab, target: Subnet) -> bool:
    """Tell whether a container of the peer gets to a TCP port on which nobody listens. ufw lets every ping through."""
    connect = ["timeout", "1", "bash", "-c", f"</dev/tcp/{target.address}/9"]
    return "refused" in lab.containers[0].namespace.run(connect, check=False).stderr


def warnings(machine: Machine) -> str:
    """What the agent has said that somebody has to look at."""
    return machine.ask("journalctl", "-u", "flanneld-py", "--no-pager", "-q", "-p", "warning")
