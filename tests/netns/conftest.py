"""Labs for tests: made on demand, removed also on failure, and on failure the agents' logs are shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.topology import Plan

FAILED = pytest.StashKey[bool]()
MakeLab = Callable[..., Lab]
"""`make_lab(hosts=2, **plan) -> Lab`: the arguments are Plan's."""

LEASED = {"SubnetMin": "10.42.100.0", "SubnetMax": "10.42.199.0"}
"""Where agents draw their subnets: away from those that tests write into the registry by hand."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
def make_lab(request: pytest.FixtureRequest) -> Iterator[MakeLab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with ExitStack() as labs:

        def make(hosts: int = 2, **plan: Any) -> Lab:
            plan.setdefault("config", LEASED)
            lab = labs.enter_context(Lab(Plan(hosts=hosts, **plan)))
            labs.callback(_show_logs_if_failed, request.node, lab)
            return lab

        yield make


def _show_logs_if_failed(item: pytest.Item, lab: Lab) -> None:
    if not item.stash.get(FAILED, False):
        return
    for host in lab.hosts:
        if host.agent.log.exists():
            print(f"--- agent {host.name}, {host.agent.log}\n{host.agent.log_tail()}")
