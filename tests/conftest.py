"""What holds for all tests: a test that cannot run here says why; on CI it fails instead of being skipped."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = ""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        reason = "needs root: run it with sudo make test"
    elif item.get_closest_marker("etcd") and shutil.which("etcd") is None:
        reason = "needs etcd: install Debian's etcd-server, or run sudo make system"
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"on CI nothing is skipped, and this {reason}", pytrace=False)
    elif reason:
        pytest.skip(reason)
