"""The same question to flannel's daemon and to ours, each on a fresh host: the same answer, or an expected difference.

h1 flannel's ──┐
h2 ours      ──┼── core: etcd, a prefix for each      two fresh hosts a question, all of them made at once
...            ┘
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.certificates import Authority
from tests.interop.answers import Asked, differences
from tests.interop.conftest import Record
from tests.interop.differences import BOTH_WAIT, EXPECTED, expected, waits
from tests.interop.questions import QUESTIONS, Question
from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.lab.topology import Plan

pytestmark = pytest.mark.root

HOSTS = 40
"""Made at once; a lab of all hosts that the questions need would not fit on its underlay."""


class Fresh:
    """Hosts that nobody had before: as many labs as are needed, one after the other."""

    def __init__(self) -> None:
        self.lab: Lab | None = None
        self._unused: list[Host] = []

    def pair(self) -> tuple[Lab, Host, Host]:
        if self.lab is None or not self._unused:
            self.close()
            self.lab = Lab(Plan(hosts=HOSTS, containers=0, overlay="none"))
            self.lab.start()
            Authority(self.lab.run.directory, "ca").issue("client", "127.0.0.1")
            self._unused = list(reversed(self.lab.hosts))
        one, two = self._unused.pop(), self._unused.pop()
        for host in (one, two):
            host.namespace.ip(f"addr add 2001:db8:30::{int(host.address) % 256:x}/64 dev eth0 nodad")
        return self.lab, one, two

    def close(self) -> None:
        if self.lab is not None:
            self.lab.close()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    hosts = Fresh()
    yield hosts
    hosts.close()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_the_answer_is_the_same_or_differs_as_expected(
    question: Question, fresh: Fresh, flanneld: Path, record: Record
) -> None:
    lab, one, two = fresh.pair()
    asked = [
        Asked(lab, host, daemon, question, f"/{host.name}/network")
        for host, daemon in ((one, flanneld), (two, DEFAULT_FLANNELD))
    ]
    theirs, ours = (each.answer(waits=alike) for each, alike in zip(asked, waits(question.name), strict=True))
    found, wanted = differences(theirs, ours), expected(question.name)
    record("question", question.name, f"{found[0]} | {found[1]}: {wanted.why}" if any(found) else theirs.outcome)
    logs = f"flannel's:\n{one.agent.log_tail(8)}\nours:\n{two.agent.log_tail(8)}"
    assert found == (wanted.theirs, wanted.ours), logs
    assert (theirs.outcome == ours.outcome == "waits") == (question.name in BOTH_WAIT), logs


def test_every_expected_difference_is_asked_for() -> None:
    assert EXPECTED.keys() | BOTH_WAIT <= {question.name for question in QUESTIONS}
    assert not EXPECTED.keys() & BOTH_WAIT
