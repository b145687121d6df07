from __future__ import annotations

import json

from tests.lab.report import Pair, document, table

GOOD = Pair("h1c1", "h2c1", "10.42.2.2", 0.0401, 0.0, 13.774)
DEAD = Pair("h10c1", "h2c1", "10.42.2.2", None, 1.0, None)


def test_the_table_lines_up_and_shows_what_was_not_measured() -> None:
    assert table([GOOD, DEAD]).splitlines() == [
        "from   to    address    ping ms  loss  Gbit/s",
        "h1c1   h2c1  10.42.2.2    0.040    0%   13.77",
        "h10c1  h2c1  10.42.2.2        -  100%       -",
    ]


def test_one_bad_pair_makes_the_outcome_bad() -> None:
    assert json.loads(document([GOOD], {"hosts": 2}))["good"] is True
    outcome = json.loads(document([GOOD, DEAD], {"hosts": 2}))
    assert outcome["good"] is False
    assert outcome["hosts"] == 2
    assert outcome["pairs"][1] == {
        "source": "h10c1",
        "target": "h2c1",
        "address": "10.42.2.2",
        "ping_ms": None,
        "loss": 1.0,
        "gbit_per_second": None,
    }
