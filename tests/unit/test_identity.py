from __future__ import annotations

from pathlib import Path

from flanneld_py.agent.identity import read_identity


def machine(root: Path, machine_id: str) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc/machine-id").write_text(machine_id + "\n")
    return root


def test_it_lasts_and_clones_do_not_share_it(tmp_path: Path) -> None:
    one = machine(tmp_path / "one", "0123456789abcdef0123456789abcdef")
    two = machine(tmp_path / "two", "fedcba9876543210fedcba9876543210")
    mac, other_mac = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")
    name = read_identity(mac, one).name
    assert name == read_identity(mac, one).name
    assert name != read_identity(mac, two).name
    assert name != read_identity(other_mac, one).name, "a clone has the machine id and another MAC"
    assert "0123456789abcdef" not in name, "a machine id is not to be published"


def test_a_host_without_machine_id_has_one_all_the_same(tmp_path: Path) -> None:
    assert read_identity(bytes(6), tmp_path).name
