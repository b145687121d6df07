"""What holds for all tests: as root nothing is skipped; without root, what needs it is skipped with the reason.

What pytest-timeout gives a test and Hypothesis an example are deadlines like the others: they are stretched as well.
"""

from __future__ import annotations

import os
import shutil
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.programs import program
from tests.patience import FACTOR, patient

settings.register_profile(
    "patient",
    deadline=timedelta(seconds=patient(0.2)),
    suppress_health_check=[HealthCheck.too_slow] if FACTOR > 1 else [],
)
settings.load_profile("patient")


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
