"""The command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.patience import patient

MAIN = """
import os, sys
from flanneld_py.agent.cli import main
print(main(["--datapath-stop", "--subnet-file", sys.argv[1]]))
print(*sorted(os.environ))
"""

HELP = """
import sys
from flanneld_py.agent.cli import main
assert main(["--help"]) == 0
print(*sys.modules)
"""


def test_what_it_starts_does_not_learn_its_settings_and_secrets(tmp_path: Path) -> None:
    settings = {"FLANNELD_ETCD_USERNAME": "host", "FLANNELD_ETCD_PASSWORD": "secret", "FLANNELD_V": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, tmp_path / "subnet.env"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=patient(20),
        check=True,
    )
    code, names = done.stdout.splitlines()
    assert code == "0"
    assert "PATH" in names.split()
    assert not set(settings) & set(names.split())


def test_help_is_answered_without_what_runs_an_agent() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=patient(20), check=True)
    loaded = done.stdout.split()
    assert "flanneld_py.agent.options" in loaded
    programs = ("flanneld_py.encap", "flanneld_py.agent.firewall", "flanneld_py.agent.daemon")
    assert [name for name in loaded if name.split(".")[0] == "asyncio" or name.startswith(programs)] == []
