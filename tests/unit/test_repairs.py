from __future__ import annotations

import pytest

from flanneld_py.agent.repairs import LONGEST, Repairs


def test_a_single_repair_is_prompt_and_a_fight_is_slowed_down(caplog: pytest.LogCaptureFixture) -> None:
    repairs = Repairs()
    repairs.note(1, 100.0)
    assert repairs.patience == 0
    for step in range(1, 100):
        repairs.note(1, 100.0 + step)
    assert repairs.patience == LONGEST
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    repairs.note(1, 1000.0)
    assert repairs.patience == 0
