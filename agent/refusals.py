"""What the kernel refuses, kept for people: each entry is logged once until it works, and a flood as one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from flanneld_py.agent.log import facts, log
from flanneld_py.encap.state import Failure, Key, describe

SHOWN = 10
"""How many refused entries are logged one by one: as many as somebody reads."""


class Refusals:
    """The entries that are refused at present."""

    def __init__(self) -> None:
        self._failures: dict[Key, Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._failures.values())

    def note(self, failures: Sequence[Failure]) -> bool:
        """Log what is refused for the first time; return whether there was any."""
        before = len(self._failures)
        for failure in failures:
            entry = failure.operation.entry
            if entry.key in self._failures:
                continue
            if len(self._failures) < SHOWN:
                verb = failure.operation.verb.value
                log.warning(f"cannot {verb} {describe(entry)}, trying again", **facts(reason=failure.message))
            elif len(self._failures) == SHOWN:
                log.warning("the kernel refuses more entries, not shown one by one")
            self._failures[entry.key] = failure
        return len(self._failures) > before

    def keep(self, refused: Collection[Key]) -> None:
        """Forget all that is not refused any more."""
        before = len(self._failures)
        self._failures = {key: failure for key, failure in self._failures.items() if key in refused}
        if before and not self._failures:
            log.info("the kernel has taken everything that it refused before", **facts(entries=before))
