from __future__ import annotations

import json
import logging

from flanneld_py.agent.log import JsonFormatter, TextFormatter


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
