"""Logs for people and machines: a sentence, then the facts as key=value, one line each, to stderr.

    INFO lease acquired subnet=10.5.52.0/24 by=identity revision=1234

`--log-json` writes the same as one JSON object a line. The journal adds time and host, and takes the level as a number
in front (`journalctl -p warning`); without it a time is put in front. Never log options, credentials or environment
wholesale: name what you show.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from flanneld_py.agent.clock import Clock

log = logging.getLogger("flanneld-py")

LONGEST = 400
"""Characters of one fact."""

AGAIN = 600.0
"""Seconds until what lasts is said again: whoever reads the end of a journal should find it."""


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
"""syslog(3)'s levels."""


class Extra(TypedDict):
    """What `logging` takes for the facts of a line."""

    extra: dict[str, dict[str, object]]


def facts(**values: object) -> Extra:
    """Attach facts to a line: `log.info("lease acquired", **facts(subnet=subnet))`."""
    return {"extra": {"facts": values}}


class TextFormatter(logging.Formatter):
    """`LEVEL sentence key=value ...`, with the time in front unless the journal adds it."""

    def __init__(self, *, timestamps: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s" if timestamps else "%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        values = getattr(record, "facts", {})
        return super().format(record) + "".join(f" {name}={_quoted(str(value))}" for name, value in values.items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        values = {name: str(value)[:LONGEST] for name, value in getattr(record, "facts", {}).items()}
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage(), **values}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class JournalFormatter(logging.Formatter):
    """Another formatter's line with the journal's priority in front, which it takes off (sd-daemon(3))."""

    def __init__(self, line: logging.Formatter) -> None:
        super().__init__()
        self._line = line

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return priority(record.levelno) + self._line.format(record)


def priority(level: int) -> str:
    """Return what the journal wants in front of a line of this level."""
    return f"<{next(number for least, number in _PRIORITIES if level >= least)}>"


def in_journal() -> bool:
    """Tell whether stderr goes to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # It is closed, or no file at all.
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


REASONS = 5
"""Reasons of one condition that are logged as they come; of a server that answers garbage each is another one."""


class OnChange:
    """Log a condition when it begins, and each reason for it at most every AGAIN seconds: not at every try.

    Of more than REASONS in that time only the first in a minute.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def warn(self, what: str, why: object) -> None:
        """Log `what` with its reason, unless that was said lately."""
        now, reason = self._clock.now(), str(why)
        lately = {said: at for said, at in self._said.items() if now - at < AGAIN}
        if reason not in lately and (len(lately) < REASONS or now - max(lately.values()) >= 60):
            lately[reason] = now
            log.warning(what, **facts(reason=reason))
        self._said = lately

    def over(self) -> bool:
        """Take in that the condition is over; return whether there was one."""
        said, self._said = self._said, {}
        return bool(said)


def set_up(*, as_json: bool, verbose: bool) -> None:
    """Send all logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    journal = in_journal()
    line = JsonFormatter() if as_json else TextFormatter(timestamps=not journal)
    handler.setFormatter(JournalFormatter(line) if journal else line)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)


def _quoted(value: str) -> str:
    """Make one word of a value: what comes from outside must not fake lines, send escape codes or fill the disk."""
    if len(value) > LONGEST:
        value = value[:LONGEST] + "…"
    plain = value and value.isprintable() and not any(character in value for character in ' "=')
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
