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


def test_hosts_in_network_namespaces_of_one_machine_are_no_boot_of_each_other(tmp_path: Path) -> None:
    boots = set()
    for number in ("one", "two"):
        root = machine(tmp_path / number, "0123456789abcdef0123456789abcdef")
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        (root / "proc/sys/kernel/random/boot_id").write_text("7f5a1a2e-0a5c-4b43-9d5b-0c9f9d5cf0a1\n")
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/net").touch()  # A file of its own, so a number of its own.
        boots |= {read_identity(bytes(6), root).boot_id, read_identity(bytes(6), root).boot_id}
    assert len(boots) == 2
