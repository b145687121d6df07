"""Running the firewall's own tools: nft, iptables-save, iptables-restore. Their output comes back, or an error.

They are processes of their own and not libraries in ours: their netlink requests block, and what goes wrong in them
stays with them. Not here: what they are asked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Protocol

PATIENCE = 15.0
"""Seconds until a tool that does not end is killed; iptables itself waits up to 5 for another one's lock."""

PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin")
"""Looked at after PATH, which has no sbin in some service environments."""


class FirewallError(Exception):
    """The packet filter could not be read or changed; the text names the command and gives its own words."""


class Tools(Protocol):
    """The host's firewall commands."""

    def has(self, name: str) -> bool:
        """Tell whether there is such a command."""
        ...

    async def run(self, *command: str, stdin: str = "") -> str:
        """Run a command to its end and return its output. Raises FirewallError."""
        ...


class HostTools:
    """The real ones; they act in the network namespace of this process."""

    def __init__(self) -> None:
        self._path = os.pathsep.join([os.environ.get("PATH", ""), *PLACES])

    def has(self, name: str) -> bool:
        """See Tools."""
        return shutil.which(name, path=self._path) is not None

    async def run(self, *command: str, stdin: str = "") -> str:
        """See Tools."""
        program = shutil.which(command[0], path=self._path)
        if program is None:
            raise FirewallError(f"there is no command {command[0]}; install it")
        shown = " ".join(command)
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *command[1:],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # Their words are compared and shown: always the same ones.
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise FirewallError(f"`{shown}` cannot be started ({error.strerror})") from error
        try:
            async with asyncio.timeout(PATIENCE):
                output, errors = await process.communicate(stdin.encode())
        except TimeoutError as error:
            raise FirewallError(f"`{shown}` did not end within {PATIENCE:g} s and was killed") from error
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise FirewallError(f"`{shown}` failed: {_words(errors) or f'exit code {process.returncode}'}")
        return output.decode(errors="replace")


def _words(errors: bytes) -> str:
    """Put a tool's complaint on one line, without the rows that only point at a column."""
    lines = (line.strip() for line in errors.decode(errors="replace").splitlines())
    return "; ".join(line for line in lines if line.strip("^~ "))
