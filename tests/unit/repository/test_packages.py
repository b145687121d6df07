"""What .ci/packages wants installed, told to somebody who may not install it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci/packages"
TOOLS = {
    "dpkg-query": '[ "$4" = here ] && printf installed',
    # Of a name that only others provide, or that is no longer in the archive, apt knows no candidate.
    "apt-cache": """case $2 in
nowhere) ;;
virtual) printf '%s:\\n  Installed: (none)\\n  Candidate: (none)\\n' "$2" ;;
*) printf '%s:\\n  Installed: (none)\\n  Candidate: 1.2\\n' "$2" ;;
esac""",
    "id": "echo 1000",
}


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["here"], ""),
        (["here", "gone"], " gone"),
        (["here", "docker-cli?"], " docker-cli"),
        (["here?", "nowhere?", "virtual?"], ""),
        (["nowhere", "gone"], " nowhere gone"),
    ],
)
def test_a_name_that_only_some_releases_have_is_left_out_elsewhere(
    tmp_path: Path, names: list[str], missing: str
) -> None:
    for name, body in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT, *names], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    said = f"missing Debian packages:{missing}; install them with: sudo make system\n" if missing else ""
    assert (done.returncode, done.stderr) == (bool(missing), said)
