"""deploy/lxc-net: what LXC's scripts learn from the subnet file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SETTINGS = Path(__file__).parents[3] / "deploy/lxc-net"


def source(subnet_file: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Read the settings as LXC's scripts do, and print the variables for LXC."""
    subnet_file.write_text(text)
    environment = {"PATH": "/usr/bin:/bin", "FLANNEL_SUBNET_FILE": str(subnet_file)}
    argv = ["sh", "-c", f'set -e; . {SETTINGS}; set | grep ^LXC_ | tr -d "\'"']
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("subnet", "netmask", "dhcp", "most"),
    [
        ("10.42.7.1/24", "255.255.255.0", "10.42.7.2,10.42.7.254", 253),
        ("10.42.16.1/20", "255.255.240.0", "10.42.16.2,10.42.31.254", 4093),
        ("10.42.255.253/30", "255.255.255.252", "10.42.255.254,10.42.255.254", 1),
    ],
)
def test_the_bridge_gets_the_first_address_and_dhcp_the_others(
    tmp_path: Path, subnet: str, netmask: str, dhcp: str, most: int
) -> None:
    done = source(tmp_path / "subnet.env", f"FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET={subnet}\n")
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == {
        "LXC_ADDR": subnet.partition("/")[0],
        "LXC_NETMASK": netmask,
        "LXC_NETWORK": "10.42.0.0/16",
        "LXC_DHCP_RANGE": dhcp,
        "LXC_DHCP_MAX": str(most),
    }


RIGHT = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n"


def test_ipv6_is_taken_as_well(tmp_path: Path) -> None:
    done = source(tmp_path / "e", RIGHT + "FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:7::1/64\n")
    assert {
        "LXC_IPV6_ADDR=fd00:42:0:7::1",
        "LXC_IPV6_MASK=64",
        "LXC_IPV6_NETWORK=fd00:42::/48",
    } <= set(done.stdout.splitlines())


HOSTILE = [
    "$(touch X)",
    "`touch X`",
    "10.42.7.1/24; touch X",
    "a[$(touch X)]",
    "10.42.7.1/24 x",
    "10..1/24",
    "/24/",
    "x",
    "10.42.7.1",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"])
def test_what_the_file_says_is_not_executed(tmp_path: Path, name: str, value: str) -> None:
    """Root reads these settings, and the file is the agent's."""
    marker = tmp_path / "executed"
    done = source(tmp_path / "subnet.env", RIGHT + f"{name}={value.replace('X', str(marker))}\n")
    assert done.returncode == 1
    assert f"{name} in {tmp_path}/subnet.env is no address with its length" in done.stderr
    assert not marker.exists()


def test_other_lines_are_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    lines = f"touch {marker}\n=\nPATH=/nowhere\nLXC_ADDR=1.2.3.4\nLXC_BRIDGE=$(touch {marker})\n$(touch {marker})=1\n"
    done = source(tmp_path / "subnet.env", lines + RIGHT)
    assert done.returncode == 0
    assert not marker.exists()
    assert "LXC_ADDR=10.42.7.1" in done.stdout.splitlines()
    assert "LXC_BRIDGE" not in done.stdout


@pytest.mark.parametrize(
    ("network", "subnet"),
    [("10.42.0.0/16", "10.43.0.1/24"), ("10.42.128.0/17", "10.42.7.1/24"), ("192.168.0.0/30", "192.168.0.5/30")],
)
def test_a_subnet_of_another_network_is_refused(tmp_path: Path, network: str, subnet: str) -> None:
    done = source(tmp_path / "subnet.env", f"FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet}\n")
    assert done.returncode == 1
    assert f"FLANNEL_SUBNET {subnet} in {tmp_path}/subnet.env is not inside FLANNEL_NETWORK {network}" in done.stderr
    assert done.stdout == ""
