"""What ends the agent because only an operator can mend it."""

from __future__ import annotations


class FatalError(Exception):
    """The agent cannot go on; the text says why and what to do (exit code 1)."""
