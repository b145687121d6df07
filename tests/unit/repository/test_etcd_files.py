"""deploy/etcd, as far as no etcd is needed: certificates, and examples that agree with each other.

What real members and agents do with them is in tests/netns/test_etcd_cluster.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy/etcd"


def certificates(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEPLOY / "certificates", *arguments], capture_output=True, text=True, check=False)


def shown(certificate: Path, *what: str) -> str:
    command = ["openssl", "x509", "-in", str(certificate), "-noout", *what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_gets_a_folder_with_what_it_needs_and_no_more(tmp_path: Path) -> None:
    said = certificates(tmp_path, "member", "etcd1", "10.0.0.5", "fd00::5", "etcd1.example.org", "etcd.dc1").stdout
    assert certificates(tmp_path, "client", "web-1", "flannel").returncode == 0
    member, client = tmp_path / "etcd1", tmp_path / "web-1"
    assert {path.name for path in member.iterdir()} == {
        *("ca.crt", "server.crt", "server.key", "peer-ca.crt", "peer.crt", "peer.key"),
    }
    assert {path.name for path in client.iterdir()} == {"ca.crt", "client.crt", "client.key"}
    names = shown(member / "server.crt", "-ext", "subjectAltName")
    assert all(
        name in names for name in ("IP Address:10.0.0.5", "IP Address:FD00", "DNS:etcd1.example.org", "DNS:etcd.dc1")
    )
    # A common name would make the server's own gateway a user.
    assert "CN" not in shown(member / "server.crt", "-subject")
    assert shown(client / "client.crt", "-subject", "-nameopt", "RFC2253") == "subject=CN=flannel,O=etcd\n"
    assert all(path.stat().st_mode & 0o77 == 0 for path in tmp_path.rglob("*.key"))
    assert f"made  {member}/server.key" in said.splitlines()


def test_what_is_there_is_kept_and_said(tmp_path: Path) -> None:
    certificates(tmp_path, "member", "etcd1", "10.0.0.5")
    before = contents(tmp_path)
    again = certificates(tmp_path, "member", "etcd1", "10.0.0.5")
    assert again.returncode == 0
    assert {line.split()[0] for line in again.stdout.splitlines()} == {"kept"}
    assert contents(tmp_path) == before

    expired = tmp_path / "etcd1/server.crt"
    expired.unlink()
    assert f"made  {expired}" in certificates(tmp_path, "member", "etcd1", "10.0.0.5").stdout
    assert contents(tmp_path) == {**before, expired: expired.read_bytes()}


def test_a_client_of_one_authority_is_no_member_of_the_other(tmp_path: Path) -> None:
    certificates(tmp_path, "member", "etcd1", "10.0.0.5")
    certificates(tmp_path, "client", "web-1", "flannel")

    def vouches(authority: str, certificate: str) -> bool:
        command = ["openssl", "verify", "-CAfile", str(tmp_path / authority), str(tmp_path / certificate)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert vouches("ca.crt", "web-1/client.crt")
    assert vouches("peer-ca.crt", "etcd1/peer.crt")
    assert not vouches("peer-ca.crt", "web-1/client.crt")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("member", "etcd1"),
        ("member", "../etcd1", "10.0.0.5"),
        ("member", "etcd1", "10.0.0.5,DNS:*"),
        ("client", "web-1", "flannel/O=other"),
        ("server", "etcd1", "10.0.0.5"),
    ],
)
def test_what_makes_no_certificate_is_refused_and_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = certificates(tmp_path / "pki", *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert not (tmp_path / "pki").exists()


def test_the_container_sees_what_the_settings_name() -> None:
    settings = (DEPLOY / "etcd.env").read_text()
    mounted = re.findall(r"- (/[^:]+):\1(?::ro)?$", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)
    named = re.findall(r"=(/\S+)", settings)
    assert named
    assert all(any(path.startswith(f"{folder}/") for folder in mounted) for path in named)
