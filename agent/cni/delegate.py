"""The plugins that do the work, by CNI's own protocol: found in CNI_PATH, run, their answers read.

It decides nothing. An error of theirs is passed on with its code, the plugin's name in front of its words.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping

from flanneld_py.agent.cni.spec import CniError, Code, Json


class Delegates:
    """The plugins in `path`, run in `environment` (the runtime's, CNI_ARGS among it)."""

    def __init__(self, path: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment

    def find(self, kind: str) -> str:
        """Return the file of the plugin `kind`. Raises CniError."""
        for directory in self._path:
            file = f"{directory}/{kind}"
            if os.access(file, os.X_OK) and not os.path.isdir(file):  # noqa: PTH112 -- as cheap as it gets
                return file
        where = ":".join(self._path)
        hint = "install the reference plugins (Debian: containernetworking-plugins), or mend CNI_PATH"
        raise CniError(Code.DELEGATE, f"there is no plugin {kind} in CNI_PATH={where}: {hint}")

    def versions(self, kind: str) -> tuple[str, ...]:
        """Return the versions that a plugin speaks. Raises CniError."""
        answer = self.run("VERSION", {"type": kind, "cniVersion": "1.0.0"})
        versions = answer.get("supportedVersions")
        return tuple(map(str, versions)) if isinstance(versions, list) else ()

    def run(
        self, command: str, conf: Json, variables: Mapping[str, str] | None = None, lock: int | None = None
    ) -> Json:
        """Run `conf`'s plugin to its end and return its answer, {} if it has none. Raises CniError.

        `variables` replace the runtime's. The plugin inherits `lock`: if we are killed, it is held until that ends too.
        """
        kind = str(conf.get("type"))
        done = subprocess.run(
            [self.find(kind)],
            input=json.dumps(conf).encode(),
            stdout=subprocess.PIPE,
            env={**self._environment, **(variables or {}), "CNI_COMMAND": command},
            pass_fds=() if lock is None else (lock,),
            check=False,
        )
        answer = _object(done.stdout)
        if done.returncode != 0:
            raise _failure(kind, command, done.returncode, answer, done.stdout)
        if answer is None and done.stdout.strip():
            raise CniError(Code.DELEGATE, f"{kind}: its answer to {command} is no JSON object: {done.stdout[:200]!r}")
        return answer or {}


def _failure(kind: str, command: str, returncode: int, answer: Json | None, said: bytes) -> CniError:
    if answer is None or not isinstance(code := answer.get("code"), int):
        ended = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return CniError(Code.DELEGATE, f"{kind}: {command} ended with {ended}, saying {said[:200]!r}")
    return CniError(code, f"{kind}: {answer.get('msg', '')}", str(answer.get("details") or ""))


def _object(said: bytes) -> Json | None:
    try:
        answer = json.loads(said)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
