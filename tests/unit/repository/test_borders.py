"""The borders between packages hold: each of their contracts is seen to break by an import that it forbids."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]

PLANTED = {
    "agent/backoff.py": ["flanneld_py.agent.log"],
    "agent/cni/plugin.py": ["flanneld_py.registry.model"],
    "encap/datapath/wire.py": ["asyncio"],
    "encap/netlink/reader.py": ["grpc", "pyroute2"],
    "encap/packet/frame.py": ["flanneld_py.encap.netlink.request", "os"],
    "registry/model.py": ["flanneld_py.encap.state", "flanneld_py.registry.registry"],
}


def test_each_contract_breaks_by_what_it_forbids(tmp_path: Path) -> None:
    sources = tmp_path / "flanneld_py"
    for package in ("agent", "encap", "registry"):
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path, imports in PLANTED.items():
        with (sources / path).open("a") as file:
            file.writelines(f"import {name}\n" for name in imports)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    kept = re.findall(r"^(.+) KEPT", done.stdout, re.MULTILINE)
    assert not kept
    assert f"Contracts: 0 kept, {len(contracts)} broken." in done.stdout, done.stdout + done.stderr
