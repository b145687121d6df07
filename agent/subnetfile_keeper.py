"""The subnet file kept as it should be: written where it differs, and again when somebody has removed or changed it.

A file that cannot be written now (a full /run, a folder that became read-only) is tried again for as long as the agent
runs: traffic does not depend on it. Not here: its format (subnetfile.py), and what is to be in it
(subnetfile_writer.py).
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterable
from contextlib import suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Never

from flanneld_py.agent import subnetfile
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.log import OnChange, facts, log
from flanneld_py.agent.signature import Signature, sign, signature_of
from flanneld_py.agent.subnetfile import SubnetFile

RETRY_EVERY = 5.0
"""Seconds between tries to write it."""


class SubnetFileKeeper:
    """The subnet file at a path, signed for the network with an etcd prefix. `written` is set once it is right.

    `looks` are the seconds between two looks at it, of which one takes some 50 us.
    """

    def __init__(self, path: Path, network: str, clock: Clock, looks: float) -> None:
        self.path = path
        self._signature = Signature(network)
        self._clock, self._looks = clock, looks
        self._content: SubnetFile | None = None
        self._trouble, self._failing = OnChange(clock), False
        self.written = asyncio.Event()

    def want(self, content: SubnetFile, addresses: Iterable[object] = ()) -> None:
        """Bring the file to this, signed with our underlay addresses.

        Raises OSError if it was never right yet, and more room would not help.
        """
        self._content = content
        self._signature = Signature(self._signature.network, tuple(map(str, addresses)))
        try:
            self._bring(content)
        except OSError as error:
            if not self.written.is_set() and error.errno not in (ENOSPC, EDQUOT):
                raise
            self._fail(error)

    async def run(self) -> Never:
        """Keep it for good."""
        while True:
            await self._clock.sleep(RETRY_EVERY if self._failing else self._looks)
            if (content := self._content) is None:
                continue
            try:
                changed = self._bring(content)
            except OSError as error:
                self._fail(error)
                continue
            if self._trouble.over():
                log.info("the subnet file is written", **facts(file=self.path))
            elif changed:
                log.warning("somebody removed or changed the subnet file; it is written again", **facts(file=self.path))

    def _bring(self, content: SubnetFile) -> bool:
        """Write it if it says something else; tell whether it did. Raises OSError."""
        differs = self._read() != content.text()
        if differs:
            subnetfile.write(self.path, content)
        if signature_of(self.path) != self._signature:
            with suppress(OSError):  # Then --cleanup leaves the file, until we can.
                sign(self.path, self._signature)
        self.written.set()
        self._failing = False
        return differs

    def _read(self) -> str | None:
        try:
            # What a reader waits at (a FIFO) would stop all else here.
            return self.path.read_text(encoding="ascii") if stat.S_ISREG(self.path.stat().st_mode) else None
        except (OSError, ValueError):
            return None

    def _fail(self, error: OSError) -> None:
        self._failing = True
        self._trouble.warn("the subnet file cannot be written, trying again; traffic goes on", error.strerror or error)
