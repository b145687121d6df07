from __future__ import annotations

import pytest

from flanneld_py.agent.repairs import BURST, Repairs


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
