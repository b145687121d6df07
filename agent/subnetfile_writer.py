"""What container engines are told of this host: subnet.env, and what has to follow when it says something new.

What containers that run have to follow is said: at a start as well, compared with the file of the run before.
Not here: the file's format (subnetfile.py), and that it stays as it is (subnetfile_keeper.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flanneld_py.agent import subnetfile
from flanneld_py.agent.clock import Clock
from flanneld_py.agent.errors import FatalError
from flanneld_py.agent.log import facts, log
from flanneld_py.agent.reconcile.desired import Desired
from flanneld_py.agent.settings import Settings
from flanneld_py.agent.subnetfile_keeper import SubnetFileKeeper


class SubnetFileWriter:
    """Say what goes into one subnet file."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        path = settings.subnet_file
        self._file = SubnetFileKeeper(path, settings.prefix, clock, settings.file_looks)
        self.run, self.written = self._file.run, self._file.written
        self._told = _before(path)

    def announce(self, wanted: Sequence[Desired], *, ipmasq: bool) -> None:
        """Write what holds now, and say what has to be restarted if subnet or MTU changed. Raises FatalError."""
        config = wanted[0].config
        networks = [family.network for family in (config.ipv4, config.ipv6) if family is not None]
        families = tuple(zip(networks, wanted[0].own.subnets.families, strict=True))
        content = subnetfile.SubnetFile(families, min(each.backend.mtu for each in wanted), ipmasq)
        before, self._told = self._told, content
        try:
            self._file.want(content, [each.own.address for each in wanted])
        except OSError as error:
            raise FatalError(
                f"cannot write the subnet file {self._file.path} ({error.strerror}); "
                "make its folder writable for this user, or change --subnet-file"
            ) from error
        if before is None or before == content:
            return
        old, new = ([subnet for _, subnet in each.families] for each in (before, content))
        if gone := [subnet for subnet in old if subnet not in new]:
            log.error(
                "the subnet of this host has changed: restart the container engine and its containers",
                **facts(old=_words(gone), new=_words(new), file=self._file.path),
            )
        if before.mtu != content.mtu:
            log.warning(
                "the containers' MTU has changed: restart the container engine and its containers, they keep the old",
                **facts(old=before.mtu, new=content.mtu, file=self._file.path),
            )


def _before(path: Path) -> subnetfile.SubnetFile | None:
    try:
        return subnetfile.read(path)
    except (OSError, ValueError):
        return None


def _words(subnets: Sequence[subnetfile.Network]) -> str:
    return " and ".join(map(str, subnets))
