"""What is installed beside the program agrees with it: units, settings, manual page."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flanneld_py.agent.flags import FLAGS
from flanneld_py.agent.health import CLIENTS

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("**/*.service")) + sorted(DEPLOY.glob("**/*.service.d/*.conf"))


def settings(unit: Path) -> list[tuple[str, str]]:
    lines = (line.strip() for line in unit.read_text().splitlines())
    return [(name, value) for line in lines if line[:1] not in ("", "#", "[") for name, value in [line.split("=", 1)]]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_never_gives_up_and_does_not_spin(unit: Path) -> None:
    given = dict(settings(unit))
    assert given["StartLimitIntervalSec"] == "0"
    assert int(given["RestartSec"]) >= 2


def test_the_agents_unit_leaves_the_data_plane_and_the_subnet_file() -> None:
    given = dict(settings(DEPLOY / "flanneld-py.service"))
    assert given["KillMode"] == "process"
    assert given["RuntimeDirectoryPreserve"] == "yes"
    assert given["OOMPolicy"] == "continue"


def test_the_agents_unit_gives_more_descriptors_than_clients_of_the_health_port_can_take() -> None:
    given = dict(settings(DEPLOY / "flanneld-py.service"))
    assert int(given["LimitNOFILE"]) >= 16 * CLIENTS


def test_root_trusts_nothing_that_the_agents_user_writes() -> None:
    agent = dict(settings(DEPLOY / "flanneld-py.service"))
    (folder,) = agent["RuntimeDirectory"].split()
    for unit in UNITS:
        for name, value in settings(unit):
            assert name != "EnvironmentFile" or f"/run/{folder}/" not in value, unit
    writer = dict(settings(DEPLOY / "flanneld-py-docker.service"))
    reader = dict(settings(DEPLOY / "docker.service.d/flanneld-py.conf"))
    assert "User" not in writer, "what root starts Docker with is root's"
    assert reader["EnvironmentFile"] == writer["ExecStart"].split()[-1]
    assert reader["EnvironmentFile"].startswith(f"/run/{writer['RuntimeDirectory']}/")


def test_nothing_reads_the_subnet_file_as_shell() -> None:
    texts = [
        path for folder in (DEPLOY, ROOT / "docs", ROOT / "vagrant") for path in folder.rglob("*") if path.is_file()
    ]
    assert len(texts) > 30
    for path in [*texts, ROOT / "README.md"]:
        text = path.read_text(errors="replace")
        assert not re.search(r"(^|[\s;&|(`])(\.|source)\s+\S*(subnet\.env|docker\.env|_file\b)", text, re.MULTILINE), (
            path
        )


def test_units_start_programs_that_the_distribution_has() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for unit in DEPLOY.glob("*.service"):
        started = Path(dict(settings(unit))["ExecStart"].split()[0])
        assert started.parent == Path("/usr/sbin")
        assert started.name in scripts


def test_the_settings_file_names_variables_that_there_are() -> None:
    named = re.findall(r"FLANNELD_[A-Z_]+", (DEPLOY / "flanneld-py.default").read_text())
    assert named
    assert set(named) <= {flag.variable for flag in FLAGS}


def test_the_manual_page_has_every_flag() -> None:
    page = subprocess.run(
        [sys.executable, DEPLOY / "debian/manpage.py", "1.2-3"], capture_output=True, text=True, check=True
    ).stdout
    assert r"flanneld-py 1.2\-3" in page
    for flag in FLAGS:
        shown = "\n.B \\-\\-" + flag.name.replace("-", "\\-") + "\n" in page
        assert shown == (flag.kind not in ("refused", "ignored")), flag.name
