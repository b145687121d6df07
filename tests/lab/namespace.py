"""One network namespace: made, entered, removed.

Commands enter with `nsenter --net`, which leaves /sys and the cgroups as they are (`ip netns exec` hides them, and
Docker then refuses to start). Configuration goes through `ip -batch`: one process for many lines.

A process from `popen` dies with the thread that started it (PR_SET_PDEATHSIG), so a killed test run leaves nothing
behind: start long-lived ones from the main thread. It also has a process group of its own: Ctrl-C in the terminal
reaches the lab, and the lab decides.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.lab.processes import NETNS, kill_in_namespaces
from tests.patience import patient

log = logging.getLogger(__name__)


class LabError(Exception):
    """Something in the lab failed. The text says what, on which namespace, with the tool's own words."""


class Namespace:
    """A network namespace by name; it need not exist yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = NETNS / name

    def create(self) -> None:
        """Make it, with loopback up."""
        batch("ip", [f"netns add {self.name}"])
        self.ip("link set lo up")

    def delete(self) -> None:
        """Kill every process in it and remove it; absent is no error."""
        kill_in_namespaces([self.name])
        if self.path.exists():
            batch("ip", [f"netns del {self.name}"])

    def run(
        self, argv: Sequence[str | Path], *, check: bool = True, stdin: str = "", timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Raises LabError on a non-zero exit code if `check`, and after `timeout` seconds."""
        return _run([*self._enter(), *map(str, argv)], self.name, check=check, stdin=stdin, timeout=timeout)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command and return at once. Its pid is the command's own: nothing on the way to it forks."""
        full = [*self._enter(), "setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]
        log.debug("%s &", " ".join(full))
        return subprocess.Popen(
            full, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, process_group=0, bufsize=0
        )

    def ip(self, *lines: str) -> None:
        """Run lines of `ip` in it, in order, up to the first that fails."""
        batch("ip", lines, self.name)

    def bridge(self, *lines: str) -> None:
        """Run lines of `bridge` in it, in order, up to the first that fails."""
        batch("bridge", lines, self.name)

    def write_sysctl(self, key: str, value: str) -> None:
        """Set a sysctl under net., e.g. `net.ipv4.ip_forward`."""
        self.run(["tee", f"/proc/sys/{key.replace('.', '/')}"], stdin=value)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net={self.path}", "--"]


def batch(tool: str, lines: Sequence[str], namespace: str | None = None) -> None:
    """Run lines of `ip` or `bridge` in one process, in a namespace or outside. Raises LabError."""
    inside = ["-n", namespace] if namespace else []
    _run([tool, *inside, "-batch", "-"], namespace, stdin="".join(line + "\n" for line in lines))


def _run(
    argv: Sequence[str], namespace: str | None, *, stdin: str, check: bool = True, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    log.debug("%s%s", " ".join(argv), f" <<'END'\n{stdin}END" if stdin else "")
    place = f" in namespace {namespace}" if namespace else ""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=patient(timeout), check=False)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(argv)}`{place} did not end within {patient(timeout):g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"`{' '.join(argv)}`{place} failed with exit code {done.returncode}: {said}\n{stdin}".rstrip())
    return done
