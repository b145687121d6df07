"""What holds for all tests: as root nothing is skipped; without root, what needs it is skipped with the reason.

The time that pytest-timeout gives a test is a deadline like the others: it is stretched as well.
"""

from __future__ import annotations

import os
import shutil

import pytest

from tests.lab.programs import program
from tests.patience import patient


def pytest_runtest_setup(item: pytest.Item) -> None:
    as_root = os.geteuid() == 0
    if item.get_closest_marker("root") and not as_root:
        pytest.skip("needs root: sudo make test")
    if item.get_closest_marker("etcd") and shutil.which(program("etcd")) is None:
        reason = "needs etcd: sudo make system installs it"
        if as_root:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_itemcollected(item: pytest.Item) -> None:
    own = item.get_closest_marker("timeout")
    seconds = float(own.args[0] if own else item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(patient(seconds)), append=False)
