from __future__ import annotations

import pytest

from flanneld_py.agent.log import AGAIN
from flanneld_py.agent.reconcile.repairs import BURST, Repairs


def test_repairs_are_prompt_until_there_are_too_many(caplog: pytest.LogCaptureFixture) -> None:
    repairs = Repairs()
    for _ in range(BURST - 2):
        repairs.note(1, 100.0)
        assert repairs.patience == 0
    for _ in range(1000):
        repairs.note(1, 100.1)
    assert repairs.patience > 0
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    repairs.note(1, 200.0)
    assert repairs.patience == 0


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


def test_a_slow_fight_without_end_is_a_warning_and_not_a_line_for_each_turn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flanneld-py")
    repairs = Repairs()
    for turn in range(720):  # An hour of one who comes every five seconds.
        repairs.note(1, 1000.0 + 5 * turn, "end it")
        assert repairs.patience == 0, "it is slow enough"
    assert levels(caplog).count("INFO") < 10
    assert levels(caplog).count("WARNING") == 3600 / AGAIN
    assert "somebody keeps changing our kernel entries" in caplog.text
    caplog.clear()
    repairs.note(1, 1000.0 + 3600 + 300 + 1)
    assert levels(caplog) == ["INFO"], "it was over"


def test_now_and_then_is_no_fight(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flanneld-py")
    repairs = Repairs()
    for turn in range(100):
        repairs.note(1, 1000.0 + 60 * turn)
    assert levels(caplog) == ["INFO"] * 100
