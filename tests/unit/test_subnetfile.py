from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flanneld_py.agent.subnetfile import SubnetFile, previous_subnet, write

CONTENT = SubnetFile(IPv4Network("10.42.0.0/16"), IPv4Network("10.42.5.0/24"), 1450, ipmasq=False)


def test_the_text_is_flannels(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    write(path, CONTENT)
    assert path.read_text() == (
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_it_is_read_back_as_the_subnet(tmp_path: Path) -> None:
    write(tmp_path / "subnet.env", CONTENT)
    assert previous_subnet(tmp_path / "subnet.env") == IPv4Network("10.42.5.0/24")


@pytest.mark.parametrize(
    ("text", "subnet"),
    [
        ("FLANNEL_SUBNET=10.42.5.7/24", "10.42.5.0/24"),
        ('FLANNEL_SUBNET="10.42.5.1/24"', "10.42.5.0/24"),
        ("FLANNEL_SUBNET=bad,10.42.5.1/24", "10.42.5.0/24"),
        ("FLANNEL_SUBNET=10.42.5.1/24,10.42.6.1/24", None),
        ("FLANNEL_SUBNET=10.42.5.1/99", None),
        ("FLANNEL_SUBNET=", None),
        ("\x00\xff garbage", None),
        ("", None),
    ],
)
def test_an_odd_file_gives_one_subnet_or_none(tmp_path: Path, text: str, subnet: str | None) -> None:
    (tmp_path / "subnet.env").write_text(text, encoding="latin-1")
    assert previous_subnet(tmp_path / "subnet.env") == (IPv4Network(subnet) if subnet else None)


def test_no_file_is_no_subnet(tmp_path: Path) -> None:
    assert previous_subnet(tmp_path / "subnet.env") is None
