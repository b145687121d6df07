from __future__ import annotations

import asyncio
import json
import logging

import pytest

from flanneld_py.agent.log import AGAIN, JournalFormatter, JsonFormatter, OnChange, TextFormatter
from tests.fakes.clock import ManualClock


def record(**values: object) -> logging.LogRecord:
    line = logging.LogRecord("x", logging.WARNING, "f", 1, "lease is not used", None, None)
    line.facts = values
    return line


def test_text_is_a_sentence_and_facts() -> None:
    text = TextFormatter(timestamps=False).format(record(key="/k/10.5.1.0-24", reason='value is "x"', empty=""))
    assert text == r'WARNING lease is not used key=/k/10.5.1.0-24 reason="value is \"x\"" empty=""'


def test_a_line_stays_one_line() -> None:
    assert "\n" not in TextFormatter(timestamps=False).format(record(reason="two\nlines"))


def test_what_comes_from_outside_is_tamed() -> None:
    text = TextFormatter(timestamps=False).format(record(key="a\x1b[31m\r" + "x" * 10_000))
    assert text.isprintable()
    assert len(text) < 600


def test_json_has_the_same() -> None:
    line = json.loads(JsonFormatter().format(record(key="k")))
    assert (line["level"], line["message"], line["key"]) == ("WARNING", "lease is not used", "k")


def test_the_journal_gets_a_priority() -> None:
    line = JournalFormatter(TextFormatter(timestamps=False)).format(record(key="k"))
    assert line == "<4>WARNING lease is not used key=k"


async def test_what_lasts_is_said_again_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """A reason that flickers is two reasons, not one at every try."""
    clock = ManualClock()
    trouble = OnChange(clock)

    async def an_hour() -> None:
        for _ in range(360):
            trouble.warn("etcd is away", "refused")
            trouble.warn("etcd is away", "no route")
            await clock.sleep(10)

    async with asyncio.TaskGroup() as tasks:
        await clock.run_until(tasks.create_task(an_hour()).done, 3601)
    assert len(caplog.records) == 2 * 3600 / AGAIN
    assert trouble.over()
    assert not trouble.over()
    trouble.warn("etcd is away", "refused")
    assert len(caplog.records) == 2 * 3600 / AGAIN + 1, "it has come anew"


async def test_reasons_without_end_are_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers random bytes gives another reason at every try."""
    clock = ManualClock()
    trouble = OnChange(clock)

    async def an_hour() -> None:
        for number in range(1200):
            trouble.warn("etcd is away", f"garbage {number}")
            await clock.sleep(3)

    async with asyncio.TaskGroup() as tasks:
        await clock.run_until(tasks.create_task(an_hour()).done, 3601)
    assert len(caplog.records) <= 60 + 5
