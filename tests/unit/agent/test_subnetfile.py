from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from flanneld_py.agent.subnetfile import SubnetFile, previous_subnets, read, replace, write

V4 = (IPv4Network("10.42.0.0/16"), IPv4Network("10.42.5.0/24"))
V6 = (IPv6Network("2001:cafe:42::/56"), IPv6Network("2001:cafe:42:5::/64"))
CONTENT = SubnetFile((V4,), 1450, ipmasq=False)


def test_the_text_is_flannels(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    write(path, CONTENT)
    assert path.read_text() == (
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_the_text_of_dual_stack_and_of_ipv6_alone_is_flannels() -> None:
    ipv6 = "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:5::1/64\n"
    rest = "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    assert SubnetFile((V4, V6), 1430, ipmasq=True).text() == (
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\n" + ipv6 + rest
    )
    assert SubnetFile((V6,), 1430, ipmasq=True).text() == ipv6 + rest


@pytest.mark.parametrize("families", [(V4,), (V6,), (V4, V6)])
def test_it_is_read_back_as_the_subnets(tmp_path: Path, families: tuple[tuple[IPv4Network, IPv4Network], ...]) -> None:
    write(tmp_path / "subnet.env", SubnetFile(families, 1450, ipmasq=False))
    assert previous_subnets(tmp_path / "subnet.env") == tuple(subnet for _, subnet in families)


@pytest.mark.parametrize(
    ("text", "subnet"),
    [
        ("FLANNEL_SUBNET=10.42.5.7/24", "10.42.5.0/24"),
        ('FLANNEL_SUBNET="10.42.5.1/24"', "10.42.5.0/24"),
        ("FLANNEL_SUBNET=bad,10.42.5.1/24", "10.42.5.0/24"),
        ("FLANNEL_SUBNET=10.42.5.1/24,10.42.6.1/24", None),
        ("FLANNEL_SUBNET=10.42.5.1/99", None),
        ("FLANNEL_SUBNET=", None),
        ("FLANNEL_SUBNET=fd00:42:0:5::1/64", None),
        ("FLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_IPV6_SUBNET=10.42.6.1/24", "10.42.5.0/24"),
        ("FLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_IPV6_SUBNET=fd00::1/64,fd01::1/64", "10.42.5.0/24"),
        ("\x00\xff garbage", None),
        ("", None),
    ],
)
def test_an_odd_file_gives_one_subnet_or_none(tmp_path: Path, text: str, subnet: str | None) -> None:
    (tmp_path / "subnet.env").write_text(text, encoding="latin-1")
    assert previous_subnets(tmp_path / "subnet.env") == ((IPv4Network(subnet),) if subnet else ())


def test_no_file_is_no_subnet(tmp_path: Path) -> None:
    assert previous_subnets(tmp_path / "subnet.env") == ()


@pytest.mark.parametrize("families", [(V4,), (V6,), (V4, V6)])
def test_all_of_it_is_read_back(tmp_path: Path, families: tuple[tuple[IPv4Network, IPv4Network], ...]) -> None:
    content = SubnetFile(families, 1450, ipmasq=True)
    write(tmp_path / "subnet.env", content)
    assert read(tmp_path / "subnet.env") == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10.42.5.1/24", "10.43.5.1/24", r"10\.43\.5\.0/24 is not inside FLANNEL_NETWORK 10\.42\.0\.0/16"),
        ("10.42.5.1/24", "10.0.0.0/8", "is not inside"),
        ("10.42.5.1/24", "10.42.5.1/99", r"FLANNEL_SUBNET=10\.42\.5\.1/99: expected an IPv4 network"),
        ("FLANNEL_NETWORK=10.42.0.0/16\n", "", "FLANNEL_NETWORK=: expected an IPv4 network"),
        ("FLANNEL_IPMASQ=false\n", "", "FLANNEL_IPMASQ=: expected true or false"),
        ("1450", "99999", "FLANNEL_MTU=99999: expected 1 to 65535 bytes"),
        ("SUBNET=10.42.5.1/24", "SUBNET=10.42.5.1/24,10.42.6.1/24", "expected an IPv4 network"),
    ],
)
def test_whoever_needs_all_of_it_is_told_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(CONTENT.text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_nothing_is_written_through_a_link_that_somebody_has_put_there(tmp_path: Path) -> None:
    """The agent may run as root in a folder of another user, who can foretell the temporary file's name."""
    victim, target = tmp_path / "shadow", tmp_path / "subnet.env"
    victim.write_text("root:")
    (tmp_path / f".subnet.env.{os.getpid()}").symlink_to(victim)
    replace(target, "FLANNEL_MTU=1450\n", 0o644)
    assert (victim.read_text(), target.read_text()) == ("root:", "FLANNEL_MTU=1450\n")
    assert target.stat().st_mode & 0o777 == 0o644
    assert not target.is_symlink()
