"""The image, made once if it is not given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.debian import ROOT
from tests.netns.conftest import make_lab, pytest_runtest_makereport
from tests.patience import patient

__all__ = ["make_lab", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def archive() -> Path:
    """The archive that IMAGE names, else one that is made now."""
    if given := os.environ.get("IMAGE"):
        return Path(given)
    done = subprocess.run(
        [ROOT / "deploy/container/build"], cwd=ROOT, capture_output=True, text=True, timeout=patient(600), check=False
    )
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.strip()
