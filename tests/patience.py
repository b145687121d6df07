"""How long the tests wait before they call something failed: one factor for all deadlines.

A deadline ends a wait for what should have happened long ago; that it is far away costs nothing as long as all is well.
On a machine that is slow (emulated, or busy with other work) `FLANNELD_PY_PATIENCE=8` makes each eight times as far.
"""

from __future__ import annotations

import math
import os
import time

VARIABLE = "FLANNELD_PY_PATIENCE"


def factor(text: str) -> float:
    """Read the factor. Raises ValueError if it is no number of 1 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise ValueError(f"{VARIABLE} is {text!r}: give a number of 1 or more, which stretches every deadline")
    return value


FACTOR = factor(os.environ.get(VARIABLE, "1"))


def patient(seconds: float) -> float:
    """A number of seconds to wait at most, stretched."""
    return seconds * FACTOR


def within(seconds: float) -> float:
    """A deadline on the monotonic clock, that many seconds from now, stretched."""
    return time.monotonic() + patient(seconds)
